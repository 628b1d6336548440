//! The keeper: kills what runs of a group that runs on one node at a time, if its permit has ended and gaggled has not stopped
//! it, because it hangs, is stopped, or is dead.
//!
//! It is a process of its own that gaggled adds as a program, and follows the events of gaggled. A heartbeat says until when
//! gaggled may run each group. When that has passed, and the time that the group may take to stop, other nodes are about to
//! take the group, so what is left is killed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gaggled_actors::{
    clock::Clock,
    host::{RunToKill, kill_runs},
    journal::directory::{known_identity, last_cgroups},
};
use gaggled_core::{
    base::{
        ids::{GroupId, ProgramId},
        time::{Instant, Millis},
    },
    event::Event,
    protocol::Permits,
    state::State,
};
use gaggled_gateways::follow::{FollowEvent, Follower};
use slog::{Logger, error, info, warn};

use crate::common::{endpoints::Urls, gateway_log};

/// By how much the permit of a node ends before others could take its group, without the time that it may take to stop.
const MARGIN: Millis = Millis(1250);

/// What the keeper knows of the groups of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Watched {
    /// The groups that this node holds.
    held: BTreeMap<Arc<str>, HeldGroup>,
    permits: Permits,
}

/// A group that this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HeldGroup {
    /// How long it may take to stop, after its permit has ended.
    stop: Millis,
    /// How long others wait when the session of this node is gone.
    takeover_after: Millis,
    /// Its runs.
    runs: Vec<RunToKill>,
}

impl Watched {
    /// The groups that are held, or run, in this state.
    fn take(&mut self, now: Instant, state: &State) {
        let held = |id: GroupId| {
            let (group, tenancy) = (&state.graph.groups[id], state.groups[id].tenancy.as_ref()?);
            let policy = group.tenancy.as_ref()?;
            (tenancy.token().is_some() || state.runs_shared(id)).then(|| {
                let run = |id: &ProgramId| {
                    let (program, known) = (state.graph.programs[*id].name.to_string(), &state.programs[*id]);
                    RunToKill { program, instance: known.instance, process: known.process }
                };
                let runs = group.members.iter().map(run).collect();
                let (stop, takeover_after) = (state.graph.longest_stop(id), policy.takeover_after);
                (group.name.clone(), HeldGroup { stop, takeover_after, runs })
            })
        };
        self.held = state.graph.groups.ids().filter_map(held).collect();
        let held = &self.held;
        self.permits.retain(|group, _| held.contains_key(group));
        for (group, held) in &self.held {
            // Until a heartbeat comes: gaggled has a permit now, which is no longer than this.
            let longest = Millis(held.takeover_after.0.saturating_sub(held.stop.0 + MARGIN.0));
            self.permits.entry(group.clone()).or_insert(now + longest);
        }
    }

    /// A heartbeat has shown these permits.
    fn permit(&mut self, permits: Permits) {
        for (group, until) in permits {
            let known = self.permits.entry(group).or_default();
            *known = (*known).max(until);
        }
    }

    /// The group that is to have stopped first, and when.
    fn first(&self) -> Option<(Instant, &Arc<str>)> {
        let ends = self.held.iter().filter_map(|(group, held)| Some((*self.permits.get(group)? + held.stop, group)));
        ends.min()
    }
}

/// Watches the gaggled at these urls, whose journal is in this directory, for ever.
pub fn run(state: &Path, urls: &Urls) -> ExitCode {
    let logger = gateway_log::logger(false);
    // What the kernel kills for want of memory should not be this.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    let fail = |why: &str| {
        eprintln!("Error: {why}");
        ExitCode::FAILURE
    };
    let Some(identity) = known_identity(state) else {
        return fail(&format!("{}: there is no journal of gaggled", state.display()));
    };
    let follower = match Follower::new(&urls.event, &urls.control, None) {
        Ok(follower) => follower,
        Err(error) => return fail(&error.to_string()),
    };
    let (tell, told) = crossbeam_channel::unbounded();
    // The follower asks gaggled and waits for its answers; the end of a permit does not wait for those.
    let following = thread::Builder::new().name("follower".into()).spawn(move || follow(follower, &tell));
    if let Err(error) = following {
        return fail(&format!("a thread cannot be started: {error}"));
    }
    Keeper { state: state.to_owned(), identity, logger, clock: Clock::real(), watched: Watched::default() }.run(&told);
    ExitCode::FAILURE
}

/// Sends what is known of the groups whenever it changes.
fn follow(mut follower: Follower, tell: &Sender<Watched>) {
    let (mut watched, clock) = (Watched::default(), Clock::real());
    loop {
        let before = watched.clone();
        match follower.next(None) {
            FollowEvent::Permits(permits) => watched.permit(permits),
            FollowEvent::Synchronised { .. } => {
                follower.state().into_iter().for_each(|state| watched.take(clock.now(), state));
            }
            FollowEvent::Event(envelope, _) => {
                let Some(state) = follower.state() else { continue };
                let subject = state.graph.subject(&envelope.event);
                let of_group = subject.is_some_and(|id| state.graph.programs[id].group.is_some());
                if of_group || matches!(envelope.event, Event::Group(..)) {
                    watched.take(clock.now(), state);
                }
            }
            FollowEvent::Past(_)
            | FollowEvent::Silent
            | FollowEvent::Back
            | FollowEvent::Garbled(_)
            | FollowEvent::Nothing => {}
        }
        if watched != before && tell.send(watched.clone()).is_err() {
            return;
        }
    }
}

struct Keeper {
    state: PathBuf,
    identity: String,
    logger: Logger,
    clock: Clock,
    watched: Watched,
}

impl Keeper {
    /// Works until nothing is followed any more.
    fn run(mut self, told: &Receiver<Watched>) {
        loop {
            let wait = self.watched.first().map(|(at, _)| self.until(at));
            let news = match wait {
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => told.recv_timeout(wait),
            };
            match news {
                Ok(watched) => self.watched = watched,
                Err(RecvTimeoutError::Timeout) => self.check(),
                Err(RecvTimeoutError::Disconnected) => return error!(self.logger, "gaggled is not followed any more"),
            }
        }
    }

    fn until(&self, at: Instant) -> Duration {
        Duration::from_micros(at.as_micros().saturating_sub(self.clock.now().as_micros()))
    }

    /// Kills the group whose time has passed.
    fn check(&mut self) {
        let Some((at, group)) = self.watched.first() else { return };
        if at > self.clock.now() {
            return;
        }
        let group = group.clone();
        let Some(held) = self.watched.held.remove(&group) else { return };
        let killed = kill_runs(&self.identity, &last_cgroups(&self.state), &held.runs);
        if killed > 0 {
            warn!(
                self.logger,
                "group {}: its permit has ended, and gaggled has not stopped it in time: killed {} processes",
                group,
                killed
            );
        } else {
            info!(self.logger, "group {}: its permit has ended, and nothing of it runs", group);
        }
    }
}
