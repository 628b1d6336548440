//! The gateway: one loop that hears of the daemon and of etcd, and sends what is due to each.

mod claims;
mod connection;
mod published;
mod session;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use gaggled_actors::clock::Clock;
use gaggled_core::{
    base::time::{Instant, Millis},
    cluster::{
        Observation, PublishedState,
        claims::{Claims, Wishes},
        exports::Exports,
        rollout::{Outcome, Rollout},
        sights::Sights,
        store::{Key, Session},
    },
    config::ClusterConfig,
    protocol::Permits,
};
use gaggled_tools::common::endpoints::Urls;
use slog::{Logger, debug, warn};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};

use self::{
    connection::RETRY,
    session::{Found, Renewal},
};
use crate::{
    daemon_link::{DaemonState, Reporter, configure},
    etcd::{Connection, Credentials, EtcdError, Reading, Seen},
};

/// What the gateway hears. Results of requests to etcd have the number of their connection, so that those of an earlier one
/// are dropped.
#[derive(Debug)]
pub enum Message {
    /// There is a daemon, or another one.
    Daemon(DaemonState),
    /// An exported program has another state.
    Changed(Arc<str>, PublishedState),
    /// Until when the daemon may run the groups that it holds, as it says itself.
    Permits(Permits),
    /// Nothing is heard of the daemon.
    Silent,
    /// Something is heard of it again.
    Back,
    /// The daemon did not take a report.
    NotReported(String),
    /// A connection is made.
    Connected(u64, Box<Connection>),
    /// The daemon wants this of the claims on its groups.
    Wishes(Wishes),
    /// A lease was renewed, or another one granted, unless the session is left to end.
    Renewed(u64, Option<i64>, Found),
    /// Claims were written; false if one of them is another by now.
    Claimed(u64, bool),
    /// The user of the certificate may not write this: everything else goes on.
    Denied(u64, EtcdError),
    /// Everything was read.
    Read(u64, Reading),
    /// A watch shows changes.
    Shown(u64, Vec<Seen>),
    /// The text of the configuration of this revision; an inner error says what is wrong with it.
    Fetched(u64, u64, Result<String, String>),
    /// What became of the configuration of this revision.
    Configured(u64, Outcome),
    /// What this node says of its configuration was written.
    Reported(u64),
    /// The write of this number was carried out; false if this node has another session by now.
    Written(u64, u64, bool),
    /// The process was asked to end.
    Terminated,
    /// The daemon is about to stop this process, and everything that it has told before has been heard.
    Stopping {
        /// Whether the node ends with it.
        for_good: bool,
    },
    /// A request failed, or the watch has ended.
    Failed(u64, EtcdError),
}

/// How long the last states may take when the process is asked to end. The signal can arrive before the events that led to it.
const LAST_WRITES: Millis = Millis(1500);

/// The gateway of a node.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Gateway {
    config: ClusterConfig,
    site: Arc<str>,
    node: Arc<str>,
    host: String,
    credentials: Credentials,
    exports: Exports,
    sights: Sights,
    rollout: Rollout,
    claims: Claims,
    journal: Option<Arc<str>>,
    urls: Urls,
    reporter: Reporter,
    messages: UnboundedSender<Message>,
    clock: Clock,
    logger: Logger,
    /// The number of the present connection.
    number: u64,
    connection: Option<Connection>,
    /// The member that is tried next.
    next_member: usize,
    failures: u32,
    lease: Option<i64>,
    /// The session that is, or will be, written.
    session: Option<Session>,
    /// The revision that wrote the session that is in etcd; 0 if there is none.
    session_revision: i64,
    /// When the session was last written.
    announced_at: Instant,
    /// What is asked of etcd over this connection.
    tasks: JoinSet<()>,
    /// How often the session was renewed over this connection.
    renewals: u32,
    renewal: Renewal,
    /// Whether a watch is open, so that what is seen is the present.
    is_watching: bool,
    /// Whether nothing is heard of the daemon.
    is_silent: bool,
    /// Whether the session is left to end, because the daemon does not leave a group.
    is_neglected: bool,
    /// Whether the daemon has not taken a report, and everything is to be reported again.
    reports_again: bool,
    /// Until when what is left is written, once the process was asked to end.
    ends_at: Option<Instant>,
    /// Whether everything is heard that the daemon told before it asked; and whether the node ends.
    has_heard_all: Option<bool>,
    connect_at: Option<Instant>,
    renew_at: Option<Instant>,
    write_at: Option<Instant>,
    /// What has been logged since everything was well.
    logged: BTreeSet<String>,
    /// Since when the session of this node has been that of another gaggled.
    conflict_since: Option<Instant>,
}

impl Gateway {
    /// The gateway of a node.
    pub fn new(
        config: ClusterConfig,
        host: String,
        credentials: Credentials,
        (urls, reporter, messages): (Urls, Reporter, UnboundedSender<Message>),
        logger: Logger,
    ) -> Self {
        let clock = Clock::real();
        let node: Arc<str> = config.node.clone().unwrap_or_else(|| host.clone()).into();
        Self {
            site: config.name.as_str().into(),
            claims: Claims::new(node.clone()),
            sights: Sights::new(node.clone()),
            node,
            config,
            host,
            credentials,
            exports: Exports::default(),
            rollout: Rollout::default(),
            journal: None,
            urls,
            reporter,
            messages,
            logger,
            number: 0,
            connection: None,
            next_member: 0,
            failures: 0,
            lease: None,
            session: None,
            session_revision: 0,
            announced_at: Instant::default(),
            tasks: JoinSet::new(),
            renewals: 0,
            renewal: Renewal::Idle,
            is_watching: false,
            is_silent: false,
            is_neglected: false,
            reports_again: false,
            ends_at: None,
            has_heard_all: None,
            connect_at: Some(clock.now()),
            renew_at: None,
            write_at: None,
            clock,
            logged: BTreeSet::new(),
            conflict_since: None,
        }
    }

    /// Works until the process ends.
    pub async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        loop {
            let deadline = [self.connect_at, self.renew_at, self.write_at, self.ends_at].into_iter().flatten().min();
            let now = self.clock.now();
            let span = |at: Instant| Duration::from_micros(at.as_micros().saturating_sub(now.as_micros()));
            let wait = deadline.map_or(Duration::MAX, span);
            match tokio::time::timeout(wait, messages.recv()).await {
                Ok(Some(message)) => self.hear(message),
                Ok(None) => return,
                Err(_) => {}
            }
            self.ring();
            let is_released = self.has_heard_all != Some(true) || self.claims.is_idle();
            let is_done = self.has_heard_all.is_some() && self.exports.is_idle() && is_released;
            if self.ends_at.is_some_and(|at| is_done || at <= self.clock.now()) {
                return Box::pin(self.end()).await;
            }
        }
    }

    /// Ends the session if the node ends, so that the others need not wait until it is over.
    async fn end(self) {
        if let (Some(true), Some(connection), Some(lease)) = (self.has_heard_all, self.connection, self.lease)
            && let Err(error) = connection.revoke(lease).await
        {
            warn!(self.logger, "the session ends by itself: {}", error);
        }
    }

    /// Does what is due.
    fn ring(&mut self) {
        let now = self.clock.now();
        let is_due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if is_due(&mut self.connect_at) {
            self.connect();
        }
        if is_due(&mut self.renew_at) {
            self.renew();
        }
        if is_due(&mut self.write_at) {
            self.write();
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Daemon(found) => self.daemon_found(found),
            Message::Changed(program, state) => {
                self.sights.own(program.clone(), state.clone());
                self.report(false);
                self.exports.change(program, state);
                self.write();
            }
            Message::Permits(permits) => self.claims.permitted(permits),
            Message::Silent => {
                self.is_silent = true;
                warn!(self.logger, "gaggled is not heard of");
            }
            Message::Back => self.is_silent = false,
            Message::NotReported(why) => {
                if !self.reports_again {
                    warn!(self.logger, "gaggled has not taken a report: {}", why);
                }
                self.reports_again = true;
                self.renew_at = self.renew_at.map(|at| at.min(self.clock.now() + RETRY.1));
            }
            Message::Connected(number, connection) if number == self.number => {
                self.connection = Some(*connection);
                self.renew();
                self.read();
            }
            Message::Wishes(wishes) => {
                if self.claims.wish(wishes) {
                    self.renew();
                }
            }
            Message::Renewed(number, lease, found) if number == self.number => self.renewed(lease, found),
            // What was in the way of a claim shows itself with the next renewal, or by the watch.
            Message::Claimed(number, true) if number == self.number => self.renew(),
            Message::Denied(number, error) if number == self.number => {
                if self.logged.insert(error.reason().to_owned()) {
                    warn!(self.logger, "{}", error);
                }
            }
            Message::Read(number, reading) if number == self.number => self.was_read(reading),
            Message::Shown(number, changes) if number == self.number => {
                self.take(changes);
                self.report(false);
                self.roll_out();
            }
            Message::Written(number, batch, done) if number == self.number => {
                let was_announced = self.exports.is_announced();
                self.exports.written(batch, done);
                if !was_announced && self.exports.is_announced() {
                    self.announced_at = self.clock.now();
                }
                if !done || !was_announced && self.claims.is_needed() {
                    self.renew();
                }
                self.write();
            }
            Message::Fetched(number, revision, text) if number == self.number => match text {
                Ok(text) => {
                    if let Err(error) = configure(&self.urls, revision, text, self.messages.clone()) {
                        self.configured(revision, Outcome::Refused(error.to_string()));
                    }
                }
                Err(why) => self.configured(revision, Outcome::Refused(why)),
            },
            Message::Configured(revision, outcome) => self.configured(revision, outcome),
            Message::Failed(number, error) if number == self.number => self.failed(&error),
            Message::Terminated => self.ends_at = Some(self.clock.now() + LAST_WRITES),
            Message::Stopping { for_good } => self.has_heard_all = Some(for_good),
            // Of an earlier connection.
            Message::Connected(..)
            | Message::Renewed(..)
            | Message::Claimed(..)
            | Message::Denied(..)
            | Message::Read(..)
            | Message::Shown(..)
            | Message::Written(..)
            | Message::Fetched(..)
            | Message::Reported(..)
            | Message::Failed(..) => {}
        }
    }

    fn daemon_found(&mut self, found: DaemonState) {
        debug!(self.logger, "gaggled is there"; "exported" => found.exports.len(), "external" => found.externals.len());
        self.journal = Some(found.journal);
        self.rollout.daemon_has(found.published);
        self.claims.wish(found.wishes);
        self.sights.set_own(found.exports.iter().cloned());
        self.exports.replace(found.exports);
        let before = self.sights.keys();
        self.sights.set_externals(found.externals);
        if self.sights.keys() == before {
            self.report(self.is_watching);
        } else {
            // Other keys are to be watched.
            self.reconnect();
        }
        if (self.session.is_none() || self.claims.is_needed()) && self.connection.is_some() {
            self.renew();
        }
        self.write();
        self.roll_out();
    }

    /// Sends a request to etcd, and its result to this loop.
    fn ask<F>(&mut self, request: impl FnOnce(Connection) -> F)
    where
        F: Future<Output = Result<Message, EtcdError>> + Send + 'static,
    {
        let Some(connection) = self.connection.clone() else { return };
        let (number, messages) = (self.number, self.messages.clone());
        let request = request(connection);
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let message = request.await.unwrap_or_else(|error| Message::Failed(number, error));
            let _ = messages.send(message);
        });
    }

    fn read(&mut self) {
        let number = self.number;
        let is_state = |key: &Key| matches!(key, Key::State { .. });
        let keys: Vec<Key> = self.sights.keys().into_iter().filter(is_state).collect();
        self.ask(|connection| async move { Ok(Message::Read(number, connection.read(keys).await?)) });
    }

    fn was_read(&mut self, reading: Reading) {
        self.exports.found_in_store(reading.own.iter().cloned());
        self.take(reading.seen.clone());
        self.sights.read();
        self.rollout.read(reading.applied.clone());
        self.is_watching = true;
        self.report(true);
        self.write();
        self.roll_out();
        let (number, messages) = (self.number, self.messages.clone());
        self.ask(|connection| async move {
            let tell = |changes| drop(messages.send(Message::Shown(number, changes)));
            Err(connection.watch(&reading, tell).await)
        });
    }

    fn take(&mut self, changes: Vec<Seen>) {
        let mut reads_claims = false;
        for seen in changes {
            reads_claims |= matches!(seen, Seen::Session(..) | Seen::Claim);
            match seen {
                Seen::Claim => {}
                Seen::Session(node, session) => self.sights.session(&node, session.map(|session| session.session)),
                Seen::State(node, program, state) => self.sights.state(&node, &program, state),
                Seen::Current(pointer) => self.rollout.current(pointer),
                Seen::Canary(pointer) => self.rollout.canary(pointer),
            }
        }
        if reads_claims && (self.claims.is_needed() || self.sights.follows_groups()) {
            self.renew();
        }
    }

    /// Reports what has changed, and, if wanted, that the cluster is in reach.
    fn report(&mut self, is_in_reach: bool) {
        let contact = is_in_reach.then_some(Observation::Contact);
        let news: Vec<Observation> = self.sights.take_news().into_iter().chain(contact).collect();
        if !news.is_empty() {
            self.reporter.report(news);
        }
    }
}
