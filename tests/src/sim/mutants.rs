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
    /// A start is admitted although a dependency is not satisfied, and dependencies are proposed as open when they open.
    StartWithoutDependencies,
    /// A start is admitted before the space between starts is over, and nobody waits for it.
    StartTooEarly,
    /// A start is admitted during a shutdown, and proposed.
    StartInShutdown,
    /// A program that an operator wants down is started again when it has ended.
    StartAgainstOperator,
    /// One of some restarts is forgotten.
    LoseRestart,
    /// A restart is only proposed when the dependency was satisfied: a fall within the delay is missed.
    RestartTwice,
    /// Nobody is killed.
    NeverKill,
    /// Killed only after twice the killwait.
    KillLate,
    /// The signal is not sent.
    NeverTerm,
    /// The delay is half of what it should be.
    HalfDelay,
    /// A dependency stays satisfied when `on` goes down.
    NeverBroken,
    /// A program is stopped before its dependents.
    DependentsLast,
    /// A stop that comes while the program is starting is forgotten.
    ForgetStopWhileStarting,
    /// The same number twice.
    NumberTwice,
    /// The end is announced while something still runs.
    EndEarly,
    /// A failed start is not tried again.
    ForgetFailedStart,
    /// A crashed program is started twice.
    SpawnTwice,
    /// A cause that does not exist.
    NoCause,
    /// An exit is reported for the wrong run.
    WrongRun,
    /// A program does not hear that everything is to be stopped.
    DeafToShutdown,
    /// A timer for the space between starts is never armed.
    ForgetBackoffTimer,
    /// A survivor of a crash is taken for dead.
    AdoptNobody,
    /// A process that the disk has not heard of is not looked for.
    OverlookUnwritten,
    /// What has ended during the outage is not noticed.
    MissTheEnd,
    /// What operators wanted is forgotten with a crash.
    ForgetWishes,
    /// Restarts that were answered are answered again after a crash.
    AnswerAgain,
    /// What was being stopped is not, after a crash.
    ForgetDeadline,
    /// After a crash instances are counted from 1.
    CountAnew,
    /// A delay is taken to be over after a crash.
    OpenAfterCrash,
    /// An essential program ends, and that means nothing.
    GoOnWithoutEssential,
    /// A dependency that waits for the end of a run takes a failure for one.
    TakeFailureForCompletion,
    /// A program that has reached its limit is started all the same.
    IgnoreLimit,
    /// A shutdown that was under way is forgotten with a crash.
    ForgetShutdown,
    /// What has to leave its level is let in again at once.
    LetBackIn,
    /// A group takes a failure on its way for its arrival.
    TakeFailureForArrival,
    /// What a group was told is forgotten with a crash.
    ForgetLevel,
    /// What a program has done is never undone.
    NeverUndo,
    /// A program with a stop command gets a signal at once.
    SignalBeforeStopCommand,
    /// A program whose stop command has failed gets no signal.
    IgnoreFailedStopCommand,
    /// A dependency that waits until a program is ready takes its start for that.
    TakeStartForReadiness,
    /// A program that is not ready in time is left alone.
    WaitForReadinessForEver,
    /// A program that was found unhealthy is left alone.
    LeaveTheUnhealthy,
    /// What a program has said in time, but was heard late, is not heard at all.
    TakeLatenessForSilence,
    /// A restart of everything also starts what an operator has stopped.
    RestartTheStopped,
    /// A start of everything also starts what is to start only when it is named.
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
    /// A restart of a group stops those of its programs for good that it does not start by itself.
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

    /// What a command proposes instead.
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

    /// The journal with the defect.
    ///
    /// # Errors
    /// As the journal without.
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

    /// The state that a life begins with, with the defect.
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

    /// What is found of a program when a life begins, with the defect.
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

    /// Whether a machine with the defect takes notice of an input.
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

    /// Whether this is what the defect is about.
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

    /// The wants of a machine with the defect.
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
                    // It believes its clock: what it would wait for once more, it proposes.
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

    /// The mutants of the way in which a program is made to end.
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

    /// Whether something that is wrong with a program leads to this.
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
