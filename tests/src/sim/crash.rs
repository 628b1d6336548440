//! The death of the daemon at any moment, and how the next daemon recovers.
//!
//! Everything in flight is lost with the daemon: messages, timers, commands to the host, and the last events, which
//! were numbered and had effects but never reached the disk. The processes survive. The next daemon begins with the
//! journal on the disk, finds out which processes run, and continues.

use gaggled_core::{
    base::{
        ids::{EpochId, InstanceId, ProgramId},
        time::{Instant, Millis, WallTime},
    },
    event::Envelope,
    host::Recovered,
    journal::{
        Journal,
        recovery::{EpochStart, PreviousEpoch},
    },
    process::{ExitStatus, StartTime},
    state::{Phase, State},
};

use serde::{Deserialize, Serialize};

use super::{
    host::SimHost,
    mutants::Mutant,
    random::{Pick, Random},
    world::World,
};

/// One run of the daemon, as the disk has it.
#[derive(Clone, Debug)]
pub struct SimulatedEpoch {
    /// The state before its first event.
    pub start: State,
    /// Its events.
    pub envelopes: Vec<Envelope>,
}

impl SimulatedEpoch {
    /// The first run of the daemon in a world, its journal, and its first events.
    pub fn first(world: &World, epoch: EpochId) -> (Self, Journal, Vec<Envelope>) {
        let opening = EpochStart::new(None, &world.graph, epoch, Instant::default(), WallTime(0));
        let start = opening.state.clone();
        let (journal, envelopes) = opening.commit("simulated", Vec::new(), Vec::new());
        (Self { start, envelopes: envelopes.clone() }, journal, envelopes)
    }

    /// The state at its end.
    pub fn end(&self) -> State {
        let mut state = self.start.clone();
        self.envelopes.iter().for_each(|envelope| state.apply(envelope));
        state
    }
}

/// When the daemon dies, and how.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CrashPlan {
    /// After how many events of this daemon.
    pub after: usize,
    /// And then after how many steps, so that it dies before all consequences of an event have happened.
    pub steps: u64,
    /// How many of the last events never reach the disk.
    pub lost: usize,
    /// How long it takes until the next daemon begins.
    pub outage: Millis,
    /// Whether the subreaper survives, so that every status is known.
    pub subreaper: bool,
}

impl CrashPlan {
    /// Draws the deaths of the daemon in a world.
    pub fn draw(random: &mut Random) -> Vec<Self> {
        let count = random.pick(&[0, 1, 1, 2, 5]);
        (0..count)
            .map(|_| Self {
                after: usize::try_from(random.below(60)).expect("a small number"),
                steps: random.below(12),
                lost: usize::try_from(random.pick(&[0, 0, 1, 3])).expect("a small number"),
                outage: Millis(random.pick(&[0, 20, 300, 5000])),
                subreaper: random.percent(70),
            })
            .collect()
    }
}

/// The run of the daemon after one that has ended with these events on the disk.
pub fn next(
    before: &SimulatedEpoch,
    world: &World,
    host: &SimHost,
    now: Instant,
    mutant: Option<Mutant>,
) -> (SimulatedEpoch, Journal, Vec<Envelope>) {
    let last = before.end();
    let wall = WallTime(i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
    let epoch = EpochId(last.epoch.0 + 1);
    let carried = PreviousEpoch { state: &last, same_boot: true, is_copy: false, resumes: true };
    let mut opening = EpochStart::new(Some(carried), &world.graph, epoch, now, wall);
    if let Some(mutant) = mutant {
        mutant.carries(&mut opening.state);
    }
    let start = opening.state.clone();
    let ids = world.graph.programs.ids();
    let found = ids.flat_map(|id| look(host, &start, id).into_iter().map(move |found| (id, found)));
    let found =
        found.filter_map(|(id, found)| mutant.map_or(Some((id, found)), |mutant| mutant.finds(id, found, &start)));
    let (journal, envelopes) = opening.commit("simulated", found.collect(), Vec::new());
    (SimulatedEpoch { start, envelopes: envelopes.clone() }, journal, envelopes)
}

/// What a real host would find of a program: of the run in the journal, and of a later one.
fn look(host: &SimHost, state: &State, id: ProgramId) -> Vec<Recovered> {
    let known = &state.programs[id];
    let alive =
        host.alive(id).map(|(instance, pid)| Recovered::Running { instance, pid, start_time: StartTime(instance.0) });
    let told = |run: InstanceId| host.ended(id, run);
    let mut found = Vec::new();
    if known.is_running() && alive.is_none_or(|alive| alive.instance() != known.instance) {
        let instance = known.instance;
        found.push(match told(instance) {
            Some(status) => Recovered::Exited { instance, status, orphans: host.leaves(id, instance, status) },
            None if known.phase == Phase::Starting && host.remembers() => Recovered::NeverStarted { instance },
            None => Recovered::Exited { instance, status: ExitStatus::Unknown, orphans: 0 },
        });
    }
    found.extend(alive.filter(|alive| alive.instance() >= known.instance));
    if alive.is_none()
        && let Some((instance, status)) = host.last_ended(id).filter(|(instance, _)| *instance > known.instance)
    {
        found.push(Recovered::Exited { instance, status, orphans: host.leaves(id, instance, status) });
    }
    found
}
