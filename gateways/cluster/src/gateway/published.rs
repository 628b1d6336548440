//! The published configuration: taken when there is another one, and what this node says of it.

use gaggled_core::cluster::rollout::Outcome;
use slog::{error, info, warn};

use super::{Gateway, Message};

impl Gateway {
    /// Takes the published configuration if this node is to have another one, and writes which one it has.
    pub(super) fn roll_out(&mut self) {
        let number = self.number;
        if let Some(pointer) = self.rollout.take_next() {
            info!(self.logger, "revision {} is published", pointer.revision; "by" => &pointer.by);
            self.ask(|connection| async move {
                Ok(Message::Fetched(number, pointer.revision, connection.fetch(&pointer).await?))
            });
        }
        if let Some(why) = self.rollout.is_behind().filter(|why| !self.logged.contains(why)) {
            error!(self.logger, "{}", why);
            self.logged.insert(why);
        }
        if let Some(report) = self.rollout.take_report() {
            self.ask(|connection| async move {
                match connection.write_applied(&report).await {
                    Err(error) if error.is_denied() => Ok(Message::Denied(number, error)),
                    written => written.map(|()| Message::Reported(number)),
                }
            });
        }
    }

    pub(super) fn configured(&mut self, revision: u64, outcome: Outcome) {
        match &outcome {
            Outcome::HandedOver => info!(self.logger, "revision {} is loaded", revision),
            Outcome::Applied => info!(self.logger, "revision {} is in force", revision),
            Outcome::Refused(why) => error!(self.logger, "revision {} is not taken: {}", revision, why),
            Outcome::Unanswered => warn!(self.logger, "gaggled has not said whether it takes revision {}", revision),
        }
        self.rollout.finished(revision, outcome);
        self.roll_out();
    }
}
