//! The claims of the simulated nodes: how their gateways read and write them, and what no node may ever see.

use std::sync::Arc;

use gaggled_core::{
    base::{ids::ProgramId, time::Instant, time::Millis},
    cluster::{
        Observation,
        claims::{ClaimWish, ClaimWrite, ClaimsInStore},
    },
    graph::STOP,
    state::Tenancy,
};

use super::{
    mutants::ClusterMutant,
    network::{Happening, Network},
    world::{SHARED, name},
};

/// How long an answer of the store may take: a gateway does not wait longer.
const ANSWER_MAX: Millis = Millis(1000);

impl Network {
    /// The gateway hears what its daemon wants of the claims.
    pub(super) fn wish(&mut self, number: usize) {
        let mut wishes = ClaimWish::all(self.nodes[number].simulation.state());
        if self.mutant == Some(ClusterMutant::ReleaseWhileStopping) {
            let is_leaving =
                |group: &gaggled_core::state::GroupState| matches!(group.tenancy, Some(Tenancy::Leaving { .. }));
            if self.nodes[number].simulation.state().groups.values().any(is_leaving) {
                let wish = ClaimWish::Away { is_stopped: true, why: String::new() };
                for known in wishes.0.values_mut() {
                    *known = wish.clone();
                }
            }
        }
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        if gateway.claims.wish(wishes) {
            self.read_claims(number);
        }
    }

    /// The gateway asks the store for all claims.
    pub(super) fn read_claims(&mut self, number: usize) {
        let (life, now, is_reachable) = (self.nodes[number].life, self.now, self.is_reachable(number));
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        if !is_reachable {
            return;
        }
        if gateway.reads_claims {
            gateway.reads_again = true;
            return;
        }
        gateway.reads_claims = true;
        let span = self.delay();
        self.expect(span, Happening::ClaimsAsked(number, life, now));
    }

    pub(super) fn claims_asked(&mut self, number: usize, life: u64, sent: Instant) {
        // Most answers come at once, some late, and some never.
        let is_healed = self.now >= self.world.faults_end_at;
        let span = match self.random.below(40) {
            _ if is_healed => self.delay(),
            0 => Millis(self.random.below(3000)),
            1 | 2 => Millis(self.random.below(ANSWER_MAX.0)),
            _ => self.delay(),
        };
        let mut store = (self.is_reachable(number) && span < ANSWER_MAX).then(|| self.store.claims());
        if let (Some(mutant), Some(store)) = (self.mutant, &mut store) {
            mutant.reads(store);
        }
        let span = if store.is_some() { span } else { ANSWER_MAX };
        if span > Millis(300) {
            self.record.late_answers[number].push(sent);
        }
        self.expect(span, Happening::ClaimsAnswered(number, life, sent, store));
    }

    pub(super) fn claims_answered(&mut self, number: usize, sent: Instant, store: Option<ClaimsInStore>) {
        let (now, mutant, permit) = (self.now, self.mutant, self.world.settings.permit());
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        gateway.reads_claims = false;
        let again = std::mem::take(&mut gateway.reads_again);
        if let Some(store) = store {
            let held = store.claims.iter().filter(|(_, (_, claim))| !claim.released);
            let is_new = !gateway.knows_holder || mutant != Some(ClusterMutant::FollowFirstHolder);
            gateway.knows_holder |= store.claims.values().any(|(_, claim)| !claim.released);
            let reads_others = is_new
                && gateway.sights.set_holders(held.map(|(group, (_, claim))| (group.clone(), claim.node.clone())));
            gateway.claims.read(store);
            let session = gateway.lease.clone().filter(|_| gateway.exports.is_announced());
            let until = match mutant {
                Some(ClusterMutant::NeverEndPermit) => now + Millis(1_000_000_000),
                _ => sent + permit,
            };
            let sight = gateway.claims.sight(session.as_deref(), until);
            if let Some(sight) = &sight {
                gateway.claims.reported(sight);
            }
            let writes = session.map_or_else(Vec::new, |session| gateway.claims.writes(&session));
            if !writes.is_empty() {
                gateway.claims.forget();
            }
            self.send(number, sight.map(Observation::Claims).into_iter().collect());
            if reads_others {
                self.break_watch(number);
                let (span, life) = (self.delay(), self.nodes[number].life);
                self.expect(span, Happening::Reads(number, life));
            } else {
                self.report(number);
            }
            self.write_soon(number);
            for write in writes {
                let (span, life) = (self.delay(), self.nodes[number].life);
                self.expect(span, Happening::ClaimWritten(number, life, write));
            }
        }
        if again {
            self.read_claims(number);
        }
    }

    pub(super) fn claim_written(&mut self, number: usize, write: &ClaimWrite) {
        let session = self.nodes[number].gateway.as_ref().and_then(|gateway| gateway.lease.clone());
        if let Some(session) = session.filter(|_| self.is_reachable(number)) {
            let overwrites = self.mutant == Some(ClusterMutant::OverwriteClaim);
            if self.store.claim(&name(number), &session, write, overwrites) {
                self.claims_changed();
            }
        }
        self.read_claims(number);
    }

    /// Watches show that a claim or a session has changed: the gateways read them again.
    pub(super) fn claims_changed(&mut self) {
        for number in 0..self.nodes.len() {
            let (span, life) = (Millis(1 + self.random.below(30)), self.nodes[number].life);
            self.expect(span, Happening::ClaimsChanged(number, life));
        }
    }

    /// C1: the programs of a group that runs on one node at a time run on one node at a time.
    pub(super) fn check_claims(&mut self) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|number| self.runs_shared(*number)).collect();
        if running.len() > 1 && self.record.overlaps.insert(running.clone()) {
            let at = self.now.as_millis();
            self.record.found.push(format!("C1: the group runs on nodes {running:?} at {at} ms"));
        }
    }

    /// Whether something of the group runs on a node.
    pub(super) fn runs_shared(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        let graph = &node.simulation.state().graph;
        let Some(group) = graph.group(SHARED) else { return false };
        // A daemon that stood still cleans up when it goes on, whatever others do by then.
        let counts = |member: &&ProgramId| !node.has_been_frozen || !graph.programs[**member].names(STOP);
        let mut members = graph.groups[group].members.iter().filter(counts);
        members.any(|member| node.simulation.lives(*member))
    }

    /// C8: when everything has settled, the group runs on one node. C19: every order to go to a level was carried out. C18: that is not one that is drained.
    pub(super) fn settled_claims(&mut self) {
        let holds = |number: &usize| {
            let state = self.nodes[*number].simulation.state();
            let tenancy = state.graph.group(SHARED).and_then(|group| state.groups[group].tenancy.clone());
            matches!(tenancy, Some(Tenancy::Held { .. }))
        };
        let is_there = self.nodes.iter().any(|node| node.simulation.state().graph.group(SHARED).is_some());
        let ends =
            self.nodes.iter().any(|node| node.simulation.is_over() || node.simulation.state().shutdown.is_some());
        let holders: Vec<usize> = (0..self.nodes.len()).filter(holds).collect();
        if let (Some((level, is_done)), [holder]) = (self.store.ordered_level(SHARED), holders.as_slice()) {
            let state = self.nodes[*holder].simulation.state();
            let group = state.graph.group(SHARED).map(|group| &state.groups[group]);
            // A group that was not told anything since it was held is at `stop`, and one may be told otherwise on its node later.
            let is_there = group.is_some_and(|group| *group.level == *level);
            if !is_done && (!is_there || level != STOP) {
                self.record.found.push(format!("C19: level {level} was ordered, and node {holder} has {group:?}"));
            }
        }
        if holders.iter().any(|number| self.store.is_drained(&name(*number))) {
            self.record.found.push(format!("C18: nodes {holders:?} hold the group, and one of them is drained"));
        }
        if is_there && !ends && holders.len() != 1 {
            self.record.found.push(format!("C8: nodes {holders:?} hold the group when everything has settled"));
        }
    }
}

/// C2: each holder has a larger token than those before. C4: nothing runs when it is released, as the rules of admission see to.
#[derive(Debug, Default)]
pub struct Tokens(Option<(u64, Arc<str>)>);

impl Tokens {
    /// The token of the last holder.
    pub fn last(&self) -> Option<u64> {
        self.0.as_ref().map(|(token, _)| *token)
    }

    /// A node holds the group now; what is wrong with that.
    pub fn held(&mut self, node: &Arc<str>, token: u64) -> Option<String> {
        // An event that was lost with a daemon is committed again.
        let wrong = self.0.as_ref().filter(|(last, of)| *last > token || *last == token && of != node);
        let found = wrong.map(|(last, of)| format!("C2: {node} has token {token} after {of} with {last}"));
        self.0 = Some((token, node.clone()));
        found
    }
}
