//! Defects on purpose. Each is a possible mistake in the rules; the invariants must find every one.

use gaggled_core::{
    base::{
        ids::{ActorId, InstanceId, ProgramId},
        time::{Instant, Millis, WallTime},
    },
    control::Proposal,
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, StopReason, SystemEvent},
    graph::{Condition, START},
    host::{HostCommand, HostEvent, HostReport, Recovered},
    journal::{Journal, Refusal},
    machine::{Input, Output, Timer},
    process::ExitStatus,
    protocol::{Action, Selection},
    state::{Phase, State},
};

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A start is proposed and admitted although a dependency is not satisfied.
    StartWithoutDependencies,
    /// A start is proposed and admitted before the backoff is over.
    StartTooEarly,
    /// A start is proposed and admitted during a shutdown.
    StartInShutdown,
    /// A program that an operator wants down is started again when it has ended.
    StartAgainstOperator,
    /// Some restarts of dependents are not proposed.
    LoseRestart,
    /// A restart of a dependent is proposed and admitted twice.
    RestartTwice,
    /// No program is killed when its killwait is over.
    NeverKill,
    /// A program is killed only after twice its killwait.
    KillLate,
    /// Signals are not sent, and stop commands are not run.
    NeverTerm,
    /// The delay of a dependency is half as long as configured.
    HalfDelay,
    /// A dependency stays satisfied when the program that it is on goes down.
    NeverBroken,
    /// A program is stopped before its dependents.
    DependentsLast,
    /// A stop that comes while the program is starting is forgotten.
    ForgetStopWhileStarting,
    /// Some events have the number of the event before.
    NumberTwice,
    /// The shutdown is announced as complete while programs still run.
    EndEarly,
    /// A failed start is not tried again.
    ForgetFailedStart,
    /// A run is spawned twice.
    SpawnTwice,
    /// Some events name a cause that does not exist.
    NoCause,
    /// An exit is proposed for the wrong run.
    WrongRun,
    /// Some programs are not notified of the shutdown.
    DeafToShutdown,
    /// The timer of the backoff is never armed.
    ForgetBackoffTimer,
    /// A program that runs on after a crash is taken for ended.
    AdoptNobody,
    /// A running instance that is not in the journal on the disk is not found.
    OverlookUnwritten,
    /// A run that ends during the outage is not noticed.
    MissTheEnd,
    /// A crash forgets which programs operators have started and stopped.
    ForgetWishes,
    /// After a crash a dependency propagates again what it has propagated before.
    AnswerAgain,
    /// A program that was being stopped counts as up after a crash.
    ForgetDeadline,
    /// After a crash instances are counted from 1.
    CountAnew,
    /// After a crash the delay of each dependency counts as over.
    OpenAfterCrash,
    /// The end of an essential program starts no shutdown.
    GoOnWithoutEssential,
    /// A dependency with the condition `Completed` takes a failed run for a completed one.
    TakeFailureForCompletion,
    /// A program that has reached its start limit is started again.
    IgnoreLimit,
    /// A crash forgets the shutdown that was under way.
    ForgetShutdown,
    /// A program that its group stops is admitted again at once.
    LetBackIn,
    /// A group that has failed announces that it has reached its level.
    TakeFailureForArrival,
    /// After a crash each group is at its default level.
    ForgetLevel,
    /// The stop command that undoes a run is never run.
    NeverUndo,
    /// A program with a stop command gets a TERM instead.
    SignalBeforeStopCommand,
    /// A program whose stop command has failed gets no signal.
    IgnoreFailedStopCommand,
    /// A dependency with the condition `Ready` takes a started program for a ready one.
    TakeStartForReadiness,
    /// A program that is not ready in time is left alone.
    WaitForReadinessForEver,
    /// An unhealthy program is not stopped.
    LeaveTheUnhealthy,
    /// Watchdog pings are ignored.
    TakeLatenessForSilence,
    /// A restart of everything also starts programs that an operator has stopped.
    RestartTheStopped,
    /// A start of everything also starts programs with `autostart: false`.
    StartTheManual,
    /// The last event of a command is lost on its way to the journal.
    LoseProposedEvent,
    /// A command is done as soon as its events are committed.
    DoneWhenCommitted,
    /// A command is never answered.
    ForgetCommand,
    /// A stop of a group asks for its level `start`.
    StartInsteadOfStop,
    /// A command is done when the first of its programs has reached the state.
    DoneWhenOneIsThere,
    /// A pattern selects only the first program that matches.
    SelectOnlyTheFirst,
    /// A stop of everything leaves the groups alone.
    LeaveGroupsAlone,
    /// A restart of a group stops its running programs with `autostart: false` and does not start them again.
    StopTheManual,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 53] = [
        Self::StartWithoutDependencies,
        Self::StartTooEarly,
        Self::StartInShutdown,
        Self::StartAgainstOperator,
        Self::LoseRestart,
        Self::RestartTwice,
        Self::NeverKill,
        Self::KillLate,
        Self::NeverTerm,
        Self::HalfDelay,
        Self::NeverBroken,
        Self::DependentsLast,
        Self::ForgetStopWhileStarting,
        Self::NumberTwice,
        Self::EndEarly,
        Self::ForgetFailedStart,
        Self::SpawnTwice,
        Self::NoCause,
        Self::WrongRun,
        Self::DeafToShutdown,
        Self::ForgetBackoffTimer,
        Self::AdoptNobody,
        Self::OverlookUnwritten,
        Self::MissTheEnd,
        Self::ForgetWishes,
        Self::AnswerAgain,
        Self::ForgetDeadline,
        Self::CountAnew,
        Self::OpenAfterCrash,
        Self::GoOnWithoutEssential,
        Self::TakeFailureForCompletion,
        Self::IgnoreLimit,
        Self::ForgetShutdown,
        Self::LetBackIn,
        Self::TakeFailureForArrival,
        Self::ForgetLevel,
        Self::NeverUndo,
        Self::SignalBeforeStopCommand,
        Self::IgnoreFailedStopCommand,
        Self::TakeStartForReadiness,
        Self::WaitForReadinessForEver,
        Self::LeaveTheUnhealthy,
        Self::TakeLatenessForSilence,
        Self::RestartTheStopped,
        Self::StartTheManual,
        Self::LoseProposedEvent,
        Self::DoneWhenCommitted,
        Self::ForgetCommand,
        Self::StartInsteadOfStop,
        Self::DoneWhenOneIsThere,
        Self::SelectOnlyTheFirst,
        Self::LeaveGroupsAlone,
        Self::StopTheManual,
    ];

    /// The proposal of a command, with the defect.
    pub fn proposal(self, action: &Action, state: &State, mut proposal: Proposal) -> Proposal {
        let everything = |selection: &Selection| selection.programs.is_empty();
        let free = || state.graph.programs.iter().filter(|(_, policy)| policy.group.is_none());
        match (self, action) {
            (Self::RestartTheStopped, Action::Restart(selection)) if everything(selection) => {
                let stopped = free().filter(|(id, _)| state.programs[*id].operator_down);
                proposal.events.extend(stopped.map(|(id, _)| Event::Program(id, ProgramEvent::RestartRequested)));
            }
            (Self::StartTheManual, Action::Up(selection)) if everything(selection) => {
                let manual = free().filter(|(_, policy)| !policy.autostart);
                proposal.events.extend(manual.map(|(id, _)| Event::Program(id, ProgramEvent::StartRequested)));
            }
            (Self::StartInsteadOfStop, Action::Down(_)) => {
                for event in &mut proposal.events {
                    if let Event::Group(_, GroupEvent::LevelRequested { level }) = event {
                        *level = START.into();
                    }
                }
            }
            (Self::StopTheManual, Action::Restart(_)) => {
                let is_member = |event: &Event| match event {
                    Event::Program(id, ProgramEvent::RestartRequested) => state.graph.programs[*id].group.is_some(),
                    _ => false,
                };
                let restarts = |event: &Event| matches!(event, Event::Group(_, GroupEvent::RestartRequested));
                if proposal.events.iter().any(restarts) {
                    proposal.events.retain(|event| !is_member(event));
                }
            }
            (Self::LeaveGroupsAlone, Action::Down(selection)) if everything(selection) => {
                proposal.events.retain(|event| !matches!(event, Event::Group(..)));
            }
            (
                Self::SelectOnlyTheFirst,
                Action::Up(selection) | Action::Down(selection) | Action::Restart(selection),
            ) if selection.programs.iter().any(|word| word.ends_with('*')) => {
                proposal.events.truncate(1);
            }
            _ => {}
        }
        proposal
    }

    /// Commits an event, with the defect.
    ///
    /// # Errors
    /// Those of the journal without the defect.
    pub fn commit(
        self,
        journal: &mut Journal,
        now: Instant,
        wall: WallTime,
        event: Event,
        cause: Cause,
    ) -> Result<Envelope, (Event, Refusal)> {
        let cause = match cause {
            Cause::Event(seq) if self == Self::NoCause && seq.0 % 7 == 0 => {
                Cause::Event(gaggled_core::base::ids::Seq(seq.0 + 1_000_000))
            }
            cause => cause,
        };
        match journal.commit(now, wall, event, cause.clone()) {
            Err((event, refusal)) if self.admits(&event, &refusal) && self.is_meant(journal, &event) => {
                Ok(journal.commit_unchecked(now, wall, event, cause))
            }
            Ok(envelope) if self == Self::NumberTwice && envelope.seq.0 % 50 == 0 => {
                Ok(Envelope { seq: gaggled_core::base::ids::Seq(envelope.seq.0 - 1), ..envelope })
            }
            result => result,
        }
    }

    /// Changes the state that a run of the daemon begins with.
    pub fn carries(self, state: &mut State) {
        let graph = state.graph.clone();
        match self {
            Self::ForgetWishes => {
                for (id, policy) in graph.programs.iter() {
                    state.programs[id].operator_down = !policy.autostart;
                    state.programs[id].start_pending |= policy.autostart && !state.programs[id].is_running();
                }
            }
            Self::AnswerAgain => graph.dependencies.ids().for_each(|id| state.dependencies[id].last_down_event = None),
            Self::ForgetDeadline => {
                for id in graph.programs.ids() {
                    if state.programs[id].phase == Phase::Stopping {
                        state.programs[id].phase = Phase::Up;
                        state.programs[id].pending_stop = None;
                    }
                }
            }
            Self::CountAnew => {
                for id in graph.programs.ids() {
                    if !state.programs[id].is_running() {
                        state.programs[id].instance = InstanceId(0);
                    }
                }
            }
            Self::OpenAfterCrash => {
                for (id, dependency) in graph.dependencies.iter() {
                    if state.programs[dependency.dependency].is_running_and_wanted() {
                        state.dependencies[id].satisfied = Some(state.programs[dependency.dependency].instance);
                        state.programs[dependency.dependency].up_since = Some(Instant::default());
                    }
                }
                for id in graph.programs.ids() {
                    let unsatisfied = graph
                        .dependencies_of(id)
                        .iter()
                        .filter(|dependency| state.dependencies[**dependency].satisfied.is_none());
                    state.programs[id].unsatisfied = u32::try_from(unsatisfied.count()).unwrap_or(0);
                }
            }
            Self::ForgetShutdown => state.shutdown = None,
            Self::ForgetLevel => {
                for (id, group) in graph.groups.iter() {
                    state.groups[id].level = group.default_level.clone();
                }
            }
            _ => {}
        }
    }

    /// What a new daemon finds of a program, with the defect.
    pub fn finds(self, id: ProgramId, found: Recovered, state: &State) -> Option<(ProgramId, Recovered)> {
        let known = state.programs[id].instance;
        match (self, found) {
            (Self::AdoptNobody, Recovered::Running { .. }) => {
                Some((id, Recovered::Exited { instance: known, status: ExitStatus::Unknown, orphans: 0 }))
            }
            (Self::OverlookUnwritten, Recovered::Running { instance, .. }) if instance > known => None,
            (Self::MissTheEnd, Recovered::Exited { .. } | Recovered::NeverStarted { .. }) => None,
            _ => Some((id, found)),
        }
    }

    /// Whether a machine with the defect gets an input.
    pub fn hears(self, actor: ActorId, input: &Input<'_>) -> bool {
        match (self, actor, input) {
            (
                Self::DependentsLast,
                ActorId::Program(own),
                Input::Committed(Envelope { event: Event::Program(other, _), .. }),
            ) => own == *other,
            (
                Self::DeafToShutdown,
                ActorId::Program(own),
                Input::Committed(Envelope { event: Event::System(SystemEvent::ShutdownStarted), .. }),
            ) => own.0 % 3 > 0,
            (Self::TakeLatenessForSilence, ActorId::Program(_), Input::HostReported(HostReport { event, .. })) => {
                *event != HostEvent::WatchdogPing
            }
            _ => true,
        }
    }

    /// Whether the defect concerns this event.
    fn is_meant(self, journal: &Journal, event: &Event) -> bool {
        match event {
            Event::Program(id, _) if self == Self::IgnoreLimit => journal.state().programs[*id].start_limit_hit,
            Event::Program(id, _) if self == Self::TakeStartForReadiness => {
                let state = journal.state();
                let unsatisfied = state
                    .graph
                    .dependencies_of(*id)
                    .iter()
                    .filter(|dependency| state.dependencies[**dependency].satisfied.is_none());
                let mut unsatisfied = unsatisfied.map(|dependency| &state.graph.dependencies[*dependency]);
                unsatisfied.all(|dependency| {
                    dependency.condition == Condition::Ready
                        && state.programs[dependency.dependency].is_running_and_wanted()
                })
            }
            _ => true,
        }
    }

    fn admits(self, event: &Event, refusal: &Refusal) -> bool {
        let start = matches!(event, Event::Program(_, ProgramEvent::Starting { .. }));
        match self {
            Self::StartWithoutDependencies => start && matches!(refusal, Refusal::DependencyUnsatisfied { .. }),
            Self::StartTooEarly => start && matches!(refusal, Refusal::TooEarly { .. }),
            Self::TakeStartForReadiness => start && matches!(refusal, Refusal::DependencyUnsatisfied { .. }),
            Self::TakeFailureForCompletion => start && matches!(refusal, Refusal::DependencyUnsatisfied { .. }),
            Self::StartInShutdown => start && *refusal == Refusal::ShuttingDown,
            Self::StartAgainstOperator | Self::IgnoreLimit => start && *refusal == Refusal::NoStartPending,
            Self::LetBackIn => matches!(event, Event::Program(_, ProgramEvent::LevelStartRequested { .. })),
            Self::RestartTwice => {
                matches!(event, Event::Dependency(_, DependencyEvent::RestartTriggered { .. }))
                    && *refusal == Refusal::Stale
            }
            Self::HalfDelay => {
                matches!(
                    event,
                    Event::Dependency(_, DependencyEvent::Satisfied { .. })
                        | Event::Program(_, ProgramEvent::Starting { .. })
                ) && matches!(refusal, Refusal::TooEarly { .. } | Refusal::DependencyUnsatisfied { .. })
            }
            _ => false,
        }
    }

    /// The outputs of a machine with the defect.
    pub fn outputs(self, now: Instant, input: &Input<'_>, outputs: Vec<Output>) -> Vec<Output> {
        let mut outputs = outputs;
        match self {
            Self::StartTooEarly => {
                for output in &mut outputs {
                    if let Output::SetTimer(Timer::Backoff, at) = output {
                        *at = now;
                    }
                }
            }
            Self::HalfDelay => {
                for output in &mut outputs {
                    if let Output::SetTimer(Timer::DependencyDelay, at) = output {
                        *at = now + now.until(*at).half();
                    }
                }
                if matches!(input, Input::TimerFired(Timer::DependencyDelay)) && outputs.len() == 1 {
                    // The timer has fired too early, and is not armed again.
                    outputs.retain(|output| !matches!(output, Output::SetTimer(..)));
                }
            }
            Self::StartAgainstOperator | Self::IgnoreLimit | Self::StartInShutdown => {
                Self::start_anyway(input, &mut outputs);
            }
            Self::LoseRestart => outputs.retain(|output| {
                !matches!(output, Output::Propose(Event::Dependency(_, DependencyEvent::RestartTriggered { down_event, .. }), _) if down_event.0 % 5 == 0)
            }),
            Self::RestartTwice => {
                let again: Vec<Output> = outputs
                    .iter()
                    .filter(|output| matches!(output, Output::Propose(Event::Dependency(_, DependencyEvent::RestartTriggered { .. }), _)))
                    .cloned()
                    .collect();
                outputs.extend(again);
            }
            Self::GoOnWithoutEssential => outputs.retain(|output| {
                !matches!(output, Output::Propose(Event::System(SystemEvent::ShutdownStarted), _))
            }),
            Self::NeverKill => outputs.retain(|output| !matches!(output, Output::SetTimer(Timer::KillTimeout(_), _))),
            Self::KillLate => {
                for output in &mut outputs {
                    if let Output::SetTimer(Timer::KillTimeout(_), at) = output {
                        *at = *at + now.until(*at) + Millis(100);
                    }
                }
            }
            Self::NeverTerm | Self::NeverUndo | Self::SignalBeforeStopCommand | Self::IgnoreFailedStopCommand => {
                self.stop_otherwise(input, &mut outputs);
            }
            Self::LetBackIn => {
                let back = outputs.iter().filter_map(|output| match output {
                    Output::Propose(Event::Program(id, ProgramEvent::LevelStopRequested { requested_by }), cause) => Some(
                        Output::Propose(Event::Program(*id, ProgramEvent::LevelStartRequested { requested_by: *requested_by }), cause.clone()),
                    ),
                    _ => None,
                });
                let back: Vec<Output> = back.collect();
                outputs.extend(back);
            }
            Self::TakeFailureForArrival => outputs.iter_mut().for_each(Self::take_for_arrival),
            Self::NeverBroken => outputs.retain(|output| {
                !matches!(output, Output::Propose(Event::Dependency(_, DependencyEvent::Broken), _))
            }),
            Self::ForgetStopWhileStarting => outputs.retain(|output| {
                let started = matches!(input, Input::Committed(Envelope { event: Event::Program(_, ProgramEvent::Started { .. }), .. }));
                !(started && matches!(output, Output::Propose(Event::Program(_, ProgramEvent::Stopping { .. }), _)))
            }),
            Self::EndEarly
                if matches!(input, Input::Committed(Envelope { event: Event::System(SystemEvent::ShutdownStarted), .. }))
                    && outputs.iter().any(|output| matches!(output, Output::SetTimer(Timer::ShutdownTimeout, _)))
                => {
                    outputs.push(Output::Propose(Event::System(SystemEvent::ShutdownCompleted { unkillable: 0 }), Cause::DaemonStart));
                }
            Self::ForgetFailedStart => outputs.retain(|output| {
                let failed = matches!(input, Input::Committed(Envelope { event: Event::Program(_, ProgramEvent::SpawnFailed { .. }), .. }));
                !(failed && matches!(output, Output::SetTimer(..) | Output::Propose(..)))
            }),
            Self::SpawnTwice => {
                let again = outputs.iter().find(|output| matches!(output, Output::Execute(HostCommand::Spawn { .. }))).cloned();
                outputs.extend(again);
            }
            Self::WrongRun => {
                for output in &mut outputs {
                    if let Output::Propose(Event::Program(_, ProgramEvent::Exited { instance, .. }), _) = output {
                        instance.0 = instance.0.saturating_sub(u64::from(instance.0 % 5 == 2));
                    }
                }
            }
            Self::WaitForReadinessForEver | Self::LeaveTheUnhealthy => outputs.retain(|output| self.notices(output)),
            Self::ForgetBackoffTimer => outputs.retain(|output| !matches!(output, Output::SetTimer(Timer::Backoff, _))),
            Self::StartWithoutDependencies | Self::TakeFailureForCompletion | Self::TakeStartForReadiness => {
                Self::start_unmet(input, &mut outputs);
            }
            _ => {}
        }
        outputs
    }

    /// The defects in stopping a program.
    fn stop_otherwise(self, input: &Input<'_>, outputs: &mut Vec<Output>) {
        let failed = matches!(
            input,
            Input::Committed(Envelope { event: Event::Program(_, ProgramEvent::StopCommandFailed { .. }), .. })
        );
        let is_lost = |command: &HostCommand| match command {
            HostCommand::Terminate { .. } => self == Self::NeverTerm || failed && self == Self::IgnoreFailedStopCommand,
            HostCommand::RunStopCommand { .. } | HostCommand::Kill { .. } => self == Self::NeverTerm,
            HostCommand::Undo { .. } => self == Self::NeverUndo,
            _ => false,
        };
        outputs.retain(|output| !matches!(output, Output::Execute(command) if is_lost(command)));
        for output in outputs {
            if let Output::Execute(HostCommand::RunStopCommand { program, instance }) = *output
                && self == Self::SignalBeforeStopCommand
            {
                *output = Output::Execute(HostCommand::Terminate { program, instance });
            }
        }
    }

    fn take_for_arrival(output: &mut Output) {
        if let Output::Propose(Event::Group(_, event), _) = output
            && let GroupEvent::Failed { requested_by, .. } = *event
        {
            *event = GroupEvent::LevelReached { requested_by };
        }
    }

    /// Whether a machine that does not act on an unhealthy program still has this output.
    fn notices(self, output: &Output) -> bool {
        match output {
            Output::SetTimer(Timer::StartTimeout(_), _) => self != Self::WaitForReadinessForEver,
            Output::Propose(Event::Program(_, ProgramEvent::Stopping { reason: StopReason::Unhealthy, .. }), _) => {
                self != Self::LeaveTheUnhealthy
            }
            _ => true,
        }
    }

    fn start_unmet(input: &Input<'_>, outputs: &mut Vec<Output>) {
        if let Input::Committed(Envelope {
            event: Event::Program(program, ProgramEvent::Exited { instance, .. }),
            seq,
            ..
        }) = input
        {
            let instance = InstanceId(instance.0 + 1);
            outputs.push(Output::Propose(
                Event::Program(*program, ProgramEvent::Starting { instance }),
                Cause::Event(*seq),
            ));
        }
    }

    fn start_anyway(input: &Input<'_>, outputs: &mut Vec<Output>) {
        let Input::Committed(Envelope { event: Event::Program(_, event), .. }) = input else { return };
        if matches!(event, ProgramEvent::Exited { .. }) {
            Self::start_unmet(input, outputs);
        }
    }
}
