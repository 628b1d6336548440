//! The gate from events to mail: follows gaggled, and sends what the notifier finds worth a mail.

use std::time::{Duration, Instant as Moment};

use gaggled_core::{
    config::SmtpgateConfig,
    ids::ProgramId,
    notifier::{Change, Notifier, Statement},
    state::State,
    time::{Instant, Millis},
    wire::View,
};
use gaggled_gateways::{
    follow::{Follower, Heard},
    smtp::{Composer, MailError, Outbox, Outcome, Report},
};
use slog::{Logger, debug, error, info, warn};

/// Whether mails could be sent with this configuration.
pub fn check(config: &SmtpgateConfig) -> Result<(), MailError> {
    Composer::new(config, "localhost")?;
    Outbox::new(config, "localhost", Box::new(|_| {})).map(drop)
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    follower: Follower,
    notifier: Notifier,
    composer: Composer,
    outbox: Outbox,
    batch: Millis,
    begun: Moment,
    logger: Logger,
}

impl Gate {
    /// The gate of a configuration, on a host of this name.
    pub fn new(config: &SmtpgateConfig, host: &str, follower: Follower, logger: Logger) -> Result<Self, MailError> {
        Ok(Self {
            follower,
            notifier: Notifier::new(config.period, config.batch, Instant::default()),
            composer: Composer::new(config, host)?,
            outbox: Outbox::new(config, host, reporter(logger.clone()))?,
            batch: config.batch,
            begun: now(),
            logger,
        })
    }

    /// Works until the process ends.
    pub fn run(mut self) -> ! {
        loop {
            let deadline = self.notifier.next_deadline(self.now());
            let until = deadline.map(|deadline| self.begun + Duration::from_micros(deadline.as_micros()));
            let heard = self.follower.next(until);
            self.hear(heard);
            self.speak();
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Synchronised { missed } => {
                info!(
                    self.logger,
                    "synchronised with gaggled{}",
                    if missed { ", some events were missed" } else { "" }
                );
                if let Some(state) = self.follower.state().cloned() {
                    self.notifier.retain(|name| state.graph.programs.values().any(|policy| &*policy.name == name));
                    for id in state.graph.programs.ids() {
                        self.observe(&state, id);
                    }
                }
            }
            Heard::Event(_, text) | Heard::Past(text) => self.event(&text),
            Heard::Silent => warn!(self.logger, "nothing is heard of gaggled"),
            Heard::Back => info!(self.logger, "gaggled is heard again"),
            Heard::Garbled(why) => warn!(self.logger, "{}", why),
            Heard::Nothing => {}
        }
    }

    /// The event tells the state just after it, which the mirror may have left behind already.
    fn event(&mut self, text: &str) {
        if let Some((program, change)) = Change::in_event(text, self.now()) {
            debug!(self.logger, "event {} of {}", change.seq, program);
            self.notifier.observe(&program, change);
        }
    }

    fn observe(&mut self, state: &State, id: ProgramId) {
        let change = Change::new(&View::at(state, state.at).program(id), state.epoch, self.now());
        self.notifier.observe(&state.graph.programs[id].name, change);
    }

    fn speak(&mut self) {
        for statements in self.notifier.due(self.now()) {
            self.mail(&statements);
        }
    }

    fn mail(&self, statements: &[Statement]) {
        match self.composer.compose(statements, self.batch.0 > 0, self.notifier.all_ok()) {
            Ok(mail) => {
                let subject = statements.iter().map(|statement| statement.text(", ")).collect::<Vec<_>>().join("; ");
                if let Some(outcome) = self.outbox.send(&subject, &mail) {
                    reporter(self.logger.clone())(&outcome);
                }
            }
            Err(why) => error!(self.logger, "{}", why),
        }
    }

    fn now(&self) -> Instant {
        let since = now().saturating_duration_since(self.begun).as_micros();
        Instant::from_micros(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// Writes what becomes of mails into the log.
fn reporter(logger: Logger) -> Report {
    Box::new(move |outcome| match outcome {
        Outcome::Delivered(mail) => info!(logger, "delivered: {}", mail),
        Outcome::Postponed(mail, span) => {
            warn!(logger, "not delivered, will be tried again in {} s: {}", span.as_secs(), mail);
        }
        Outcome::Refused(mail) => error!(logger, "refused by the server, given up: {}", mail),
        Outcome::Overflow(mail) => error!(logger, "too many mails wait, dropped: {}", mail),
    })
}

#[expect(clippy::disallowed_methods, reason = "the gate lives in real time")]
fn now() -> Moment {
    Moment::now()
}
