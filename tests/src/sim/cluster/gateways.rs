//! The simulated cluster gateways: how they renew their leases, write, read and watch, and report to their daemons.

use std::{collections::BTreeSet, sync::Arc};

use gaggled_core::{
    base::{
        ids::{ActorId, EpochId, ProgramId},
        time::{Instant, Millis},
    },
    cluster::{
        News, Observation,
        claims::{ClaimWrite, Claims},
        exports::Batch,
        sights::{Sights, StateInStore},
        store::Key,
    },
};

use super::{
    mutants::ClusterMutant,
    network::{Gateway, Happening, Network},
    store::Change,
    world::{SHARED, name},
};

impl Network {
    pub(super) fn begin_gateway(&mut self, number: usize) {
        if self.nodes[number].gateway.is_some() || self.nodes[number].simulation.is_over() {
            return;
        }
        self.nodes[number].life += 1;
        let (claims, sights) = (Claims::new(name(number)), Sights::new(name(number)));
        self.nodes[number].gateway = Some(Gateway { sights, claims, ..Gateway::default() });
        self.synchronise(number);
        self.renews(number);
    }

    pub(super) fn writes(&mut self, number: usize) {
        let (life, now, is_reachable) = (self.nodes[number].life, self.now, self.is_reachable(number));
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        let Some(lease) = gateway.lease.clone() else { return };
        if !gateway.exports.is_announced() && !gateway.claims.is_read() {
            return self.read_claims(number);
        }
        match gateway.exports.next_write(now) {
            Ok(batch) if is_reachable => {
                let forgets = self.mutant == Some(ClusterMutant::ForgetClaimsInSession);
                let renewals = if batch.announces && !forgets { gateway.claims.renewals(&lease) } else { Vec::new() };
                let span = self.delay();
                self.expect(span, Happening::WriteArrives(number, life, lease, batch, renewals));
            }
            Ok(batch) => self.expect(Millis(1000), Happening::WriteAnswered(number, life, batch.number, false)),
            Err(Some(at)) => self.expect_at(at, Happening::Writes(number, life)),
            Err(None) => {}
        }
    }

    pub(super) fn write_arrives(
        &mut self,
        number: usize,
        life: u64,
        lease: &Arc<str>,
        batch: Batch,
        renewals: &[ClaimWrite],
    ) {
        if !self.is_reachable(number) || !self.store.has_lease(lease) {
            return self.expect(Millis(1000), Happening::WriteAnswered(number, life, batch.number, false));
        }
        let written = batch.number;
        self.record.writes[number].push(self.now);
        let Some(changes) = self.store.write(self.now, (&name(number), lease), batch, renewals) else {
            self.read_claims(number);
            return self.expect(Millis(1), Happening::WriteAnswered(number, life, written, false));
        };
        self.show_all(&changes);
        let gateway = self.nodes[number].gateway.as_mut();
        let is_lost = gateway.is_some_and(|gateway| std::mem::take(&mut gateway.loses_answer));
        let span = if is_lost { Millis(1000) } else { Millis(2) };
        self.expect(span, Happening::WriteAnswered(number, life, written, !is_lost));
    }

    pub(super) fn renews(&mut self, number: usize) {
        let session = self.world.settings.session();
        let life = self.nodes[number].life;
        self.expect(self.world.settings.renewal(), Happening::Renews(number, life));
        if self.nodes[number].simulation.is_over() {
            self.nodes[number].gateway = None;
            return;
        }
        if !self.is_reachable(number) {
            return self.break_watch(number);
        }
        let (now, mutant) = (self.now, self.mutant);
        let is_silent = self.nodes[number].frozen_until.is_some();
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        let held = gateway.lease.clone().filter(|lease| self.store.has_lease(lease));
        if gateway.claims.is_neglected(now, is_silent) {
            return self.read_claims(number);
        }
        let lease = held.clone().unwrap_or_else(|| format!("{number}-{life}-{}", now.as_micros()).into());
        self.store.renew(&lease, now + session);
        gateway.lease = Some(lease);
        if held.is_none() {
            if mutant != Some(ClusterMutant::KeepOldSession) || !gateway.exports.is_announced() {
                gateway.exports.begin_session();
            }
            self.write_soon(number);
        }
        self.read_claims(number);
        // A lease ends a little late.
        let late = Millis(self.random.below(600));
        self.expect_at(now + session + late, Happening::LeaseEnds);
        if self.nodes[number].gateway.as_ref().is_some_and(|gateway| gateway.watch.is_some()) {
            self.send(number, vec![Observation::Contact]);
        } else {
            let span = self.delay();
            self.expect(span, Happening::Reads(number, life));
        }
    }

    pub(super) fn break_watch(&mut self, number: usize) {
        let mutant = self.mutant;
        if let Some(gateway) = &mut self.nodes[number].gateway
            && gateway.watch.take().is_some()
            && mutant != Some(ClusterMutant::ResumeWatch)
        {
            gateway.sights.disconnect();
        }
    }

    pub(super) fn reads(&mut self, number: usize) {
        if !self.is_reachable(number) {
            return;
        }
        let resumes = self.mutant == Some(ClusterMutant::ResumeWatch);
        let watch = self.random.number();
        let everything = self.store.read();
        let now = self.now;
        let Some(gateway) = &mut self.nodes[number].gateway else { return };
        let keys = gateway.sights.keys();
        if !resumes || gateway.shown_at == Instant::default() {
            gateway.sights.disconnect();
            for change in everything {
                take(&mut gateway.sights, &keys, change);
            }
        }
        gateway.sights.read();
        gateway.watch = Some(watch);
        gateway.shown_at = gateway.shown_at.max(now).max(Instant::from_micros(1));
        self.report(number);
        self.send(number, vec![Observation::Contact]);
    }

    pub(super) fn show_all(&mut self, changes: &[Change]) {
        if changes.iter().any(|change| matches!(change, Change::Session(..))) {
            self.claims_changed();
        }
        for number in 0..self.nodes.len() {
            // Keys are watched one by one: changes of one write may be shown in any order.
            let mut changes = changes.to_vec();
            let first = usize::try_from(self.random.below(changes.len().max(1) as u64)).expect("a small number");
            changes.rotate_left(first);
            for change in &changes {
                let at = self.now + Millis(1 + self.random.below(30));
                let Some(gateway) = &mut self.nodes[number].gateway else { continue };
                let Some(watch) = gateway.watch else { continue };
                gateway.shown_at = gateway.shown_at.max(at);
                let at = gateway.shown_at;
                self.expect_at(at, Happening::Shows(number, watch, change.clone()));
            }
        }
    }

    pub(super) fn shows(&mut self, number: usize, watch: u64, change: Change) {
        let is_open = self.nodes[number].gateway.as_ref().is_some_and(|gateway| gateway.watch == Some(watch));
        if !is_open {
            return;
        }
        if !self.is_reachable(number) {
            return self.break_watch(number);
        }
        let mutant = self.mutant;
        if let Some(gateway) = &mut self.nodes[number].gateway {
            let keys = gateway.sights.keys();
            let is_end = matches!(&change, Change::Session(_, session) if session.is_none());
            if let Change::Session(node, Some(_)) = &change
                && mutant == Some(ClusterMutant::TakeSessionForWithdrawal)
            {
                for key in &keys {
                    if let Key::State { node: of, program } = key
                        && of == node
                    {
                        gateway.sights.state(of, program, StateInStore::Missing);
                    }
                }
            }
            if !is_end || mutant != Some(ClusterMutant::IgnoreEndOfSession) {
                take(&mut gateway.sights, &keys, change);
            }
        }
        self.report(number);
    }

    pub(super) fn reports(&mut self, number: usize, epoch: EpochId, observations: Vec<Observation>) {
        if self.nodes[number].epoch != epoch || self.nodes[number].simulation.is_over() {
            return;
        }
        if let Some(until) = self.nodes[number].frozen_until {
            return self.expect_at(until, Happening::Reports(number, epoch, observations));
        }
        let state = self.nodes[number].simulation.state();
        let names = state.graph.names();
        let externals: Vec<ProgramId> =
            state.graph.programs.iter().filter(|(_, policy)| !policy.is_here()).map(|(id, _)| id).collect();
        let shared = state.graph.group(SHARED);
        for observation in observations {
            match observation {
                Observation::Contact => {
                    for id in &externals {
                        self.nodes[number].simulation.observe(self.now, ActorId::Program(*id), News::Contact);
                    }
                }
                Observation::External { program, sight } => {
                    let Some(id) = names.get(program.as_str()).copied() else { continue };
                    let key = (number, program);
                    let sight = match self.mutant {
                        Some(mutant) => mutant.reports(sight, self.last_sights.get(&key)),
                        None => sight,
                    };
                    self.last_sights.insert(key, sight.clone());
                    self.nodes[number].simulation.observe(self.now, ActorId::Program(id), News::Sight(sight));
                }
                Observation::Claims(sight) => {
                    let Some(group) = shared else { continue };
                    self.nodes[number].simulation.observe(
                        self.now,
                        ActorId::Group(group),
                        News::Claims(Arc::new(sight)),
                    );
                    self.beat_soon(number);
                }
            }
        }
    }
}

/// Gives a gateway a change of a key that it watches.
fn take(sights: &mut Sights, keys: &BTreeSet<Key>, change: Change) {
    if keys.contains(&change.key()) {
        match change {
            Change::Session(node, session) => sights.session(&node, session),
            Change::State(node, program, state) => {
                sights.state(&node, &program, state.map_or(StateInStore::Missing, StateInStore::Written));
            }
        }
    }
}
