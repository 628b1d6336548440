//! Events in words, for logs, the listener and `why`.

use crate::{
    base::ids::DependencyId,
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, RemoteEvent, SystemEvent},
    graph::{Condition, Graph},
    process::Outcome,
    protocol::describe,
};

/// What happened, in words, without its cause.
pub fn describe_event(envelope: &Envelope, graph: &Graph) -> String {
    match &envelope.event {
        Event::Program(id, event) => describe_program_event(&graph.programs[*id].name, event),
        Event::Remote(id, event) => describe_remote_event(&graph.programs[*id].name, event),
        Event::Dependency(id, event) => describe_dependency_event(graph, *id, event),
        Event::Group(id, event) => describe_group_event(&graph.groups[*id].name, event),
        Event::System(event) => describe_system_event(event),
    }
}

fn describe_program_event(program: &str, event: &ProgramEvent) -> String {
    match event {
        ProgramEvent::Starting { instance } => format!("{program} is being started (run {instance})"),
        ProgramEvent::Started { pid, .. } => format!("{program} started with pid {pid}"),
        ProgramEvent::Adopted { pid, .. } => format!("{program} was found running with pid {pid}"),
        ProgramEvent::Daemonized { pid, .. } => format!("{program} has left a daemon with pid {pid}"),
        ProgramEvent::Ready { .. } => format!("{program} is ready"),
        ProgramEvent::Unhealthy { reason, .. } => {
            format!("{program} is unhealthy: {reason}")
        }
        ProgramEvent::SpawnFailed { stage, errno, .. } => {
            format!(
                "{program} could not be started: {}",
                describe(Outcome::SpawnFailed { stage: *stage, errno: *errno })
            )
        }
        ProgramEvent::Stopping { reason, .. } => format!("{program} is being stopped, because {reason}"),
        ProgramEvent::StopCommandFailed { status, .. } => format!("the stop command of {program} {status}"),
        ProgramEvent::KillRequested { .. } => format!("{program} did not stop in time and was killed"),
        ProgramEvent::Exited { status, orphans: 0, .. } => format!("{program} {status}"),
        ProgramEvent::Exited { status, orphans, remains, .. } => match (orphans, remains) {
            (1, false) => format!("{program} {status}, and a process that it left behind was killed"),
            (1, true) => format!("{program} {status}, and a process that it left behind runs on"),
            (_, false) => {
                format!("{program} {status}, and {orphans} processes that it left behind were killed")
            }
            (_, true) => format!("{program} {status}, and {orphans} processes that it left behind run on"),
        },
        ProgramEvent::LevelStartRequested { .. } => format!("{program} was started by its group"),
        ProgramEvent::LevelStopRequested { .. } => format!("{program} is stopped by its group"),
        ProgramEvent::Signalled { signal, .. } => format!("{program} was sent {signal}"),
        ProgramEvent::StopRequested => format!("stop of {program} was requested"),
        ProgramEvent::StartRequested => format!("start of {program} was requested"),
        ProgramEvent::RestartRequested => format!("{program} was asked to restart"),
    }
}

fn describe_remote_event(program: &str, event: &RemoteEvent) -> String {
    match event {
        RemoteEvent::Up { remote_instance, .. } => format!("{program} came up there (run {remote_instance})"),
        RemoteEvent::Ready { .. } => format!("{program} is ready"),
        RemoteEvent::Down { missed, planned, outcome, .. } => {
            let how = match (planned, outcome) {
                (true, _) => "is being stopped".to_owned(),
                (false, Some(outcome)) => format!("went down: {}", describe(*outcome)),
                (false, None) => "went down".to_owned(),
            };
            let missed = match missed {
                0 => String::new(),
                missed => format!(" ({} times at once)", missed + 1),
            };
            format!("{program} {how}{missed}")
        }
        RemoteEvent::Completed { .. } => format!("{program} has completed"),
        RemoteEvent::Unseen { reason, assumed_down: false } => {
            format!("{program} is not known any more, because {reason}: it counts as it was last seen")
        }
        RemoteEvent::Unseen { reason, assumed_down: true } => {
            format!("{program} is not known any more, because {reason}: it counts as down")
        }
        RemoteEvent::Seen => format!("{program} is known again"),
    }
}

fn describe_system_event(event: &SystemEvent) -> String {
    match event {
        SystemEvent::DaemonStarted { version, programs, start_kind, adopted, exited_meanwhile } => {
            let found = match (adopted, exited_meanwhile) {
                (0, 0) => String::new(),
                (adopted, 0) => format!(", {adopted} of them still running"),
                (0, ended) => format!(", {ended} of them ended meanwhile"),
                (adopted, ended) => format!(", {adopted} of them still running and {ended} ended meanwhile"),
            };
            let noun = if *programs == 1 { "program" } else { "programs" };
            format!("gaggled {version} started{start_kind} with {programs} {noun}{found}")
        }
        SystemEvent::HandoverStarted { kind } => format!("gaggled hands over to the next daemon, for {kind}"),
        SystemEvent::JournalDegraded { reason } => format!("the journal is not written: {reason}"),
        SystemEvent::JournalRestored { lost_events } => {
            format!("the journal is written again; {lost_events} events are missing in it")
        }
        SystemEvent::JournalDamaged { file, reason } => format!("{file} was quarantined, because {reason}"),
        SystemEvent::ShutdownStarted => "gaggled was asked to shut down".to_owned(),
        SystemEvent::ShutdownCompleted { unkillable: 0 } => "everything has stopped".to_owned(),
        SystemEvent::ShutdownCompleted { unkillable: 1 } => "1 program could not be stopped".to_owned(),
        SystemEvent::ShutdownCompleted { unkillable } => {
            format!("{unkillable} programs could not be stopped")
        }
        SystemEvent::CommandRefused { reason, .. } => format!("a command was refused: {reason}"),
        SystemEvent::ActorPanicked { actor, message } => format!("bug in gaggled: {actor} panicked: {message}"),
    }
}

fn describe_group_event(group: &str, event: &GroupEvent) -> String {
    match event {
        GroupEvent::LevelRequested { level } => format!("group {group} was asked to go to level {level}"),
        GroupEvent::RestartRequested => format!("group {group} was asked to restart"),
        GroupEvent::LevelReached { .. } => format!("group {group} has reached its level"),
        GroupEvent::Failed { failed_program, .. } => {
            format!("group {group} failed, because {failed_program} did not end well")
        }
        GroupEvent::FallbackStarted { level } => format!("group {group} went to level {level} after the failure"),
        GroupEvent::ClaimStarted { .. } => format!("this node wants to run group {group}"),
        GroupEvent::ClaimFailed { .. } => format!("this node could not claim group {group}"),
        GroupEvent::Held { token, .. } => format!("this node holds group {group} (token {token})"),
        GroupEvent::Leaving { reason } => format!("this node leaves group {group}, because {reason}"),
        GroupEvent::Released { .. } => format!("this node has released group {group}"),
        GroupEvent::HolderSeen { node: Some(node) } => format!("group {group} is held by node {node}"),
        GroupEvent::HolderSeen { node: None } => format!("group {group} is held by no node"),
    }
}

fn describe_dependency_event(graph: &Graph, id: DependencyId, event: &DependencyEvent) -> String {
    let dependency = &graph.dependencies[id];
    let (of, on) = (&graph.programs[dependency.dependent].name, &graph.programs[dependency.dependency].name);
    match event {
        DependencyEvent::Satisfied { .. } if dependency.condition == Condition::Completed => {
            format!("{on} had completed, as {of} needs")
        }
        DependencyEvent::Satisfied { .. } => {
            let what = if dependency.condition == Condition::Ready { "ready" } else { "up" };
            match dependency.delay.0 {
                0 => format!("{on} was {what}, as {of} needs"),
                _ => format!("{on} had been {what} for {}, as {of} needs", dependency.delay),
            }
        }
        DependencyEvent::Broken => format!("{of} can no longer count on {on}"),
        DependencyEvent::RestartTriggered { .. } => format!("{of} has to restart, because {on} went down"),
    }
}

/// Where a chain of causes ends, in words.
pub fn describe_origin(cause: &Cause) -> String {
    match cause {
        Cause::DaemonStart => "gaggled was started".to_owned(),
        Cause::Operator { who, .. } => format!("{who} asked for it"),
        Cause::Kernel => "the operating system reported it".to_owned(),
        Cause::Remote(cause) if cause.why.is_empty() => format!("node {} published it", cause.node),
        Cause::Remote(cause) => format!("on node {}: {}", cause.node, cause.why.join(", because ")),
        Cause::Cluster => "the cluster showed it".to_owned(),
        Cause::Event(seq) | Cause::Timer(seq) => format!("event {seq} is no longer kept"),
    }
}
