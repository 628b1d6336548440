//! The session of the node: its lease is renewed, and with each renewal a majority of etcd is asked for the session and the
//! claims.

use std::sync::Arc;

use gaggled_core::{
    base::time::Instant,
    cluster::{
        claims::ClaimsInStore,
        store::{Claim, Session},
    },
};
use slog::{error, info};

use super::{Gateway, Message};
use crate::etcd::{Connection, SessionInStore};

/// What a majority of etcd has, asked at this time.
#[derive(Debug)]
pub struct Found {
    asked: Instant,
    session: SessionInStore,
    claims: ClaimsInStore,
}

/// Whether the session is being renewed, and the claims read: one at a time, as a second one could ask for a second lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Idle,
    UnderWay,
    /// And something has happened since it began, so that another one has to follow.
    UnderWayAndAgain,
}

/// What is logged when the session is left to end.
const NEGLECTED: &str = "gaggled does not leave a group whose permit has ended: it hangs, is stopped or is dead. Its session is \
    not renewed, so that another node takes its groups";

impl Gateway {
    pub(super) fn renew(&mut self) {
        let (number, lease) = (self.number, self.lease);
        let seconds = i64::try_from(self.config.session().0.div_ceil(1000)).unwrap_or(i64::MAX);
        self.renew_at = Some(self.clock.now() + self.config.renewal());
        if self.connection.is_none() {
            return;
        }
        if self.renewal != Renewal::Idle {
            self.renewal = Renewal::UnderWayAndAgain;
            return;
        }
        let is_neglected = self.claims.is_neglected(self.clock.now(), self.is_silent);
        match (std::mem::replace(&mut self.is_neglected, is_neglected), is_neglected) {
            (false, true) => error!(self.logger, "{}", NEGLECTED),
            (true, false) => info!(self.logger, "gaggled goes on, and so does its session"),
            _ => {}
        }
        self.renewal = Renewal::UnderWay;
        let (clock, with_sessions) = (self.clock, self.claims.is_needed());
        self.ask(|connection| async move {
            let lease = match lease {
                // The claims are read all the same: that is what the daemon has to hear when it goes on.
                lease if is_neglected => lease,
                lease => Some(connection.renew(lease, seconds).await?),
            };
            let asked = clock.now();
            let (session, claims) = connection.own_session(with_sessions).await?;
            Ok(Message::Renewed(number, lease, Found { asked, session, claims }))
        });
    }

    pub(super) fn renewed(&mut self, lease: Option<i64>, Found { asked, session: (found, revision), claims }: Found) {
        self.renewals += 1;
        if std::mem::replace(&mut self.renewal, Renewal::Idle) == Renewal::UnderWayAndAgain {
            self.renew_at = Some(self.clock.now());
        }
        // A connection that is of no use for more than a moment does not end the pauses between attempts.
        if self.renewals > 1 {
            self.failures = 0;
        }
        self.lease = lease;
        if std::mem::take(&mut self.reports_again) {
            self.sights.forget_reports();
        }
        self.report(self.is_watching);
        self.rollout.try_again();
        self.roll_out();
        if self.exports.is_announced() && !std::mem::take(&mut self.logged).is_empty() {
            info!(self.logger, "etcd is in reach again, at {}", self.connection.as_ref().map_or("", Connection::url));
        }
        let Some(lease) = lease else {
            self.claims.read(claims);
            return self.report_claims(asked);
        };
        let Some(journal) = self.journal.clone() else { return };
        let id: Arc<str> = format!("{lease:x}").into();
        self.session_revision = revision;
        if let Some(other) = found.as_ref().filter(|found| found.journal != journal && found.session != id) {
            self.session = None;
            // A session of an earlier life of this machine ends by itself.
            let since = *self.conflict_since.get_or_insert(self.clock.now());
            if self.clock.now() <= since + self.config.dead_after {
                return;
            }
            let why = format!(
                "another gaggled, on host {}, takes part as node {}: give each node a name of its own (gaggled.cluster.node)",
                other.host, self.node
            );
            if self.logged.insert(why.clone()) {
                error!(self.logger, "{}", why);
            }
            return;
        }
        self.conflict_since = None;
        let holds = |claim: &Claim| !claim.released && !claim.is_unreadable();
        let held = claims.claims.iter().filter(|(_, (_, claim))| holds(claim));
        let reads_others = self.sights.set_holders(held.map(|(group, (_, claim))| (group.clone(), claim.node.clone())));
        let is_there = found.as_ref().is_some_and(|found| found.session == id);
        let is_later = self.exports.is_announced() && asked > self.announced_at;
        if is_later && !is_there && self.session.as_ref().is_some_and(|own| own.session == id) {
            // A session that has ended never comes back, not even if only its key was deleted: others may rely on that.
            self.lease = None;
            self.session = None;
            self.exports.begin_session();
            self.renew_at = Some(self.clock.now());
            return;
        }
        self.claims.read(claims);
        if self.session.as_ref().is_none_or(|own| own.session != id) {
            info!(self.logger, "node {} begins session {}", self.node, id);
            self.session = Some(Session::new(id, journal, &self.host, gaggled_tools::VERSION));
            self.exports.begin_session();
        }
        self.report_claims(asked);
        if reads_others {
            return self.reconnect();
        }
        self.report(false);
        self.write();
    }

    pub(super) fn write(&mut self) {
        let (Some(session), Some(lease)) = (&self.session, self.lease) else { return };
        if self.renewals == 0 || !self.exports.is_announced() && !self.claims.is_read() {
            return;
        }
        match self.exports.next_write(self.clock.now()) {
            Ok(batch) => {
                let (number, session, over) = (self.number, session.clone(), self.session_revision);
                let is_announced = self.exports.is_announced();
                let renewals = if batch.announces { self.claims.renewals(&session.session) } else { Vec::new() };
                self.ask(|connection| async move {
                    let batch_number = batch.number;
                    let done = connection.write(batch, (&session, is_announced), lease, over, &renewals).await?;
                    Ok(Message::Written(number, batch_number, done))
                });
            }
            Err(at) => self.write_at = at,
        }
    }
}
