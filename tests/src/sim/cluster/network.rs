//! The nodes, their gateways, and the messages between gateways and the store.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use gaggled_core::{
    base::{
        ids::{EpochId, ProgramId},
        time::{Instant, Millis, WallTime},
    },
    cluster::{
        Observation, PublishedState, Sight,
        claims::{ClaimWrite, Claims, ClaimsInStore},
        exports::{Batch, Exports},
        keeper::KeptGroups,
        sights::Sights,
    },
    graph::{START, STOP},
    protocol::Permits,
    state::State,
};

use super::{
    invariants::{self, Record},
    mutants::ClusterMutant,
    store::{Change, Store},
    world::{ClusterWorld, Fault, SHARED, name},
};
use crate::sim::{
    random::Random,
    scheduler::{Policy, Run, Simulation},
};

/// Something that will happen between nodes.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Fault(usize),
    Heals,
    GatewayBegins(usize),
    /// A gateway may have something to write.
    Writes(usize, u64),
    WriteArrives(usize, u64, Arc<str>, Batch, Vec<ClaimWrite>),
    WriteAnswered(usize, u64, u64, bool),
    /// A gateway renews its lease.
    Renews(usize, u64),
    Reads(usize, u64),
    /// A watch shows a change.
    Shows(usize, u64, Change),
    /// A lease may be over.
    LeaseEnds,
    /// A daemon gets reports of its gateway, made for this epoch.
    Reports(usize, EpochId, Vec<Observation>),
    /// A gateway's question for all claims arrives, which it sent at this time.
    ClaimsAsked(usize, u64, Instant),
    /// The answer to that comes.
    ClaimsAnswered(usize, u64, Instant, Option<ClaimsInStore>),
    /// A claim that a gateway writes arrives.
    ClaimWritten(usize, u64, ClaimWrite),
    /// A watch shows that claims or sessions have changed.
    ClaimsChanged(usize, u64),
    /// A daemon that stood still goes on.
    Thaws(usize),
    /// A heartbeat shows these permits.
    Beats(usize, Permits),
    /// The keeper of a node may have something to kill.
    KeeperWakes(usize),
    /// A group that a node was permitted to run until this moment must have stopped there.
    PermitOver(usize, Instant),
    /// Everything should have settled.
    Settled,
}

/// The cluster gateway of a node.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Default)]
pub(super) struct Gateway {
    pub(super) exports: Exports,
    pub(super) sights: Sights,
    pub(super) claims: Claims,
    /// Whether it has asked for the claims, and whether it has to ask again after that.
    pub(super) reads_claims: bool,
    pub(super) reads_again: bool,
    /// Whether it has seen a node that holds the group.
    pub(super) knows_holder: bool,
    pub(super) lease: Option<Arc<str>>,
    /// The number of the watch, if one is open.
    pub(super) watch: Option<u64>,
    /// When the last message of the watch arrives: they keep their order.
    pub(super) shown_at: Instant,
    pub(super) loses_answer: bool,
}

pub(super) struct Node {
    pub(super) simulation: Simulation,
    pub(super) gateway: Option<Gateway>,
    /// Counts gateways and watches: what was sent to an earlier one is lost.
    pub(super) life: u64,
    pub(super) epoch: EpochId,
    /// How many events of the epoch the gateway has seen.
    seen: usize,
    cut_until: Instant,
    reported_at: Instant,
    /// Until when its daemon stands still.
    pub(super) frozen_until: Option<Instant>,
    pub(super) has_been_frozen: bool,
    /// The last permit that any daemon of the node was given.
    pub(super) permitted_until: Instant,
    pub(super) keeper: KeptGroups,
}

/// A cluster that runs.
pub struct Network {
    pub(super) world: ClusterWorld,
    pub(super) mutant: Option<ClusterMutant>,
    pub(super) random: Random,
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) store: Store,
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    happenings: Vec<Happening>,
    pub(super) record: Record,
    pub(super) last_sights: BTreeMap<(usize, String), Sight>,
}

impl Network {
    /// A cluster of this world, with or without a defect.
    pub fn new(world: ClusterWorld, mutant: Option<ClusterMutant>) -> Self {
        let node = |(number, node): (usize, &crate::sim::world::World)| {
            let mut simulation = Simulation::new(node, Policy::of(world.seed + number as u64), None);
            simulation.start();
            Node {
                epoch: simulation.state().epoch,
                simulation,
                gateway: None,
                life: 0,
                seen: 0,
                cut_until: Instant::default(),
                reported_at: Instant::default(),
                frozen_until: None,
                has_been_frozen: false,
                permitted_until: Instant::default(),
                keeper: KeptGroups::default(),
            }
        };
        let nodes: Vec<Node> = world.nodes.iter().enumerate().map(node).collect();
        let mut network = Self {
            random: Random::new(world.seed ^ 0x0e7c_d000),
            mutant,
            now: Instant::default(),
            record: Record::new(nodes.len()),
            nodes,
            store: Store::default(),
            queue: BinaryHeap::new(),
            happenings: Vec::new(),
            last_sights: BTreeMap::new(),
            world,
        };
        for node in 0..network.nodes.len() {
            network.store.absent_since.insert(name(node), Instant::default());
            network.expect(Millis(1), Happening::GatewayBegins(node));
        }
        for fault in 0..network.world.faults.len() {
            network.expect_at(network.world.faults[fault].0, Happening::Fault(fault));
        }
        network.expect_at(network.world.faults_end_at, Happening::Heals);
        network.expect_at(network.world.shutdown_at - Millis(1000), Happening::Settled);
        network
    }

    /// Runs until all nodes have shut down, and returns what happened on each, and what is wrong.
    pub fn run(mut self) -> (Vec<Run>, Vec<String>) {
        loop {
            let running = |node: &&Node| !node.simulation.is_over();
            if self.nodes.iter().all(|node| !running(&node)) {
                break;
            }
            let moment = |(number, node): (usize, &Node)| {
                let goes_on = running(&node) && node.frozen_until.is_none();
                node.simulation.next_moment().filter(|_| goes_on).map(|at| (at, number))
            };
            let node = self.nodes.iter().enumerate().filter_map(moment).min();
            let happening = self.queue.peek().map(|Reverse((at, _, _))| *at);
            match (node, happening) {
                (Some((at, number)), happening) if happening.is_none_or(|next| at <= next) => {
                    self.now = self.now.max(at);
                    self.nodes[number].simulation.advance();
                    self.check_claims();
                    self.follow(number);
                }
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    let Some(Reverse((_, _, index))) = self.queue.pop() else { break };
                    self.happens(self.happenings[index].clone());
                }
                (_, None) => break,
            }
        }
        let runs: Vec<Run> = self.nodes.into_iter().map(|node| node.simulation.finish()).collect();
        let found = invariants::check(&self.world, &runs, &self.store, self.record);
        (runs, found)
    }

    pub(super) fn expect(&mut self, span: Millis, happening: Happening) {
        self.expect_at(self.now + span, happening);
    }

    pub(super) fn expect_at(&mut self, at: Instant, happening: Happening) {
        let index = self.happenings.len();
        self.queue.push(Reverse((at, index as u64, index)));
        self.happenings.push(happening);
    }

    /// A short time on a network.
    pub(super) fn delay(&mut self) -> Millis {
        Millis(self.random.below(6))
    }

    pub(super) fn is_reachable(&self, node: usize) -> bool {
        self.nodes[node].cut_until <= self.now
    }

    /// The gateway hears of the events of its daemon.
    fn follow(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let is_new = node.simulation.state().epoch != node.epoch;
        if is_new {
            node.epoch = node.simulation.state().epoch;
            node.seen = 0;
        }
        let seen = node.seen;
        let envelopes = node.simulation.envelopes();
        if !is_new && envelopes.len() == seen {
            return;
        }
        let fresh: Vec<_> = envelopes.get(seen..).unwrap_or_default().to_vec();
        node.seen = envelopes.len();
        self.record.committed(number, &fresh);
        self.check_released(number, &fresh);
        if is_new {
            self.keep(number);
            self.synchronise(number);
            return;
        }
        self.keep(number);
        self.wish(number);
        let state = self.nodes[number].simulation.state().clone();
        let subjects: BTreeSet<ProgramId> =
            fresh.iter().filter_map(|envelope| state.graph.subject(&envelope.event)).collect();
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        for id in subjects.into_iter().filter(|id| state.graph.programs[*id].export) {
            let (name, published) = (state.graph.programs[id].name.clone(), published(&state, id, number));
            gateway.sights.own(name.clone(), published.clone());
            gateway.exports.change(name, published);
        }
        self.report(number);
        self.write_soon(number);
    }

    /// The gateway takes the whole state of its daemon.
    pub(super) fn synchronise(&mut self, number: usize) {
        let state = self.nodes[number].simulation.state().clone();
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        let exported = state.graph.programs.iter().filter(|(_, policy)| policy.export);
        gateway.exports.replace(exported.map(|(id, policy)| (policy.name.clone(), published(&state, id, number))));
        let exported = state.graph.programs.iter().filter(|(_, policy)| policy.export);
        gateway.sights.set_own(exported.map(|(id, policy)| (policy.name.clone(), published(&state, id, number))));
        let external =
            |policy: &gaggled_core::graph::Policy| Some((policy.name.clone(), policy.external.as_ref()?.of_group));
        gateway.sights.set_externals(state.graph.programs.values().filter_map(external));
        self.write_soon(number);
        self.report(number);
        self.wish(number);
        self.read_claims(number);
    }

    pub(super) fn write_soon(&mut self, number: usize) {
        let (span, life) = (self.delay(), self.nodes[number].life);
        self.expect(span, Happening::Writes(number, life));
    }

    /// Sends what has changed to the daemon.
    pub(super) fn report(&mut self, number: usize) {
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        let news = gateway.sights.take_news();
        if !news.is_empty() {
            self.send(number, news);
        }
    }

    pub(super) fn send(&mut self, number: usize, observations: Vec<Observation>) {
        let span = self.delay();
        let node = &mut self.nodes[number];
        node.reported_at = node.reported_at.max(self.now + span);
        let (at, epoch) = (node.reported_at, node.epoch);
        self.expect_at(at, Happening::Reports(number, epoch, observations));
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Fault(index) => self.fault(self.world.faults[index].1),
            Happening::Heals => self.nodes.iter_mut().for_each(|node| node.cut_until = node.cut_until.min(self.now)),
            Happening::GatewayBegins(node) => self.begin_gateway(node),
            Happening::Writes(node, life) if self.is_life(node, life) => self.writes(node),
            Happening::WriteArrives(node, life, lease, batch, renewals) => {
                self.write_arrives(node, life, &lease, batch, &renewals);
            }
            Happening::WriteAnswered(node, life, batch, done) if self.is_life(node, life) => {
                if let Some(gateway) = &mut self.nodes[node].gateway {
                    gateway.exports.written(batch, done);
                }
                self.writes(node);
            }
            Happening::Renews(node, life) if self.is_life(node, life) => self.renews(node),
            Happening::Reads(node, life) if self.is_life(node, life) => self.reads(node),
            Happening::Shows(node, watch, change) => self.shows(node, watch, change),
            Happening::LeaseEnds => {
                let changes = self.store.end_leases(self.now, None);
                self.show_all(&changes);
            }
            Happening::Reports(node, epoch, observations) => self.reports(node, epoch, observations),
            Happening::ClaimsAsked(node, life, sent) if self.is_life(node, life) => self.claims_asked(node, life, sent),
            Happening::ClaimsAnswered(node, life, sent, store) if self.is_life(node, life) => {
                self.claims_answered(node, sent, store);
            }
            Happening::ClaimWritten(node, life, write) if self.is_life(node, life) => self.claim_written(node, &write),
            Happening::ClaimsChanged(node, life) if self.is_life(node, life) => self.read_claims(node),
            Happening::Thaws(node) => self.thaws(node),
            Happening::Beats(node, permits) => self.beats(node, permits),
            Happening::KeeperWakes(node) => self.keeper_wakes(node),
            Happening::PermitOver(node, until) => self.check_permit(node, until),
            Happening::Settled => {
                self.settled_claims();
                let states: Vec<State> = self.nodes.iter().map(|node| node.simulation.state().clone()).collect();
                self.record.settled(&self.world, &states, self.now);
            }
            Happening::Writes(..)
            | Happening::WriteAnswered(..)
            | Happening::Renews(..)
            | Happening::Reads(..)
            | Happening::ClaimsAsked(..)
            | Happening::ClaimsAnswered(..)
            | Happening::ClaimWritten(..)
            | Happening::ClaimsChanged(..) => {}
        }
    }

    fn is_life(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].gateway.is_some()
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Cut { node, span } => self.cut(node, span),
            Fault::StoreDown { span } => (0..self.nodes.len()).for_each(|node| self.cut(node, span)),
            Fault::GatewayDies { node, span } => {
                // Another one begins when the one that is dead already comes back.
                if self.nodes[node].gateway.take().is_some() {
                    self.record.cut(node, self.now, self.now + span);
                    self.expect(span, Happening::GatewayBegins(node));
                }
            }
            Fault::Revoke { node } => {
                let lease = self.nodes[node].gateway.as_ref().and_then(|gateway| gateway.lease.clone());
                let changes = self.store.end_leases(self.now, lease.as_deref());
                self.show_all(&changes);
            }
            Fault::CancelWatch { node } => self.break_watch(node),
            Fault::Freeze { node, span } => self.freeze(node, span),
            Fault::Drain { node, is_drained } => {
                self.store.drain(name(node), is_drained);
                self.claims_changed();
            }
            Fault::Tell { stop } => {
                self.store.order_level(SHARED, if stop { STOP } else { START });
                self.claims_changed();
            }
            Fault::Move { to } => {
                self.store.order_move(SHARED, name(to));
                self.record.moves += 1;
                self.claims_changed();
            }
            Fault::LoseAnswer { node } => {
                if let Some(gateway) = &mut self.nodes[node].gateway {
                    gateway.loses_answer = true;
                }
            }
        }
    }

    fn cut(&mut self, node: usize, span: Millis) {
        let until = (self.now + span).min(self.world.faults_end_at);
        self.record.cut(node, self.now, until);
        self.nodes[node].cut_until = self.nodes[node].cut_until.max(until);
    }
}

fn published(state: &State, id: ProgramId, number: usize) -> PublishedState {
    PublishedState::new(state, id, &format!("journal of {number}"), WallTime(0), &[])
}
