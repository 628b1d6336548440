//! A host without processes: it does what a real one does, when the world says, and remembers what really ran.

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    host::{ExecStage, ExitStatus, Fact, HostCommand, Observed, Signal, StartTime},
    ids::{Dense, InstanceId, ProgramId},
    time::{Instant, Millis},
};

use super::{random::Random, world::World};

/// Something that will happen to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The host reports this.
    Report(Observed),
    /// The process of this instance ends.
    End(ProgramId, InstanceId, ExitStatus),
}

/// The processes that there are.
#[derive(Debug)]
pub struct SimHost {
    world: World,
    live: BTreeMap<ProgramId, (InstanceId, i32)>,
    /// How runs ended, as whoever has reaped them knows.
    ended: BTreeMap<(ProgramId, InstanceId), ExitStatus>,
    /// Whether whoever knows that has lived since the last beginning.
    remembers: bool,
    next_pid: i32,
    /// What a real host would have done wrong.
    pub violations: Vec<String>,
}

impl SimHost {
    /// The host of a world.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
            remembers: true,
            next_pid: 2,
            violations: Vec::new(),
        }
    }

    /// The programs that have a process.
    pub fn living(&self) -> BTreeSet<ProgramId> {
        self.live.keys().copied().collect()
    }

    /// Whether this program has a process.
    pub fn lives(&self, program: ProgramId) -> bool {
        self.live.contains_key(&program)
    }

    /// The run of a program that has a process, and its process id.
    pub fn alive(&self, program: ProgramId) -> Option<(InstanceId, i32)> {
        self.live.get(&program).copied()
    }

    /// How a run ended.
    pub fn ended(&self, program: ProgramId, instance: InstanceId) -> Option<ExitStatus> {
        self.ended.get(&(program, instance)).copied()
    }

    /// The last run of a program that has ended.
    pub fn last_ended(&self, program: ProgramId) -> Option<(InstanceId, ExitStatus)> {
        let runs = self.ended.range((program, InstanceId(0))..=(program, InstanceId(u64::MAX)));
        runs.last().map(|((_, instance), status)| (*instance, *status))
    }

    /// Whoever has reaped has died: nobody can tell any more how anything ended.
    pub fn forget(&mut self) {
        self.ended.clear();
        self.remembers = false;
    }

    /// A life of the daemon has begun: from now on somebody remembers.
    pub fn begin(&mut self) {
        self.remembers = true;
    }

    /// Whether what nobody tells of cannot have been.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Carries out a command; says what follows, and when.
    pub fn perform(&mut self, now: Instant, command: HostCommand) -> Vec<(Instant, Fate)> {
        match command {
            HostCommand::Spawn { program, instance } => self.spawn(now, program, instance),
            HostCommand::Undo { program, instance } => self.undo(now, program, instance),
            HostCommand::Stop { program, instance } => self.signal(now, program, instance, Signal::TERM),
            HostCommand::Kill { program, instance } => self.signal(now, program, instance, Signal::KILL),
            HostCommand::Signal { program, instance, signal } => self.signal(now, program, instance, signal),
        }
    }

    /// What the host reports when a fate is met, if anything.
    pub fn meet(&mut self, fate: Fate) -> Option<Observed> {
        match fate {
            Fate::Report(observed) => Some(observed),
            Fate::End(program, instance, status) if self.runs(program, instance) => {
                self.live.remove(&program);
                self.ended.insert((program, instance), status);
                Some(Observed { program, instance, fact: Fact::Exited { status, left_behind: 0 } })
            }
            Fate::End(..) => None,
        }
    }

    fn runs(&self, program: ProgramId, instance: InstanceId) -> bool {
        self.live.get(&program).is_some_and(|(own, _)| *own == instance)
    }

    fn spawn(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, Fate)> {
        let behaviour = self.world.behaviours[program.index()];
        // Each run has luck of its own, whatever else happens before it.
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 40) ^ instance.0);
        let healed = now >= self.world.healed_at;
        let up = now + if healed { Millis(0) } else { behaviour.spawn };
        if !healed && random.percent(behaviour.fork_fails) {
            let fact = Fact::SpawnFailed { stage: ExecStage::Fork, errno: 11 };
            return vec![(up, Fate::Report(Observed { program, instance, fact }))];
        }
        self.next_pid = self.next_pid % 50 + 2;
        if let Some((other, _)) = self.live.insert(program, (instance, self.next_pid)) {
            self.violations.push(format!("I6: {program:?} run {instance} was started beside run {other}"));
        }
        let started = Fate::Report(Observed {
            program,
            instance,
            fact: Fact::Spawned { pid: self.next_pid, birth: StartTime(instance.0) },
        });
        let mut fates = vec![(up, started)];
        let lifetime = behaviour.lifetime.0 / 2 + random.below(behaviour.lifetime.0 / 2 + 1);
        let end = up + Millis(lifetime);
        if end < self.world.healed_at {
            let status =
                random.pick(&[ExitStatus::Code(0), ExitStatus::Code(1), ExitStatus::Signal(9), ExitStatus::Core(11)]);
            fates.push((end, Fate::End(program, instance, status)));
        }
        fates
    }

    /// The stop command of a program as its process; it always ends, at the latest when it is killed.
    fn undo(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, Fate)> {
        if self.live.contains_key(&program) {
            self.violations.push(format!("I6: what run {instance} of {program:?} has done is undone beside a process"));
        }
        self.next_pid = self.next_pid % 50 + 2;
        self.live.insert(program, (instance, self.next_pid));
        let fact = Fact::Spawned { pid: self.next_pid, birth: StartTime(instance.0) };
        let after = self.world.behaviours[program.index()].after_term.unwrap_or(Millis(3_600_000));
        let end = Fate::End(program, instance, ExitStatus::Code(0));
        vec![(now, Fate::Report(Observed { program, instance, fact })), (now + after, end)]
    }

    fn signal(
        &mut self,
        now: Instant,
        program: ProgramId,
        instance: InstanceId,
        signal: Signal,
    ) -> Vec<(Instant, Fate)> {
        if !self.runs(program, instance) {
            return Vec::new();
        }
        let end = |after: Millis, status| vec![(now + after, Fate::End(program, instance, status))];
        match signal {
            Signal::KILL => end(Millis(1), ExitStatus::Signal(9)),
            _ => match self.world.behaviours[program.index()].after_term {
                Some(after) => end(after, ExitStatus::Signal(15)),
                None => Vec::new(),
            },
        }
    }
}
