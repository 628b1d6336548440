//! Events as lines for people.

use std::fmt::Write;

use gaggled_core::{
    base::time::WallTime,
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, RemoteEvent, SystemEvent},
    graph::Graph,
    process::ExitStatus,
    protocol::describe_event,
};
use owo_colors::{AnsiColors, OwoColorize};
use serde_json::Value;

/// The time of day on this machine.
pub fn clock_time(wall: WallTime) -> String {
    let zoned = wall.timestamp().to_zoned(jiff::tz::TimeZone::system());
    zoned.strftime("%H:%M:%S%.3f").to_string()
}

/// Date and time on this machine.
pub fn date_time(wall: WallTime) -> String {
    let zoned = wall.timestamp().to_zoned(jiff::tz::TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// The colour of an event; events of little interest have none.
pub fn colour(event: &Event) -> AnsiColors {
    match event {
        Event::Program(
            _,
            ProgramEvent::Started { .. }
            | ProgramEvent::Adopted { .. }
            | ProgramEvent::Daemonized { .. }
            | ProgramEvent::Ready { .. },
        )
        | Event::Remote(_, RemoteEvent::Up { .. } | RemoteEvent::Ready { .. } | RemoteEvent::Completed { .. })
        | Event::Group(_, GroupEvent::LevelReached { .. } | GroupEvent::Held { .. })
        | Event::System(SystemEvent::JournalRestored { .. }) => AnsiColors::Green,
        Event::Program(_, ProgramEvent::Exited { status: ExitStatus::Code(0), .. } | ProgramEvent::Stopping { .. })
        | Event::Remote(_, RemoteEvent::Unseen { assumed_down: false, .. } | RemoteEvent::Down { planned: true, .. })
        | Event::Dependency(_, DependencyEvent::RestartTriggered { .. } | DependencyEvent::Broken) => {
            AnsiColors::Yellow
        }
        Event::Program(
            _,
            ProgramEvent::Exited { .. }
            | ProgramEvent::SpawnFailed { .. }
            | ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::KillRequested { .. }
            | ProgramEvent::Unhealthy { .. },
        )
        | Event::System(
            SystemEvent::ActorPanicked { .. }
            | SystemEvent::CommandRefused { .. }
            | SystemEvent::JournalDegraded { .. }
            | SystemEvent::JournalDamaged { .. },
        )
        | Event::Remote(_, RemoteEvent::Unseen { .. } | RemoteEvent::Down { .. })
        | Event::Group(
            _,
            GroupEvent::Failed { .. } | GroupEvent::FallbackStarted { .. } | GroupEvent::Leaving { .. },
        ) => AnsiColors::Red,
        Event::Program(
            _,
            ProgramEvent::StartRequested
            | ProgramEvent::StopRequested
            | ProgramEvent::RestartRequested
            | ProgramEvent::Signalled { .. },
        )
        | Event::Group(_, GroupEvent::LevelRequested { .. } | GroupEvent::RestartRequested)
        | Event::System(
            SystemEvent::DaemonStarted { .. }
            | SystemEvent::HandoverStarted { .. }
            | SystemEvent::ShutdownStarted
            | SystemEvent::ShutdownCompleted { .. },
        ) => AnsiColors::Cyan,
        Event::Program(
            _,
            ProgramEvent::Starting { .. }
            | ProgramEvent::LevelStartRequested { .. }
            | ProgramEvent::LevelStopRequested { .. },
        )
        | Event::Remote(_, RemoteEvent::Seen)
        | Event::Group(
            _,
            GroupEvent::ClaimStarted { .. }
            | GroupEvent::ClaimFailed { .. }
            | GroupEvent::Released { .. }
            | GroupEvent::HolderSeen { .. },
        )
        | Event::Dependency(_, DependencyEvent::Satisfied { .. }) => AnsiColors::Default,
    }
}

/// The cause in words, without what the event itself says.
pub fn because(cause: &Cause) -> String {
    match cause {
        Cause::DaemonStart | Cause::Kernel | Cause::Cluster => String::new(),
        Cause::Remote(cause) => match cause.why.first() {
            Some(why) => format!("on node {}: {why}", cause.node),
            None => format!("on node {}", cause.node),
        },
        Cause::Operator { who, .. } => format!("by {who}"),
        Cause::Event(seq) => format!("because of {seq}"),
        Cause::Timer(seq) => format!("some time after {seq}"),
    }
}

/// The line of an event: number, time, what happened, why.
pub fn line(envelope: &Envelope, graph: &Graph, coloured: bool) -> String {
    let words = describe_event(envelope, graph);
    let why = because(&envelope.cause);
    let time = clock_time(envelope.time);
    let mut line = String::new();
    // Writing to a text cannot fail.
    let _ = if coloured {
        write!(line, "{} {:>6}  {}", time.dimmed(), envelope.seq.dimmed(), words.color(colour(&envelope.event)))
    } else {
        write!(line, "{time} {:>6}  {words}", envelope.seq)
    };
    if !why.is_empty() {
        let _ =
            if coloured { write!(line, "  {}", format_args!("({why})").dimmed()) } else { write!(line, "  ({why})") };
    }
    line
}

/// An event that was not applied to a state, as a line.
pub fn raw_line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let time: Option<jiff::Timestamp> = event["time"].as_str().and_then(|time| time.parse().ok());
    let wall = WallTime(time.map_or(0, jiff::Timestamp::as_microsecond));
    let time = clock_time(wall);
    let on = if text("dependency").is_empty() { String::new() } else { format!(" -> {}", text("dependency")) };
    let known = ["v", "epoch", "seq", "at_ms", "at_us", "time", "cause", "program", "dependency", "event", "state"];
    let more = event.as_object().into_iter().flatten().filter(|(name, _)| !known.contains(&name.as_str()));
    let more: Vec<String> = more.map(|(name, value)| format!("{name}={value}")).collect();
    format!("{time} {:>6}  {:<20} {}{on} {}", event["seq"], text("event"), text("program"), more.join(" "))
        .trim_end()
        .to_owned()
}
