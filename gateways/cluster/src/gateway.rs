//! The gateway: one loop that hears of the daemon and of etcd, and sends what is due to each.

mod claims;
mod published;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use gaggled_actors::clock::Clock;
use gaggled_core::{
    base::time::{Instant, Millis},
    cluster::{
        Observation, PublishedState,
        claims::{Claims, ClaimsInStore, Wishes},
        exports::Exports,
        rollout::{Outcome, Rollout},
        sights::Sights,
        store::{Claim, Key, Session},
    },
    config::ClusterConfig,
    protocol::Permits,
};
use gaggled_tools::common::endpoints::Urls;
use slog::{Logger, debug, error, info, warn};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};

use crate::{
    daemon_link::{DaemonState, Reporter, configure},
    etcd::{Connection, Credentials, EtcdError, Reading, Seen, SessionInStore},
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
    /// The daemon did not take a report.
    NotReported(String),
    /// A connection is made.
    Connected(u64, Box<Connection>),
    /// The daemon wants this of the claims on its groups.
    Wishes(Wishes),
    /// A lease was renewed, or another one granted.
    Renewed(u64, i64, Found),
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

/// What a majority of etcd has, asked at this time.
#[derive(Debug)]
pub struct Found {
    asked: Instant,
    session: SessionInStore,
    claims: ClaimsInStore,
}

/// Whether the session is being renewed, and the claims read: one at a time, as a second one could ask for a second lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    Idle,
    UnderWay,
    /// And something has happened since it began, so that another one has to follow.
    UnderWayAndAgain,
}

/// The space between two attempts to reach any member, at first and at most.
const RETRY: (Millis, Millis) = (Millis(200), Millis(2000));

/// How long the last states may take when the process is asked to end. The signal can arrive before the events that led to it.
const LAST_WRITES: Millis = Millis(1500);

/// What is logged when the session is left to end.
const NEGLECTED: &str = "gaggled does not leave a group whose permit has ended: it hangs, is stopped or is dead. Its session is \
    not renewed, so that another node takes its groups";

/// The gateway of a node.
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
            Message::Silent => warn!(self.logger, "gaggled is not heard of; its session goes on"),
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

    fn connect(&mut self) {
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
    fn reconnect(&mut self) {
        self.disconnect();
        self.connect_at = Some(self.clock.now());
    }

    fn disconnect(&mut self) {
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

    fn failed(&mut self, error: &EtcdError) {
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

    fn renew(&mut self) {
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
        let is_neglected = self.claims.is_neglected(self.clock.now());
        match (std::mem::replace(&mut self.is_neglected, is_neglected), is_neglected) {
            (false, true) => error!(self.logger, "{}", NEGLECTED),
            (true, false) => info!(self.logger, "gaggled goes on, and so does its session"),
            _ => {}
        }
        if is_neglected && lease.is_none() {
            return;
        }
        self.renewal = Renewal::UnderWay;
        let (clock, with_sessions) = (self.clock, self.claims.is_needed());
        self.ask(|connection| async move {
            let lease = match lease {
                // The claims are read all the same: that gives the daemon its permit if it comes back in time.
                Some(lease) if is_neglected => lease,
                lease => connection.renew(lease, seconds).await?,
            };
            let asked = clock.now();
            let (session, claims) = connection.own_session(with_sessions).await?;
            Ok(Message::Renewed(number, lease, Found { asked, session, claims }))
        });
    }

    fn renewed(&mut self, lease: i64, Found { asked, session: (found, revision), claims }: Found) {
        self.renewals += 1;
        if std::mem::replace(&mut self.renewal, Renewal::Idle) == Renewal::UnderWayAndAgain {
            self.renew_at = Some(self.clock.now());
        }
        // A connection that is of no use for more than a moment does not end the pauses between attempts.
        if self.renewals > 1 {
            self.failures = 0;
        }
        self.lease = Some(lease);
        if std::mem::take(&mut self.reports_again) {
            self.sights.forget_reports();
        }
        self.report(self.is_watching);
        self.rollout.try_again();
        self.roll_out();
        if self.exports.is_announced() && !std::mem::take(&mut self.logged).is_empty() {
            info!(self.logger, "etcd is in reach again, at {}", self.connection.as_ref().map_or("", Connection::url));
        }
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

    fn write(&mut self) {
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
