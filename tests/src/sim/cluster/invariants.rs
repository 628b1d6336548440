//! The invariants of a simulated cluster. Each node also keeps all those of a single machine
//! ([`crate::sim::invariants`]), in which a program of another node counts like any other: I7 for delays, and I9
//! and I10 for restarts.
//!
//! | | |
//! |---|---|
//! | C1 | a group that runs on one node at a time runs on one node at a time |
//! | C2 | each of its holders has a larger token than those before |
//! | C3 | nothing of it lives when its longest stop after the permit of its node is over, and the margin |
//! | C4 | nothing of it lives when it is released |
//! | C9 | a node writes its states at most 25 times in 10 s |
//! | C5 | no fall of a program of another node is seen twice |
//! | C6 | when everything has settled, every program of another node is known as it is |
//! | C8 | when everything has settled, one node holds such a group |
//! | C11 | what is seen of another node names an event that its daemon has committed |
//! | C13 | a node is lost only after it had no session for its time |
//! | C14 | a node that is cut off, or whose gateway is dead, notices it |
//! | C16 | a node that is not cut off keeps the group, also when its session is taken away by mistake |
//! | C17 | a group moves at most once for each order to move |
//! | C18 | when everything has settled, no node that is drained holds such a group |
//! | C19 | when everything has settled, every order to go to a level was carried out |
//! | C15 | a node that is not cut off notices that another one has no session |

use std::collections::BTreeSet;

use gaggled_core::{
    base::{
        ids::{EpochId, Seq},
        time::{Instant, Millis},
    },
    cluster::{PublishedState, RemotePhase, RemoteSource, UnseenReason},
    event::{Envelope, Event, GroupEvent, LeaveReason, RemoteEvent},
    state::{Phase, State, Tenancy},
};

use super::{
    claims::Tokens,
    store::Store,
    world::{ClusterWorld, name},
};
use crate::sim::{invariants, scheduler::Run};

/// What has happened, as an onlooker sees it who is nowhere cut off.
#[derive(Debug)]
pub struct Record {
    /// All events that were committed on each node, also those that were lost with a daemon.
    committed: Vec<BTreeSet<(EpochId, Seq)>>,
    /// Until when each node was cut off, and since when.
    cuts: Vec<Vec<(Instant, Instant)>>,
    /// Until when the daemon of each node stood still, and since when.
    pub frozen: Vec<Vec<(Instant, Instant)>>,
    /// The sets of nodes on which a group ran at once that runs on one node at a time.
    pub overlaps: BTreeSet<Vec<usize>>,
    tokens: Tokens,
    /// How often an operator has ordered the group to move.
    pub moves: usize,
    /// The tokens of the claims that were left because of that.
    moved: BTreeSet<u64>,
    /// When each gateway has asked the store something that was answered late or never.
    pub late_answers: Vec<Vec<Instant>>,
    /// When each node has written states or its session.
    pub writes: Vec<Vec<Instant>>,
    /// What is wrong.
    pub found: Vec<String>,
}

impl Record {
    /// The record of so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self {
            committed: vec![BTreeSet::new(); nodes],
            cuts: vec![Vec::new(); nodes],
            frozen: vec![Vec::new(); nodes],
            overlaps: BTreeSet::new(),
            tokens: Tokens::default(),
            moves: 0,
            moved: BTreeSet::new(),
            late_answers: vec![Vec::new(); nodes],
            writes: vec![Vec::new(); nodes],
            found: Vec::new(),
        }
    }

    /// A daemon has committed events.
    pub fn committed(&mut self, node: usize, envelopes: &[Envelope]) {
        self.committed[node].extend(envelopes.iter().map(|envelope| (envelope.epoch, envelope.seq)));
        for envelope in envelopes {
            match &envelope.event {
                Event::Group(_, GroupEvent::Held { token, .. }) => {
                    self.found.extend(self.tokens.held(&name(node), *token));
                }
                Event::Group(_, GroupEvent::Leaving { reason: LeaveReason::Moved { .. } }) => {
                    self.moved.extend(self.tokens.last());
                }
                _ => {}
            }
        }
    }

    /// A node is cut off.
    pub fn cut(&mut self, node: usize, since: Instant, until: Instant) {
        self.cuts[node].push((since, until));
    }

    /// C6, with the states of all nodes just before the end.
    pub fn settled(&mut self, world: &ClusterWorld, states: &[State], now: Instant) {
        for (number, state) in states.iter().enumerate() {
            for (id, policy) in state.graph.programs.iter() {
                let Some(external) = &policy.external else { continue };
                let holds = |state: &State| {
                    let group = state.graph.group(&external.node).map(|group| &state.groups[group]);
                    group.is_some_and(|group| matches!(group.tenancy, Some(Tenancy::Held { .. })))
                };
                let is_meant = |other: &usize| {
                    if external.of_group { holds(&states[*other]) } else { name(*other) == external.node }
                };
                let Some(other) = (0..states.len()).find(is_meant) else { continue };
                let truth = &states[other];
                let Some(of) = truth.graph.names().get(&external.program).copied() else { continue };
                let known = &state.programs[id];
                let real = PublishedState::new(truth, of, "", gaggled_core::base::time::WallTime(0), &[]);
                // What has changed just now may not have arrived.
                if truth.programs[of].phase_since + Millis(5000) > now || truth.shutdown.is_some() {
                    continue;
                }
                let Some(remote) = known.remote.as_deref() else { continue };
                let is_up = known.phase == Phase::Up;
                let is_same = is_up == real.phase.is_up()
                    && (!is_up || remote.instance == real.instance && remote.source.falls == real.source.falls)
                    && known.is_ready() == (real.phase == RemotePhase::Ready)
                    && known.is_completed() == (real.phase == RemotePhase::Completed)
                    && remote.unseen.is_none();
                if !is_same {
                    self.found.push(format!(
                        "C6: node {number} knows {} as {:?} {remote:?}, and it is {real:?} ({} nodes)",
                        policy.name,
                        known.phase,
                        world.nodes.len()
                    ));
                }
            }
        }
    }

    /// C11.
    fn names_events(&mut self, number: usize, other: usize, envelope: &Envelope, source: &RemoteSource) {
        // The last event of a program may be one of an earlier epoch.
        let mut events = self.committed[other].iter();
        let is_known = source.seq == Seq(0) || events.any(|(epoch, seq)| *seq == source.seq && *epoch <= source.epoch);
        if !is_known {
            self.found.push(format!(
                "C11: event {} of node {number} names {source:?}, which is no event of node {other}",
                envelope.seq
            ));
        }
    }
}

/// How often a node may write in 10 s.
const WRITES_MAX: usize = 25;

/// All violations of a run.
pub fn check(world: &ClusterWorld, runs: &[Run], store: &Store, mut record: Record) -> Vec<String> {
    if record.moved.len() > record.moves {
        record.found.push(format!(
            "C17: claims {:?} were left to move, and that was ordered {} times",
            record.moved, record.moves
        ));
    }
    for (number, writes) in record.writes.iter().enumerate() {
        // 12 in the first 5 s of a storm, one a second after that, and those of sessions that were lost meanwhile.
        let is_storm = |window: &[Instant]| window[0] + Millis(10_000) > window[WRITES_MAX];
        if let Some(window) = writes.windows(WRITES_MAX + 1).find(|window| is_storm(window)) {
            let at = window[0].as_millis();
            record.found.push(format!("C9: node {number} writes more than {WRITES_MAX} times in 10 s from {at} ms on"));
        }
    }
    for (number, (node, run)) in world.nodes.iter().zip(runs).enumerate() {
        // A daemon that stands still kills nothing in time, and notices nothing in time.
        let stood_still = !record.frozen[number].is_empty();
        let is_timing = |found: &String| ["I11", "I31"].iter().any(|id| found.starts_with(id));
        let found = invariants::check(node, run).into_iter().filter(|found| !stood_still || !is_timing(found));
        record.found.extend(found.map(|found| format!("node {number}: {found}")));
    }
    for (number, run) in runs.iter().enumerate() {
        for (id, policy) in world.nodes[number].graph.programs.iter() {
            let Some(external) = &policy.external else { continue };
            let Some(other) = (0..runs.len()).find(|other| name(*other) == external.node) else { continue };
            let events = run.envelopes.iter().filter_map(|envelope| match &envelope.event {
                Event::Remote(of, event) if *of == id => Some((envelope, event)),
                _ => None,
            });
            let (mut downs, mut is_up) = (0, false);
            for (envelope, event) in events {
                match event {
                    RemoteEvent::Up { source, .. } | RemoteEvent::Ready { source } => {
                        record.names_events(number, other, envelope, source);
                    }
                    RemoteEvent::Down { source, missed, .. } => {
                        // One that has completed may only be no longer complete.
                        downs += if is_up { 1 + missed } else { 0 };
                        record.names_events(number, other, envelope, source);
                    }
                    RemoteEvent::Completed { source, .. } => record.names_events(number, other, envelope, source),
                    RemoteEvent::Unseen { reason: UnseenReason::Lost, .. } => {
                        lost_in_time(&mut record, world, store, number, &external.node, envelope);
                    }
                    RemoteEvent::Unseen { reason: UnseenReason::Blind, .. } | RemoteEvent::Seen => {}
                }
                is_up = match event {
                    RemoteEvent::Up { .. } | RemoteEvent::Ready { .. } => true,
                    RemoteEvent::Down { .. }
                    | RemoteEvent::Completed { .. }
                    | RemoteEvent::Unseen { assumed_down: true, .. } => false,
                    RemoteEvent::Unseen { .. } | RemoteEvent::Seen => is_up,
                };
            }
            let of = runs[other].state.graph.names()[&external.program];
            let lost: usize = world.nodes[other].crashes.iter().map(|crash| crash.lost).sum();
            let falls = runs[other].state.programs[of].falls + lost as u64;
            if downs > falls {
                record.found.push(format!("C5: node {number} has seen {} fall {downs} times of {falls}", policy.name));
            }
        }
        leaves_with_reason(&mut record, world, number, run);
        notices_cuts(&mut record, world, number, run);
        notices_losses(&mut record, world, store, number, run);
    }
    record.found
}

/// C13.
fn lost_in_time(
    record: &mut Record,
    world: &ClusterWorld,
    store: &Store,
    number: usize,
    node: &str,
    envelope: &Envelope,
) {
    let slack = Millis(200);
    let at = envelope.monotonic;
    let since = store.absent_since.get(node).map(|since| (*since, at));
    let absences = store.absences.get(node).into_iter().flatten().copied().chain(since);
    let was_away = |(since, until): (Instant, Instant)| {
        since + world.settings.lost_after() <= until + slack && since < at && until + Millis(3000) > at
    };
    // One that stood still hears late of what has long passed.
    let stood_still = record.frozen[number].iter().any(|(_, until)| *until <= at && *until + Millis(3000) > at);
    if !stood_still && !absences.into_iter().any(was_away) {
        record.found.push(format!("C13: node {number} takes {node} for lost at {} ms, without reason", at.as_millis()));
    }
}

/// C16.
fn leaves_with_reason(record: &mut Record, world: &ClusterWorld, number: usize, run: &Run) {
    let daemons: Vec<Instant> = run.lives.iter().filter_map(|life| Some(life.envelopes.first()?.monotonic)).collect();
    for envelope in &run.envelopes {
        let Event::Group(_, GroupEvent::Leaving { reason: LeaveReason::PermitEnded | LeaveReason::ClaimLost }) =
            &envelope.event
        else {
            continue;
        };
        let at = envelope.monotonic;
        // Two questions without an answer, and a member that is looked for.
        let since = at - Millis(world.settings.permit().0 + 3000);
        let is_near = |moment: &Instant| (since..=at).contains(moment);
        let is_cut = record.cuts[number]
            .iter()
            .chain(&record.frozen[number])
            .any(|(begun, ended)| *begun <= at && *ended >= since);
        if !is_cut && !record.late_answers[number].iter().chain(&daemons).any(is_near) {
            let at = at.as_millis();
            record.found.push(format!("C16: node {number} leaves the group at {at} ms, and was never cut off"));
        }
    }
}

/// C14.
fn notices_cuts(record: &mut Record, world: &ClusterWorld, number: usize, run: &Run) {
    let dead_after = world.settings.dead_after;
    for (since, until) in record.cuts[number].clone() {
        let overlaps = |(begun, ended): &(Instant, Instant)| *begun < until && *ended > since;
        if until >= since + dead_after + Millis(3000) && !record.frozen[number].iter().any(overlaps) {
            for external in known(run, (since, until), |_| true) {
                let at = (since.as_millis(), until.as_millis());
                record
                    .found
                    .push(format!("C14: node {number} was cut off in {at:?} ms, and {external} was not unseen"));
            }
        }
    }
}

/// C15.
fn notices_losses(record: &mut Record, world: &ClusterWorld, store: &Store, number: usize, run: &Run) {
    let renewal = world.settings.renewal().0;
    for (node, absences) in &store.absences {
        for (since, until) in absences.iter().copied() {
            let is_long = until >= since + world.settings.lost_after() + Millis(2 * renewal + 2000);
            let near = |(begun, ended): &&(Instant, Instant)| *begun < until && *ended + Millis(renewal + 1000) > since;
            // A cut may begin while this node waits for what it has seen to last.
            if !is_long || record.cuts[number].iter().chain(&record.frozen[number]).any(|cut| near(&cut)) {
                continue;
            }
            for external in known(run, (since, until), |of| of == &**node) {
                let at = (since.as_millis(), until.as_millis());
                record
                    .found
                    .push(format!("C15: {node} had no session in {at:?} ms, and node {number} knows {external}"));
            }
        }
    }
}

/// The programs of these other nodes that are not unseen at the end of a span in which one daemon ran.
fn known(run: &Run, (since, until): (Instant, Instant), is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for life in &run.lives {
        let begun = life.envelopes.first().map_or(Instant::default(), |envelope| envelope.monotonic);
        let ended = life.envelopes.last().map_or(Instant::default(), |envelope| envelope.monotonic);
        // At first nothing is known that could be missed.
        if begun + Millis(3000) > since || ended < until {
            continue;
        }
        let mut state = life.start.clone();
        let before_end = |envelope: &&Envelope| envelope.monotonic < until;
        life.envelopes.iter().take_while(before_end).for_each(|envelope| state.apply(envelope));
        for (id, policy) in state.graph.programs.iter() {
            let unseen = state.programs[id].remote.as_deref().is_some_and(|remote| remote.unseen.is_some());
            if policy.external.as_ref().is_some_and(|external| is_meant(&external.node)) && !unseen {
                found.push(policy.name.to_string());
            }
        }
    }
    found
}
