//! A system drawn from a seed: programs, dependencies, how the programs behave, what operators do and when.

use std::collections::VecDeque;

use gaggled_core::{
    base::{
        ids::{DenseId, GroupId, ProgramId},
        time::{Instant, Millis},
    },
    event::{Event, SystemEvent},
    graph::{
        Backoff, Condition, Dependency, Graph, Group, HealthCheck, HealthPolicy, Leaves, Mode, Policy, RESTART,
        Readiness, START, STOP, StartLimit,
    },
    protocol::{Action, Selection},
};

use serde::{Deserialize, Serialize};

use super::{
    crash,
    random::{Pick, Random},
};

/// How a program behaves once it runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Behaviour {
    /// How long a run lasts at most.
    pub lifetime: Millis,
    /// How long it takes to end after a TERM; `None` ignores it.
    pub after_term: Option<Millis>,
    /// In how many percent of starts the fork fails.
    pub fork_fails: u64,
    /// How long a start takes.
    pub spawn: Millis,
    /// In how many percent of runs its stop command fails.
    pub stop_command_fails: u64,
    /// How long after its start it is ready, or its command leaves a daemon; `None`: never.
    pub ready: Option<Millis>,
    /// In how many percent of health checks it fails.
    pub probe_failure_percent: u64,
    /// For how long it sends watchdog pings.
    pub pings_for: Millis,
    /// In how many percent of runs it leaves processes when it ends well.
    pub leaves: u64,
    /// Whether its watchdog pings arrive only when reports are flushed, as if gaggled stood still until then.
    pub is_heard_late: bool,
}

impl Behaviour {
    /// A program that runs for ever, is ready at once, passes every check and ends when it is asked to.
    pub const WELL: Self = Self {
        lifetime: Millis(4 * 3600 * 1000),
        after_term: Some(Millis(0)),
        fork_fails: 0,
        spawn: Millis(0),
        stop_command_fails: 0,
        ready: Some(Millis(0)),
        probe_failure_percent: 0,
        pings_for: FOR_EVER,
        leaves: 0,
        is_heard_late: false,
    };
}

/// A command of an operator.
#[derive(Clone, Debug)]
pub struct OperatorAction {
    /// When it is given.
    pub at: Instant,
    /// The command.
    pub action: Action,
}

/// A system, and everything that will happen to it.
#[derive(Clone, Debug)]
pub struct World {
    /// The seed that it was drawn from.
    pub seed: u64,
    /// Programs and dependencies.
    pub graph: Graph,
    /// The behaviour of each program.
    pub behaviours: Vec<Behaviour>,
    /// What operators do, in the order of time.
    pub commands: Vec<OperatorAction>,
    /// The deaths of the daemon, in order.
    pub crashes: Vec<crash::CrashPlan>,
    /// When the faults end: later no start, check or run fails, and the daemon does not die.
    pub faults_end_at: Instant,
    /// When the shutdown is requested.
    pub shutdown_at: Instant,
}

/// How long after the end of the faults everything must have settled.
pub const SETTLING: Millis = Millis(240_000);

/// Longer than any world lasts: a year.
const FOR_EVER: Millis = Millis(365 * 24 * 3600 * 1000);

/// No command is given before this time, so that the daemon has started.
const FIRST_COMMAND: Instant = Instant::from_micros(1000);

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let size = if random.percent(70) { 1 + random.below(8) } else { 1 + random.below(40) };
        let size = usize::try_from(size).expect("a small number");
        let essential = random.percent(5);
        let graph = draw_graph(&mut random, size, essential);
        let storm = random.percent(30);
        let behaviours = (0..size).map(|_| draw_behaviour(&mut random, storm)).collect();
        let faults_end_at = Instant::from_micros(1000 * (20_000 + random.below(400_000)));
        // An essential program may end everything at any time.
        let early_shutdown = random.percent(25) || essential;
        let commands = draw_commands(&mut random, &graph, faults_end_at);
        let shutdown_at = if early_shutdown {
            Instant::from_micros(1000 * (1 + random.below(30_000)))
        } else {
            faults_end_at + SETTLING
        };
        let crashes = crash::CrashPlan::draw(&mut random);
        Self { seed, graph, behaviours, commands, crashes, faults_end_at, shutdown_at }
    }

    /// The same world, in which the daemon never dies.
    #[must_use]
    pub fn without_crashes(self) -> Self {
        Self { crashes: Vec::new(), ..self }
    }

    /// The event with which the shutdown begins.
    pub fn shutdown() -> Event {
        Event::System(SystemEvent::ShutdownStarted)
    }

    /// All commands and the shutdown, in the order of time.
    pub fn commands(&self) -> VecDeque<(Instant, Action)> {
        let mut commands: Vec<_> =
            self.commands.iter().map(|give_commands| (give_commands.at, give_commands.action.clone())).collect();
        commands.push((self.shutdown_at, Action::Shutdown { wait: false, timeout_ms: None }));
        commands.sort_by_key(|(at, _)| *at);
        commands.into()
    }
}

fn draw_graph(random: &mut Random, size: usize, essential: bool) -> Graph {
    let mut graph = Graph::new(random.pick(&[Millis(100), Millis(3000), Millis(10_000)]));
    let groups = random.pick(&[0, 0, 1, 2]);
    for i in 0..groups {
        let home = random.pick(&[STOP, START, "1"]);
        let fallback = random.percent(30).then(|| random.pick(&[STOP, "2"]));
        graph.add_group(Group::new(&format!("g{i}"), home, fallback));
    }
    for i in 0..size {
        let group = (groups > 0 && random.percent(70)).then(|| GroupId::at(random.pick(&[0, groups - 1])));
        let mode = if random.percent(if group.is_some() { 60 } else { 85 }) {
            Mode::Respawn
        } else {
            random.pick(if group.is_some() { &[Mode::Once, Mode::Wait, Mode::Wait, Mode::Test] } else { &[Mode::Once] })
        };
        let levels: &[&str] = random.pick(&[&[], &[], &[START], &["1"], &["1", "2"], &[STOP], &[START, RESTART]]);
        let remain_after_exit = mode == Mode::Wait && random.percent(50);
        graph.add_program(Policy {
            name: format!("p{i}").into(),
            mode,
            autostart: random.percent(90),
            group,
            levels: levels.iter().filter(|_| group.is_some()).map(|level| (*level).into()).collect(),
            has_stop_command: remain_after_exit || random.percent(30),
            remain_after_exit,
            leaves: match mode {
                Mode::Wait => random.pick(&[Leaves::Keep, Leaves::Keep, Leaves::Kill, Leaves::Release]),
                Mode::Once => random.pick(&[Leaves::Kill, Leaves::Kill, Leaves::Keep]),
                Mode::Respawn | Mode::Test => Leaves::Kill,
            },
            retry: mode != Mode::Respawn && random.percent(20),
            success_exit_codes: if random.percent(50) { Vec::new() } else { vec![0, 1] },
            killwait: if random.percent(80) { graph.killwait } else { random.pick(&[Millis(50), Millis(2000)]) },
            backoff: if random.percent(80) {
                Backoff::default()
            } else {
                Backoff { initial: Millis(10), max: Millis(1000), reset: Millis(5000) }
            },
            health: draw_care(random, mode),
            start_limit: (random.percent(10) && !mode.is_gate()).then(|| StartLimit {
                burst: random.pick(&[1, 3, 10]),
                interval: random.pick(&[Millis(1000), Millis(60_000)]),
                retry_after: random.pick(&[None, Some(Millis(5000))]),
                reset: random.pick(&[None, Some(Millis(500))]),
            }),
            essential: essential && random.percent(20),
            unconfigured: false,
            export: false,
            external: None,
        });
    }
    for group in graph.groups.ids().collect::<Vec<_>>() {
        let fallback = graph.groups[group].fallback.take();
        graph.groups[group].fallback = fallback.filter(|level| graph.has_level(group, level));
    }
    for of in 1..size {
        for _ in 0..random.below(4) {
            let on = usize::try_from(random.below(of as u64)).expect("a small number");
            let once = graph.programs[ProgramId::at(on)].mode != Mode::Respawn;
            let until = if once && random.percent(50) {
                Condition::Completed
            } else {
                random.pick(&[Condition::Started, Condition::Ready])
            };
            let dependency = Dependency {
                dependent: ProgramId::at(of),
                dependency: ProgramId::at(on),
                condition: until,
                delay: random.pick(&[Millis(0), Millis(1), Millis(50), Millis(700), Millis(5000)]),
                propagate: until != Condition::Completed && random.percent(50),
            };
            let known = graph
                .dependencies
                .values()
                .any(|known| known.dependent == dependency.dependent && known.dependency == dependency.dependency);
            if !known {
                graph.add_dependency(dependency);
            }
        }
    }
    graph
}

/// Draws the readiness, health check, watchdog and timeouts of a program: mostly none.
fn draw_care(random: &mut Random, mode: Mode) -> HealthPolicy {
    if mode.is_gate() || random.percent(60) {
        return HealthPolicy::default();
    }
    HealthPolicy {
        run_timeout: None,
        daemonizes: random.percent(30),
        readiness: random.pick(&[None, Some(Readiness::Notified), Some(Readiness::Probed)]),
        start_timeout: random.pick(&[Millis(500), Millis(5000), Millis(30_000)]),
        check: random.percent(30).then(|| HealthCheck {
            every: random.pick(&[Millis(5000), Millis(20_000)]),
            failures: random.pick(&[1, 3]),
        }),
        watchdog: random.percent(20).then_some(Millis(20_000)),
    }
}

fn draw_behaviour(random: &mut Random, storm: bool) -> Behaviour {
    let lifetime = match random.below(10) {
        0 => random.below(2),
        1 => random.below(100),
        2..=4 => random.below(if storm { 2000 } else { 120_000 }),
        _ => random.below(4 * 3600 * 1000),
    };
    Behaviour {
        lifetime: Millis(lifetime),
        after_term: (!random.percent(20)).then(|| Millis(random.pick(&[0, 1, 20, 150, 2500]))),
        fork_fails: random.pick(&[0, 0, 0, 10, 50]),
        spawn: random.pick(&[Millis(0), Millis(0), Millis(1), Millis(30), Millis(5000)]),
        stop_command_fails: random.pick(&[0, 20, 100]),
        ready: random.pick(&[Some(0), Some(1), Some(700), Some(20_000), None]).map(Millis),
        probe_failure_percent: random.pick(&[0, 0, 20, 70]),
        pings_for: random.pick(&[Millis(0), Millis(40_000), FOR_EVER]),
        leaves: random.pick(&[0, 0, 50, 100]),
        is_heard_late: random.percent(20),
    }
}

fn tell(graph: &Graph, group: GroupId, level: &str, wait: bool) -> Action {
    Action::Tell { group: graph.groups[group].name.to_string(), level: level.to_owned(), wait, timeout_ms: None }
}

fn selection(programs: Vec<String>, wait: bool) -> Selection {
    Selection { programs, wait, timeout_ms: None }
}

/// Draws the selection of a command: mostly one program, now and then a group, a pattern or everything.
fn draw_selection(random: &mut Random, graph: &Graph) -> Selection {
    let name = |random: &mut Random| {
        let id = usize::try_from(random.below(graph.programs.len() as u64)).expect("a small number");
        graph.programs[ProgramId::at(id)].name.to_string()
    };
    let programs = match random.below(20) {
        0 => Vec::new(),
        1 => vec!["p1*".to_owned()],
        2 => vec!["p*".to_owned()],
        3 => vec![name(random), name(random)],
        4 | 5 if !graph.groups.is_empty() => vec!["g0".to_owned()],
        _ => vec![name(random)],
    };
    selection(programs, random.percent(50))
}

fn draw_command(random: &mut Random, graph: &Graph) -> Action {
    if !graph.groups.is_empty() && random.percent(30) {
        let group = GroupId::at(usize::try_from(random.below(graph.groups.len() as u64)).expect("a small number"));
        let level = random.pick(&[STOP, START, "1", "2", RESTART]);
        return tell(graph, group, level, random.percent(50));
    }
    let selection = draw_selection(random, graph);
    match random.pick(&[0, 1, 2]) {
        0 => Action::Down(selection),
        1 => Action::Up(selection),
        _ => Action::Restart(selection),
    }
}

fn draw_commands(random: &mut Random, graph: &Graph, until: Instant) -> Vec<OperatorAction> {
    let count = random.pick(&[0, 3, 20, 60]);
    let mut at = Instant::default();
    let mut commands: Vec<OperatorAction> = (0..count)
        .map(|_| {
            // Half of the commands follow the one before within milliseconds, so that commands overlap.
            at = if random.percent(50) {
                at + Millis(random.below(5))
            } else {
                at + Millis(random.below(until.as_millis() / 20))
            };
            OperatorAction { at: at.clamp(FIRST_COMMAND, until), action: draw_command(random, graph) }
        })
        .collect();
    for group in graph.groups.ids().filter(|group| graph.has_level(*group, START)) {
        commands.push(OperatorAction { at: until, action: tell(graph, group, START, false) });
    }
    // At the end of the faults every program that an operator may have stopped is requested up, so that everything must
    // come up, or come back, by itself.
    let is_down = |give_commands: &OperatorAction| matches!(give_commands.action, Action::Down(_));
    let any_down = commands.iter().any(is_down);
    for policy in graph.programs.values().filter(|policy| any_down || !policy.autostart) {
        commands.push(OperatorAction { at: until, action: Action::Up(selection(vec![policy.name.to_string()], true)) });
    }
    commands
}
