//! The claims on groups that run on one node at a time.

use gaggled_core::{base::time::Instant, cluster::Observation};

use super::{Gateway, Message};

impl Gateway {
    /// Tells the daemon what is known of the claims since this time, and writes what it wants.
    pub(super) fn report_claims(&mut self, asked: Instant) {
        let session = self.session.as_ref().map(|session| session.session.clone());
        let session = session.filter(|_| self.exports.is_announced());
        let permit_until = asked + self.config.permit();
        let sight = self.claims.sight(session.as_deref(), permit_until).filter(|_| self.claims.is_needed());
        if let Some(sight) = &sight {
            self.claims.reported(sight);
        }
        self.reporter.report(sight.map(Observation::Claims).into_iter().collect());
        let (Some(session), Some(lease)) = (session, self.lease) else { return };
        let (number, writes) = (self.number, self.claims.writes(&session));
        if writes.is_empty() {
            return;
        }
        // They are read again before anything else is written.
        self.claims.forget();
        self.ask(|connection| async move {
            let mut all = true;
            for write in writes {
                match connection.claim(&write, lease).await {
                    Ok(done) => all &= done,
                    Err(error) if error.is_denied() => return Ok(Message::Denied(number, error)),
                    Err(error) => return Err(error),
                }
            }
            Ok(Message::Claimed(number, all))
        });
    }
}
