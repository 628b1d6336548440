//! The mail gateway: follows the events of gaggled, and sends the mails that the alert rules ask for.

use std::time::{Duration, Instant as PointInTime};

use gaggled_actors::clock::Clock;
use gaggled_core::{
    base::{
        ids::{EpochId, Position, ProgramId, Seq},
        time::{Instant, Millis},
    },
    config::SmtpgateConfig,
    graph::Policy,
    protocol::View,
    state::State,
};
use gaggled_gateways::smtp::alert_rules::{Alert, AlertRules, Observation};
use gaggled_gateways::{
    follow::{FollowEvent, Follower},
    smtp::{Composer, DeliveryOutcome, MailError, MailSpool, Outbox, QueuedMail, Report, mails},
};
use serde::Deserialize;
use slog::{Logger, debug, error, info, warn};

/// How long received events may stay unrecorded in the spool. No mail is sent about them before they are recorded.
const FLUSH_DELAY: Millis = Millis(1000);

/// The mail gateway.
#[derive(Debug)]
pub struct MailGateway {
    follower: Follower,
    alert_rules: AlertRules,
    composer: Composer,
    spool: MailSpool,
    outbox: Outbox,
    batch: Millis,
    clock: Clock,
    /// The last event that was received.
    position: Option<Position>,
    /// When the position is written to the spool, if no mail is written before.
    write_at: Option<Instant>,
    logger: Logger,
}

impl MailGateway {
    /// The gateway of a configuration, on a host of this name, which continues at the position in the spool.
    pub fn new(
        config: &SmtpgateConfig,
        host: &str,
        follower: Follower,
        spool: MailSpool,
        logger: Logger,
    ) -> Result<Self, MailError> {
        let clock = Clock::real();
        let (period, batch, now) = (config.period, config.batch, clock.now());
        let alert_rules = match spool.alert_rules() {
            Some(alert_rules) => alert_rules.resume(period, batch, now),
            None => AlertRules::new(period, batch, now),
        };
        Ok(Self {
            follower,
            alert_rules,
            composer: Composer::new(config, host)?,
            outbox: Outbox::new(config, host, spool.clone(), reporter(logger.clone()))?,
            position: spool.position(),
            spool,
            batch,
            clock,
            write_at: None,
            logger,
        })
    }

    /// Works until the process ends.
    pub fn run(mut self) -> ! {
        loop {
            let now = self.clock.now();
            let deadline = self.alert_rules.next_deadline(now).into_iter().chain(self.write_at).min();
            let until =
                deadline.map(|at| moment() + Duration::from_micros(at.as_micros().saturating_sub(now.as_micros())));
            let heard = self.follower.next(until);
            self.hear(heard);
            self.speak();
        }
    }

    fn hear(&mut self, heard: FollowEvent) {
        match heard {
            FollowEvent::Synchronised { missed } => {
                info!(
                    self.logger,
                    "synchronised with gaggled{}",
                    if missed { ", some events were missed" } else { "" }
                );
                if let Some(state) = self.follower.state().cloned() {
                    self.alert_rules.retain(|name| state.graph.programs.values().any(|policy| &*policy.name == name));
                    let is_own = |(_, policy): &(ProgramId, &Policy)| policy.is_here();
                    for (id, _) in state.graph.programs.iter().filter(is_own) {
                        self.observe(&state, id);
                    }
                    self.heard_up_to(Position { epoch: state.epoch, seq: state.seq });
                }
            }
            FollowEvent::Event(_, text) | FollowEvent::Past(text) => self.event(&text),
            FollowEvent::Silent => warn!(self.logger, "no message from gaggled"),
            FollowEvent::Back => info!(self.logger, "gaggled is back"),
            FollowEvent::Garbled(why) => warn!(self.logger, "{}", why),
            FollowEvent::Permits(_) | FollowEvent::Nothing => {}
        }
    }

    /// Uses the state in the event, which is that just after it; the follower's state may be later.
    fn event(&mut self, text: &str) {
        #[derive(Deserialize)]
        struct Header {
            epoch: EpochId,
            seq: Seq,
        }
        let Ok(Header { epoch, seq }) = serde_json::from_str(text) else { return };
        if let Some((program, change)) = Observation::in_event(text, self.clock.now()) {
            debug!(self.logger, "event {} of {}", change.seq, program);
            self.alert_rules.observe(&program, change);
        }
        self.heard_up_to(Position { epoch, seq });
    }

    fn heard_up_to(&mut self, position: Position) {
        if self.position < Some(position) {
            self.position = Some(position);
            self.write_at = self.write_at.or(Some(self.clock.now() + FLUSH_DELAY));
        }
    }

    fn observe(&mut self, state: &State, id: ProgramId) {
        let change = Observation::new(&View::at(state, state.at).program(id), state.epoch, self.clock.now());
        self.alert_rules.observe(&state.graph.programs[id].name, change);
    }

    fn speak(&mut self) {
        let now = self.clock.now();
        let said = self.alert_rules.due(now);
        let written: Vec<QueuedMail> = said.iter().flat_map(|statements| self.compose(statements)).collect();
        if written.is_empty() && self.write_at.is_none_or(|at| at > now) {
            return;
        }
        // The position and the new mails are written to the spool in one step, before any mail is sent.
        let (mails, kept) = self.spool.advance(self.position, &self.alert_rules, written);
        self.write_at = None;
        let report = reporter(self.logger.clone());
        if let Err(error) = kept {
            report(&DeliveryOutcome::SpoolFailed(error.to_string()));
        }
        for mail in mails {
            if let Some(outcome) = self.outbox.send(mail) {
                report(&outcome);
            }
        }
    }

    fn compose(&self, statements: &[Alert]) -> Vec<QueuedMail> {
        match self.composer.compose(statements, self.batch.0 > 0, self.alert_rules.all_ok()) {
            Ok(mail) => {
                let subject = statements.iter().map(|statement| statement.text(", ")).collect::<Vec<_>>().join("; ");
                mails(&subject, &mail)
            }
            Err(why) => {
                error!(self.logger, "{}", why);
                Vec::new()
            }
        }
    }
}

/// Logs the outcome of mails.
fn reporter(logger: Logger) -> Report {
    Box::new(move |outcome| match outcome {
        DeliveryOutcome::Delivered(mail) => info!(logger, "delivered: {}", mail),
        DeliveryOutcome::Postponed(mail, span) => {
            warn!(logger, "not delivered, will be tried again in {} s: {}", span.as_secs(), mail);
        }
        DeliveryOutcome::Refused(mail) => error!(logger, "refused by the server, given up: {}", mail),
        DeliveryOutcome::SpoolFailed(why) => error!(logger, "the ledger cannot be written: {}", why),
        DeliveryOutcome::Overflow(mail) => error!(logger, "too many mails are queued, dropped: {}", mail),
    })
}

#[expect(clippy::disallowed_methods, reason = "the gate lives in real time")]
fn moment() -> PointInTime {
    PointInTime::now()
}
