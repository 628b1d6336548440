//! Daemons that stand still while their programs run on, and the keepers that kill what those must not run any more.

use gaggled_core::{
    base::time::{Instant, Millis},
    event::{Envelope, Event, GroupEvent},
    protocol::Permits,
};

use super::{
    mutants::ClusterMutant,
    network::{Happening, Network},
    world::SHARED,
};

/// By how much a permit ends before others could take the group, without its longest stop: in this time a daemon that has died is
/// replaced, and what was killed ends.
const SLACK: Millis = Millis(1250);

/// The longest time from a permit to the heartbeat that shows it.
const HEARTBEAT: u64 = 1000;

impl Network {
    /// The daemon of a node stands still, as one that was stopped by a signal.
    pub(super) fn freeze(&mut self, number: usize, span: Millis) {
        let node = &mut self.nodes[number];
        if node.frozen_until.is_some() || node.simulation.is_over() {
            return;
        }
        let until = (self.now + span).min(self.world.faults_end_at);
        (node.frozen_until, node.has_been_frozen) = (Some(until), true);
        self.record.frozen[number].push((self.now, until));
        self.expect_at(until, Happening::Thaws(number));
    }

    /// The daemon of a node goes on.
    pub(super) fn thaws(&mut self, number: usize) {
        self.nodes[number].frozen_until = None;
        self.nodes[number].simulation.wake(self.now);
    }

    /// The daemon has heard of its permit: the next heartbeat shows it.
    pub(super) fn beat_soon(&mut self, number: usize) {
        let permits = self.nodes[number].simulation.permits();
        if let Some(until) = permits.get(SHARED) {
            let graph = &self.nodes[number].simulation.state().graph;
            let stop = graph.group(SHARED).map_or(Millis(0), |group| graph.longest_stop(group));
            self.nodes[number].permitted_until = self.nodes[number].permitted_until.max(*until);
            self.expect_at(*until + stop + SLACK, Happening::PermitOver(number, *until));
        }
        if !permits.is_empty() {
            let span = Millis(self.random.below(HEARTBEAT));
            self.expect(span, Happening::Beats(number, permits));
        }
    }

    /// C3: nothing of the group lives on a node when others may begin, as far as this node can know.
    pub(super) fn check_permit(&mut self, number: usize, until: Instant) {
        let has_ended = self.nodes[number].permitted_until <= until;
        if has_ended && self.runs_shared(number) {
            let at = self.now.as_millis();
            self.record.found.push(format!("C3: node {number} runs the group at {at} ms, long after its permit"));
        }
    }

    /// C4: nothing of the group lives when a node releases it.
    pub(super) fn check_released(&mut self, number: usize, envelopes: &[Envelope]) {
        let is_release = |envelope: &Envelope| matches!(envelope.event, Event::Group(_, GroupEvent::Released { .. }));
        if envelopes.last().is_some_and(is_release) && self.runs_shared(number) {
            let at = self.now.as_millis();
            self.record.found.push(format!("C4: node {number} has released the group at {at} ms, and runs it"));
        }
    }

    /// A heartbeat comes.
    pub(super) fn beats(&mut self, number: usize, permits: Permits) {
        let node = &mut self.nodes[number];
        if let Some(gateway) = &mut node.gateway {
            gateway.claims.permitted(permits.clone());
        }
        node.keeper.permit(permits);
        self.arm_keeper(number);
    }

    /// The keeper hears of the events of its daemon.
    pub(super) fn keep(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.keeper.take(self.now, node.simulation.state());
        self.arm_keeper(number);
    }

    fn arm_keeper(&mut self, number: usize) {
        if let Some(at) = self.nodes[number].keeper.next() {
            self.expect_at(at.max(self.now), Happening::KeeperWakes(number));
        }
    }

    /// The keeper kills what has to have stopped.
    pub(super) fn keeper_wakes(&mut self, number: usize) {
        if self.mutant == Some(ClusterMutant::NoKeeper) {
            return;
        }
        let node = &mut self.nodes[number];
        while let Some((_, runs)) = node.keeper.take_due(self.now) {
            for run in runs {
                if let Some(id) = node.simulation.state().graph.names().get(&run.program).copied() {
                    node.simulation.kill_from_outside(id);
                }
            }
        }
        self.arm_keeper(number);
    }
}
