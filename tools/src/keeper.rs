//! The keeper: kills what runs of a group that runs on one node at a time, if its permit has ended and gaggled has not stopped
//! it, because it hangs, is stopped, or is dead.
//!
//! It is a process of its own that gaggled adds as a program, and follows the events of gaggled. A heartbeat says until when
//! gaggled may run each group. When that has passed, and the time that the group may take to stop, other nodes are about to
//! take the group, so what is left is killed.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gaggled_actors::{
    clock::Clock,
    host::kill_runs,
    journal::directory::{known_identity, last_cgroups},
};
use gaggled_core::{base::time::Instant, cluster::keeper::KeptGroups, event::Event};
use gaggled_gateways::follow::{FollowEvent, Follower};
use slog::{Logger, error, info, warn};

use crate::{
    common::{endpoints::Urls, gateway_log},
    daemon::subreaper::lower_oom_score,
};

/// Watches the gaggled at these urls, whose journal is in this directory, for ever.
pub fn run(state: &Path, urls: &Urls) -> ExitCode {
    let logger = gateway_log::logger(false);
    lower_oom_score();
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
    let state = state.to_owned();
    let following = thread::Builder::new().name("follower".into()).spawn(move || follow(follower, &state, &tell));
    if let Err(error) = following {
        return fail(&format!("a thread cannot be started: {error}"));
    }
    let (cgroups, kept) = (Vec::new(), KeptGroups::default());
    Keeper { identity, cgroups, logger, clock: Clock::real(), kept }.run(&told);
    ExitCode::FAILURE
}

/// Sends what is known of the groups whenever it changes.
fn follow(mut follower: Follower, state_directory: &Path, tell: &Sender<News>) {
    let (mut kept, clock) = (KeptGroups::default(), Clock::real());
    loop {
        let before = kept.clone();
        match follower.next(None) {
            FollowEvent::Permits(permits) => kept.permit(permits),
            FollowEvent::Synchronised { .. } => {
                follower.state().into_iter().for_each(|state| kept.take(clock.now(), state));
                // The disk may hang, and must hold up nothing.
                let (directory, tell) = (state_directory.to_owned(), tell.clone());
                thread::spawn(move || drop(tell.send(News::Cgroups(last_cgroups(&directory)))));
            }
            FollowEvent::Event(envelope, _) => {
                let Some(state) = follower.state() else { continue };
                let subject = state.graph.subject(&envelope.event);
                let of_group = subject.is_some_and(|id| state.graph.programs[id].group.is_some());
                if of_group || matches!(envelope.event, Event::Group(..)) {
                    kept.take(clock.now(), state);
                }
            }
            FollowEvent::Past(_)
            | FollowEvent::Silent
            | FollowEvent::Back
            | FollowEvent::Garbled(_)
            | FollowEvent::Nothing => {}
        }
        if kept != before && tell.send(News::Groups(kept.clone())).is_err() {
            return;
        }
    }
}

/// What the keeper is told by its other threads.
enum News {
    Groups(KeptGroups),
    /// The directories in which programs may have cgroups.
    Cgroups(Vec<PathBuf>),
}

struct Keeper {
    identity: String,
    cgroups: Vec<PathBuf>,
    logger: Logger,
    clock: Clock,
    kept: KeptGroups,
}

impl Keeper {
    /// Works until nothing is followed any more.
    fn run(mut self, told: &Receiver<News>) {
        loop {
            let wait = self.kept.next().map(|at| self.until(at));
            let news = match wait {
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => told.recv_timeout(wait),
            };
            match news {
                Ok(News::Groups(kept)) => self.kept = kept,
                Ok(News::Cgroups(cgroups)) => self.cgroups = cgroups,
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
        let due: Vec<_> = std::iter::from_fn(|| self.kept.take_due(self.clock.now())).collect();
        // What is logged may go to a disk that hangs: that waits until everything is killed.
        let killed = due.into_iter().map(|(group, runs)| (group, kill_runs(&self.identity, &self.cgroups, &runs)));
        for (group, killed) in killed.collect::<Vec<_>>() {
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
}
