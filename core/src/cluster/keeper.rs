//! What runs of a group that runs on one node at a time, and when it has to have stopped whatever the daemon does.
//!
//! The daemon stops a group when its permit ends. If it cannot, because it hangs, is stopped, or is dead, the keeper kills the
//! group when the longest stop is over as well: others are about to take it. It learns from heartbeats until when the daemon may
//! run a group, so what it knows is older than what the daemon does, and never too late.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    base::{
        ids::{GroupId, InstanceId, ProgramId},
        time::{Instant, Millis},
    },
    graph::STOP,
    protocol::Permits,
    state::{ProcessInfo, State, Tenancy},
};

/// By how much the permit of a node ends before others could take its group, without the time that it may take to stop.
const MARGIN: Millis = Millis(1250);

/// The groups of a node that are held, or run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptGroups {
    groups: BTreeMap<Arc<str>, KeptGroup>,
    permits: Permits,
    /// The groups whose permit is assumed, because no heartbeat has shown one yet.
    assumed: BTreeSet<Arc<str>>,
}

/// A group that is held, or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptGroup {
    /// How long it may take to stop after its permit has ended.
    stop: Millis,
    /// How long others wait when the session of this node is gone.
    takeover_after: Millis,
    runs: Vec<KeptRun>,
}

/// The last run of a program of such a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRun {
    /// The program.
    pub program: Arc<str>,
    /// The run.
    pub instance: InstanceId,
    /// Its main process, as far as is known.
    pub process: Option<ProcessInfo>,
}

impl KeptGroups {
    /// The daemon is in this state.
    pub fn take(&mut self, now: Instant, state: &State) {
        let run = |id: &ProgramId| {
            let (program, known) = (state.graph.programs[*id].name.clone(), &state.programs[*id]);
            KeptRun { program, instance: known.instance, process: known.process }
        };
        let kept = |id: GroupId| {
            let (group, tenancy) = (&state.graph.groups[id], state.groups[id].tenancy.as_ref()?);
            let takeover_after = group.tenancy.as_ref()?.takeover_after;
            // While the group is held, a start may be under way that is not known yet. When it is left, what cleans up is
            // spared: it takes away what outlives processes, such as an address.
            let is_held = matches!(tenancy, Tenancy::Held { .. });
            let has_to_end = |id: &&ProgramId| {
                let levels = &state.graph.programs[**id].levels;
                let cleans_up = !levels.is_empty() && levels.iter().all(|level| **level == *STOP);
                is_held || state.programs[**id].is_running() && !cleans_up
            };
            let runs: Vec<KeptRun> = group.members.iter().filter(has_to_end).map(run).collect();
            let kept = |runs| KeptGroup { stop: state.graph.longest_stop(id), takeover_after, runs };
            (!runs.is_empty()).then(|| (group.name.clone(), kept(runs)))
        };
        self.groups = state.graph.groups.ids().filter_map(kept).collect();
        let groups = &self.groups;
        self.permits.retain(|group, _| groups.contains_key(group));
        for (group, kept) in groups {
            // Until a heartbeat comes: the daemon has a permit now, which is no longer than this.
            let longest = Millis(kept.takeover_after.0.saturating_sub(kept.stop.0 + MARGIN.0));
            if !self.permits.contains_key(group) {
                self.permits.insert(group.clone(), now + longest);
                self.assumed.insert(group.clone());
            }
        }
    }

    /// A heartbeat has shown these permits.
    pub fn permit(&mut self, permits: Permits) {
        for (group, until) in permits {
            let is_assumed = self.assumed.remove(&group);
            let known = self.permits.entry(group).or_default();
            *known = if is_assumed { until } else { until.max(*known) };
        }
    }

    /// When the first group has to have stopped.
    pub fn next(&self) -> Option<Instant> {
        self.ends().map(|(at, _)| at).min()
    }

    /// A group that had to have stopped by now: what is to be killed. It is not kept any more, as long as nothing is heard of
    /// the daemon.
    pub fn take_due(&mut self, now: Instant) -> Option<(Arc<str>, Vec<KeptRun>)> {
        let group = self.ends().min().filter(|(at, _)| *at <= now).map(|(_, group)| group.clone())?;
        self.groups.remove(&group).map(|kept| (group, kept.runs))
    }

    fn ends(&self) -> impl Iterator<Item = (Instant, &Arc<str>)> {
        self.groups.iter().filter_map(|(group, kept)| Some((*self.permits.get(group)? + kept.stop, group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::ids::{EpochId, Seq},
        graph::{Graph, Group, Policy, START, TenancyPolicy},
    };

    /// A group with a program and one that cleans up, each with a `killwait` of 1 s, which is held.
    fn held() -> State {
        let mut graph = Graph::default();
        let group = graph.add_group(Group::new("shop", START, None));
        for (name, level) in [("web", START), ("clean", STOP)] {
            let program = Policy { group: Some(group), levels: vec![level.into()], ..Policy::new(name) };
            graph.add_program(Policy { killwait: Millis(1000), ..program });
        }
        graph.killwait = Millis(1000);
        let (node, candidates) = ("n1".into(), vec!["n1".into(), "n2".into()]);
        graph.groups[group].tenancy = Some(TenancyPolicy { node, candidates, takeover_after: Millis(10_000) });
        let mut state = State::new(Arc::new(graph), EpochId(1));
        state.groups[group].tenancy = Some(Tenancy::Held { token: 5, since: Seq(1) });
        state
    }

    fn at(ms: u64) -> Instant {
        Instant::default() + Millis(ms)
    }

    #[test]
    fn what_is_held_has_to_have_stopped_after_its_permit_and_its_longest_stop() {
        let mut kept = KeptGroups::default();
        kept.take(at(0), &held());
        // 1 s for the program, and twice that for the one that cleans up, less than others wait.
        assert_eq!(kept.next(), Some(at(10_000 - 1250)));
        kept.permit([("shop".into(), at(9000))].into());
        assert_eq!(kept.next(), Some(at(12_000)));
        kept.permit([("shop".into(), at(7000))].into());
        assert_eq!(kept.take_due(at(11_999)), None, "a permit that is shown late changes nothing");
        let (group, runs) = kept.take_due(at(12_000)).expect("it is due");
        assert_eq!((&*group, runs.len()), ("shop", 2));
        assert_eq!(kept.next(), None, "until something is heard of the daemon");
    }

    #[test]
    fn what_cleans_up_is_spared_when_the_group_is_left() {
        let (mut kept, mut state) = (KeptGroups::default(), held());
        let group = state.graph.group("shop").expect("it is there");
        let reason = crate::event::LeaveReason::PermitEnded;
        state.groups[group].tenancy = Some(Tenancy::Leaving { token: 5, since: Seq(2), reason });
        let clean = state.graph.names()["clean"];
        state.programs[clean].phase = crate::state::Phase::Up;
        kept.take(at(0), &state);
        assert_eq!(kept.next(), None);
        let web = state.graph.names()["web"];
        state.programs[web].phase = crate::state::Phase::Up;
        kept.take(at(0), &state);
        let (_, runs) = kept.take_due(at(60_000)).expect("it is due");
        assert_eq!(runs.iter().map(|run| &*run.program).collect::<Vec<_>>(), ["web"]);
    }
}
