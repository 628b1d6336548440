//! The connection to one member of etcd at a time.

use gaggled_core::base::time::Millis;
use slog::warn;

use super::{Gateway, Message, Renewal};
use crate::etcd::{Connection, Credentials, EtcdError};

/// The space between two attempts to reach any member, at first and at most.
pub(super) const RETRY: (Millis, Millis) = (Millis(200), Millis(2000));

impl Gateway {
    pub(super) fn connect(&mut self) {
        self.number += 1;
        let url = self.config.etcd[self.next_member % self.config.etcd.len()].clone();
        let (number, messages) = (self.number, self.messages.clone());
        // They may have been renewed.
        if let Ok(credentials) = Credentials::read(&self.config) {
            self.credentials = credentials;
        }
        let (site, node, credentials) = (self.site.clone(), self.node.clone(), self.credentials.clone());
        self.tasks.spawn(async move {
            let message = match Connection::open(&url, site, node, &credentials).await {
                Ok(connection) => Message::Connected(number, Box::new(connection)),
                Err(error) => Message::Failed(number, error),
            };
            let _ = messages.send(message);
        });
    }

    /// Drops the connection and makes another one at once.
    pub(super) fn reconnect(&mut self) {
        self.disconnect();
        self.connect_at = Some(self.clock.now());
    }

    pub(super) fn disconnect(&mut self) {
        self.number += 1;
        self.connection = None;
        (self.is_watching, self.renewal) = (false, Renewal::Idle);
        (self.renew_at, self.write_at, self.renewals) = (None, None, 0);
        self.tasks.abort_all();
        self.exports.interrupt();
        self.sights.disconnect();
        self.rollout.disconnect();
        self.claims.forget();
    }

    pub(super) fn failed(&mut self, error: &EtcdError) {
        if self.logged.insert(error.reason().to_owned()) {
            warn!(self.logger, "{}", error);
        }
        self.disconnect();
        self.next_member += 1;
        self.failures += 1;
        // Every member is tried once before there is a pause.
        let rounds = self.failures / u32::try_from(self.config.etcd.len()).unwrap_or(1);
        let pause = match rounds {
            0 => Millis(0),
            // A session that was lost has to be open again before this node is taken for lost.
            rounds => Millis(RETRY.0.0 << rounds.min(10)).min(RETRY.1).min(self.config.lost_after().half()),
        };
        self.connect_at = Some(self.clock.now() + pause);
    }
}
