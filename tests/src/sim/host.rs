//! A host without processes: it does what a real one does, when the world says, and remembers what really ran.

use std::collections::BTreeMap;

use gaggled_core::{
    host::{ExecStage, ExitStatus, Fact, HostCommand, Observed, Signal},
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
    live: BTreeMap<ProgramId, InstanceId>,
    next_pid: i32,
    /// What a real host would have done wrong.
    pub violations: Vec<String>,
}

impl SimHost {
    /// The host of a world.
    pub fn new(world: &World) -> Self {
        Self { world: world.clone(), live: BTreeMap::new(), next_pid: 2, violations: Vec::new() }
    }

    /// How many processes there are.
    pub fn living(&self) -> usize {
        self.live.len()
    }

    /// Whether this program has a process.
    pub fn lives(&self, program: ProgramId) -> bool {
        self.live.contains_key(&program)
    }

    /// Carries out a command; says what follows, and when.
    pub fn perform(&mut self, now: Instant, command: HostCommand) -> Vec<(Instant, Fate)> {
        match command {
            HostCommand::Spawn { program, instance } => self.spawn(now, program, instance),
            HostCommand::Stop { program, instance } => self.signal(now, program, instance, Signal::TERM),
            HostCommand::Kill { program, instance } => self.signal(now, program, instance, Signal::KILL),
            HostCommand::Signal { program, instance, signal } => self.signal(now, program, instance, signal),
        }
    }

    /// What the host reports when a fate is met, if anything.
    pub fn meet(&mut self, fate: Fate) -> Option<Observed> {
        match fate {
            Fate::Report(observed) => Some(observed),
            Fate::End(program, instance, status) if self.live.get(&program) == Some(&instance) => {
                self.live.remove(&program);
                Some(Observed { program, instance, fact: Fact::Exited { status, left_behind: 0 } })
            }
            Fate::End(..) => None,
        }
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
        if let Some(other) = self.live.insert(program, instance) {
            self.violations.push(format!("I6: {program:?} run {instance} was started beside run {other}"));
        }
        self.next_pid = self.next_pid % 50 + 2;
        let started = Fate::Report(Observed { program, instance, fact: Fact::Spawned { pid: self.next_pid } });
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

    fn signal(
        &mut self,
        now: Instant,
        program: ProgramId,
        instance: InstanceId,
        signal: Signal,
    ) -> Vec<(Instant, Fate)> {
        if self.live.get(&program) != Some(&instance) {
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
