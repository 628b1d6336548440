//! The nodes of a simulated cluster, and what goes wrong between them, drawn from a seed.

use std::sync::Arc;

use gaggled_core::{
    base::{
        ids::{DenseId, ProgramId},
        time::{Instant, Millis},
    },
    cluster::{Assumption, External},
    config::ClusterConfig,
    graph::{Condition, Dependency, Group, HealthPolicy, Mode, Policy, START, STOP, TenancyPolicy},
};

use super::mutants::ClusterMutant;
use crate::sim::{
    random::{Pick, Random},
    world::{Behaviour, SETTLING, World},
};

/// Something that goes wrong between nodes, or that an operator orders.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A node does not reach the store.
    Cut {
        /// Which.
        node: usize,
        /// For how long.
        span: Millis,
    },
    /// No node reaches the store.
    StoreDown {
        /// For how long.
        span: Millis,
    },
    /// The gateway of a node dies.
    GatewayDies {
        /// The node.
        node: usize,
        /// How long until another one begins.
        span: Millis,
    },
    /// The store takes the lease of a node away, although it is renewed.
    Revoke {
        /// The node.
        node: usize,
    },
    /// The store cancels the watch of a gateway, as after a compaction.
    CancelWatch {
        /// The node.
        node: usize,
    },
    /// The next write of a gateway is carried out, and its answer is lost.
    LoseAnswer {
        /// The node.
        node: usize,
    },
    /// The daemon of a node stands still, while its programs and its gateway go on.
    Freeze {
        /// The node.
        node: usize,
        /// For how long.
        span: Millis,
    },
    /// An operator drains a node, or ends that.
    Drain {
        /// The node.
        node: usize,
        /// Whether it is to be drained.
        is_drained: bool,
    },
    /// An operator orders the group that runs on one node at a time to go to a level.
    Tell {
        /// Whether to `stop`, or to the one at which its programs run.
        stop: bool,
    },
    /// An operator orders the group that runs on one node at a time to move.
    Move {
        /// The node to which.
        to: usize,
    },
}

/// The nodes of a cluster, and everything that will happen to them.
#[derive(Clone, Debug)]
pub struct ClusterWorld {
    /// The seed that it was drawn from.
    pub seed: u64,
    /// The settings of the cluster.
    pub settings: ClusterConfig,
    /// The nodes.
    pub nodes: Vec<World>,
    /// What goes wrong, in the order of time.
    pub faults: Vec<(Instant, Fault)>,
    /// When the faults end.
    pub faults_end_at: Instant,
    /// When all nodes are shut down.
    pub shutdown_at: Instant,
}

/// The name of a node.
pub fn name(node: usize) -> Arc<str> {
    format!("n{node}").into()
}

impl ClusterWorld {
    /// The world of a seed.
    pub fn new(seed: u64, mutant: Option<ClusterMutant>) -> Self {
        let mut random = Random::new(seed ^ 0xc105_7e12);
        let count = random.pick(&[2, 2, 3, 4]);
        let mut nodes: Vec<World> = (0..count).map(|node| World::new(seed * 8 + node)).collect();
        let shares = random.percent(60);
        let shortest = if shares { ClusterConfig::SHARED_DEAD_AFTER } else { Millis(4000) };
        let settings = ClusterConfig { dead_after: random.pick(&[shortest, Millis(10_000)]), ..Default::default() };
        let latest = nodes.iter().map(|world| world.faults_end_at).max().unwrap_or_default();
        let faults_end_at = latest.min(Instant::default() + Millis(120_000));
        let shutdown_at = faults_end_at + SETTLING;
        for node in 0..nodes.len() {
            nodes[node].shutdown_at = shutdown_at;
            nodes[node].faults_end_at = faults_end_at;
            nodes[node].commands.iter_mut().for_each(|command| command.at = command.at.min(faults_end_at));
            for policy in nodes[node].graph.programs.ids().collect::<Vec<_>>() {
                // The end of an essential program would end its node.
                nodes[node].graph.programs[policy].essential = false;
                nodes[node].graph.programs[policy].export = true;
            }
            for _ in 0..if node == 0 { 0 } else { random.pick(&[1, 2, 4]) } {
                let other = usize::try_from(random.below(node as u64)).expect("a small number");
                let (before, here) = nodes.split_at_mut(node);
                add_dependency(&mut random, &settings, (&before[other], other), &mut here[0], mutant);
            }
        }
        if shares {
            add_shared_group(&mut random, &settings, &mut nodes, mutant);
            if seed.is_multiple_of(5) {
                let mut random = Random::new(seed ^ 0x0e4d_9e00);
                for node in &mut nodes {
                    depend_on_shared(&mut random, &settings, node);
                }
            }
        }
        let mut faults = draw_faults(&mut random, nodes.len(), faults_end_at);
        if shares && seed.is_multiple_of(2) {
            // Drawn apart, so that the worlds without orders stay what they were.
            faults.extend(draw_orders(&mut Random::new(seed ^ 0x0bde_4500), nodes.len(), faults_end_at));
        }
        if shares && seed.is_multiple_of(3) {
            faults.extend(draw_freezes(&mut Random::new(seed ^ 0x0f4e_e500), nodes.len(), faults_end_at));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self { seed, settings, nodes, faults, faults_end_at, shutdown_at }
    }
}

/// Adds a dependency on a program of an earlier node, so that there is no cycle between nodes.
fn add_dependency(
    random: &mut Random,
    settings: &ClusterConfig,
    (other, number): (&World, usize),
    here: &mut World,
    mutant: Option<ClusterMutant>,
) {
    let draw = |random: &mut Random, world: &World| {
        let local = world.graph.programs.values().filter(|policy| policy.is_here()).count();
        ProgramId::at(usize::try_from(random.below(local as u64)).expect("a small number"))
    };
    let (on, dependent) = (draw(random, other), draw(random, here));
    let on = &other.graph.programs[on];
    let (on_lost, on_blind) = (
        random.pick(&[Assumption::Down, Assumption::Down, Assumption::Keep]),
        random.pick(&[Assumption::Keep, Assumption::Keep, Assumption::Down]),
    );
    let external = External {
        node: name(number),
        of_group: false,
        program: on.name.clone(),
        on_lost,
        on_blind,
        lost_after: if mutant == Some(ClusterMutant::LoseOnReregistration) { Millis(0) } else { settings.lost_after() },
        blind_after: if mutant == Some(ClusterMutant::IgnoreSilence) { Millis::MAX } else { settings.dead_after },
    };
    let known = format!("{}@{}", on.name, name(number));
    let condition = if on.mode == Mode::Respawn {
        random.pick(&[Condition::Ready, Condition::Started])
    } else {
        Condition::Completed
    };
    let dependency = here.graph.names().get(known.as_str()).copied().unwrap_or_else(|| {
        here.behaviours.push(Behaviour::WELL);
        here.graph.add_program(Policy::external(&known, external))
    });
    let is_known = |edge: &Dependency| edge.dependent == dependent && edge.dependency == dependency;
    if !here.graph.dependencies.values().any(is_known) {
        let delay = random.pick(&[Millis(0), Millis(50), Millis(700)]);
        let propagate = condition != Condition::Completed && random.percent(70);
        here.graph.add_dependency(Dependency { dependent, dependency, condition, delay, propagate });
    }
}

/// Lets a program depend on the first one of the group that runs on one node at a time, wherever that is.
fn depend_on_shared(random: &mut Random, settings: &ClusterConfig, node: &mut World) {
    let is_apart = |(_, policy): &(ProgramId, &Policy)| policy.is_here() && !policy.name.starts_with(SHARED);
    let apart: Vec<ProgramId> = node.graph.programs.iter().filter(is_apart).map(|(id, _)| id).collect();
    let Some(dependent) = (!apart.is_empty()).then(|| random.pick(&apart)) else { return };
    let (program, on) = (format!("{SHARED}0"), format!("{SHARED}0@{SHARED}"));
    let external = External {
        node: SHARED.into(),
        of_group: true,
        program: program.as_str().into(),
        on_lost: random.pick(&[Assumption::Down, Assumption::Keep]),
        on_blind: random.pick(&[Assumption::Keep, Assumption::Down]),
        lost_after: settings.lost_after(),
        blind_after: settings.dead_after,
    };
    node.behaviours.push(Behaviour::WELL);
    let dependency = node.graph.add_program(Policy::external(&on, external));
    let (delay, propagate) = (random.pick(&[Millis(0), Millis(700)]), random.percent(70));
    let condition = Condition::Started;
    node.graph.add_dependency(Dependency { dependent, dependency, condition, delay, propagate });
}

/// The name of the group that runs on one node at a time.
pub const SHARED: &str = "shared";

/// How long a daemon may be away on a node that may have to stop a group: what is promised of such groups holds as long as there
/// is a daemon.
const OUTAGE_MAX: Millis = Millis(300);

/// Adds a group that runs on one of all nodes at a time, the same on each.
fn add_shared_group(random: &mut Random, settings: &ClusterConfig, nodes: &mut [World], mutant: Option<ClusterMutant>) {
    let candidates: Vec<Arc<str>> = (0..nodes.len()).map(name).collect();
    let count = random.pick(&[1, 1, 2, 3]);
    let killwait = random.pick(&[Millis(200), Millis(2000), Millis(5000)]);
    let cleans_up = random.percent(50);
    let draws: Vec<(Option<Millis>, Millis)> = (0..=count)
        .map(|_| {
            let after_term = random.pick(&[Some(Millis(0)), Some(Millis(150)), None]);
            let lifetime = random.pick(&[Behaviour::WELL.lifetime, Behaviour::WELL.lifetime, Millis(30_000)]);
            (after_term, lifetime)
        })
        .collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.crashes.iter_mut().for_each(|crash| crash.outage = crash.outage.min(OUTAGE_MAX));
        let graph = &mut node.graph;
        let group = graph.add_group(Group::new(SHARED, START, None));
        let programs = (0..count).map(|i| (i, false)).chain(cleans_up.then_some((count, true)));
        let mut before = None;
        for (i, is_clean_up) in programs {
            let (after_term, lifetime) = draws[i];
            let id = graph.add_program(Policy {
                name: format!("{SHARED}{i}").into(),
                group: Some(group),
                mode: if is_clean_up { Mode::Wait } else { Mode::Respawn },
                levels: if is_clean_up { vec![STOP.into()] } else { vec![START.into()] },
                killwait,
                export: i == 0,
                health: HealthPolicy { run_timeout: is_clean_up.then_some(killwait), ..HealthPolicy::default() },
                ..Policy::new("")
            });
            let lifetime = if is_clean_up { Millis(100) } else { lifetime };
            node.behaviours.push(Behaviour { lifetime, after_term, ..Behaviour::WELL });
            if let Some(dependency) = before.replace(id).filter(|_| !is_clean_up) {
                let (condition, delay) = (Condition::Started, Millis(0));
                graph.add_dependency(Dependency { dependent: id, dependency, condition, delay, propagate: false });
            }
        }
        let stop = if mutant == Some(ClusterMutant::ForgetStopTime) { Millis(0) } else { graph.longest_stop(group) };
        let takeover_after = settings.takeover_after(stop);
        let at_once = mutant == Some(ClusterMutant::TakeAtOnce);
        graph.groups[group].tenancy = Some(TenancyPolicy {
            node: name(number),
            candidates: candidates.clone(),
            takeover_after: if at_once { Millis(0) } else { takeover_after },
        });
    }
}

fn draw_faults(random: &mut Random, nodes: usize, until: Instant) -> Vec<(Instant, Fault)> {
    let count = random.pick(&[0, 3, 10, 25]);
    let mut faults: Vec<(Instant, Fault)> = (0..count)
        .map(|_| {
            let node = usize::try_from(random.below(nodes as u64)).expect("a small number");
            let span = Millis(random.pick(&[50, 500, 3000, 8000, 25_000]));
            let at = Instant::default() + Millis(random.below(until.as_millis().max(1)));
            let fault = match random.below(8) {
                0 | 1 => Fault::Cut { node, span },
                2 => Fault::StoreDown { span },
                3 => Fault::GatewayDies { node, span },
                4 => Fault::Revoke { node },
                5 | 6 => Fault::CancelWatch { node },
                _ => Fault::LoseAnswer { node },
            };
            (at, fault)
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn draw_freezes(random: &mut Random, nodes: usize, until: Instant) -> Vec<(Instant, Fault)> {
    let count = random.pick(&[1, 2, 4]);
    let freeze = |_| {
        let node = usize::try_from(random.below(nodes as u64)).expect("a small number");
        let span = Millis(random.pick(&[500, 3000, 15_000, 60_000]));
        (Instant::default() + Millis(random.below(until.as_millis().max(1))), Fault::Freeze { node, span })
    };
    (0..count).map(freeze).collect()
}

fn draw_orders(random: &mut Random, nodes: usize, until: Instant) -> Vec<(Instant, Fault)> {
    let (count, is_left_drained) = (random.pick(&[1, 2, 5, 10]), random.percent(50));
    let mut orders = Vec::new();
    for _ in 0..count {
        let node = usize::try_from(random.below(nodes as u64)).expect("a small number");
        let at = Instant::default() + Millis(random.below(until.as_millis().max(1)));
        let span = Millis(random.pick(&[50, 500, 3000, 8000, 25_000]));
        let (now, ends) = match random.below(4) {
            0 | 1 => {
                let drain = |is_drained| Fault::Drain { node, is_drained };
                (drain(true), Some(drain(false)))
            }
            2 => (Fault::Tell { stop: true }, random.percent(80).then_some(Fault::Tell { stop: false })),
            _ => (Fault::Move { to: node }, None),
        };
        orders.push((at, now));
        orders.extend(ends.map(|ends| ((at + span).min(until), ends)));
    }
    if is_left_drained && nodes > 1 {
        orders.push((until, Fault::Drain { node: 0, is_drained: true }));
    }
    orders
}
