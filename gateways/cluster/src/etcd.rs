//! What is asked of etcd: one connection to one member at a time, and a limit on every answer.
//!
//! A member that does not answer is left for the next one. That is quicker than to balance requests over all members, of
//! which one may hang: a lease is not renewed in time if a third of the attempts waits for that member.

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use gaggled_core::{
    cluster::{
        PublishedState,
        claims::{ClaimWrite, ClaimsInStore},
        exports::Batch,
        sights::StateInStore,
        store::{Applied, Key, Pointer, Session, StateValue},
    },
    config::ClusterConfig,
};

mod claims;
mod orders;
pub mod publication;

/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// After this time without a message a watch is asked whether it is alive.
const PROGRESS: Duration = Duration::from_secs(5);
/// The longest value that is read, in bytes; the longest that a gateway writes has about 2 KiB.
const VALUE_MAX: usize = 8 << 10;
/// How many keys are read at once: etcd takes 128 operations in one transaction.
const READ_MAX: usize = 20;
/// The longest answer, in bytes. A value can have 1.5 MiB, whatever its node has written.
const ANSWER_MAX: usize = 64 << 20;

/// Why etcd cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EtcdError {
    /// A file of the configuration cannot be read.
    #[error("{file} cannot be read ({why}): correct {field} of gaggled.cluster, or let the gateway's user read it")]
    File {
        /// The field that names it.
        field: &'static str,
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// A member does not answer in time.
    #[error("etcd at {url} does not answer within {} s", ANSWER_TIME.as_secs())]
    Silent {
        /// The member.
        url: String,
    },
    /// A member cannot be reached, or refuses.
    #[error("etcd at {url}: {why}{}", cure(.url, .why))]
    Refused {
        /// The member.
        url: String,
        /// Why.
        why: String,
    },
}

impl EtcdError {
    /// Whether the user of the certificate may not do this.
    pub fn is_denied(&self) -> bool {
        self.reason().contains("permission denied")
    }

    /// What is wrong, without the member: all members may refuse alike.
    pub fn reason(&self) -> &str {
        match self {
            Self::File { why, .. } | Self::Refused { why, .. } => why,
            Self::Silent { .. } => "silent",
        }
    }
}

/// What to do about a refusal, if that is known.
fn cure(url: &str, why: &str) -> &'static str {
    let is_closed = why.contains("closed") || why.contains("alert") || why.contains("broken pipe");
    if why.contains("permission denied") {
        ": the user of the certificate needs a role for this, which gaggled_clustergate roles prints"
    } else if why.contains("UnknownIssuer") {
        ": ca of gaggled.cluster is not the authority that has signed its certificate"
    } else if why.contains("NotValidForName") {
        ": its certificate is not for this address"
    } else if why.contains("Expired") {
        ": its certificate has expired"
    } else if is_closed && url.starts_with("https://") {
        ": it may want a certificate that it trusts (cert and key of gaggled.cluster)"
    } else {
        ""
    }
}

/// What TLS needs, read from files.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Credentials {
    /// Reads the files of a configuration.
    ///
    /// # Errors
    ///
    /// One of them cannot be read.
    pub fn read(config: &ClusterConfig) -> Result<Self, EtcdError> {
        let read = |field: &'static str, file: &Option<String>| {
            let Some(file) = file else { return Ok(None) };
            let error = |why: std::io::Error| EtcdError::File { field, file: file.clone(), why: why.to_string() };
            std::fs::read(file).map(Some).map_err(error)
        };
        let (cert, key) = (read("cert", &config.cert)?, read("key", &config.key)?);
        Ok(Self { ca: read("ca", &config.ca)?, identity: cert.zip(key) })
    }
}

/// A change of a key, or what a key has.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The session of a node; `None` if it has none.
    Session(Arc<str>, Option<Session>),
    /// The state of a program.
    State(Arc<str>, Arc<str>, StateInStore),
    /// The configuration for all nodes; `None` if there is none that can be read.
    Current(Option<Pointer>),
    /// The configuration that this node is to try.
    Canary(Option<Pointer>),
    /// A claim, or an order: all are to be read.
    Claim,
}

/// A session as it is in the store, if there is one that can be read, and the revision that wrote it.
pub type SessionInStore = (Option<Session>, i64);

/// Everything that a gateway watches, as it was at a revision.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// What was seen.
    pub seen: Vec<Seen>,
    /// The programs of this node of which there are states.
    pub own: Vec<Arc<str>>,
    /// What this node has said of its configuration.
    pub applied: Option<Applied>,
    /// The keys, each with the revision after which it is to be watched.
    watches: Vec<(String, bool, i64)>,
}

/// A connection to one member.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    url: String,
    site: Arc<str>,
    node: Arc<str>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to a member, as this node of this cluster.
    ///
    /// # Errors
    ///
    /// It cannot be reached, or is not to be trusted.
    pub async fn open(url: &str, site: Arc<str>, node: Arc<str>, credentials: &Credentials) -> Result<Self, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ANSWER_TIME)
            .with_keep_alive(PROGRESS, ANSWER_TIME)
            .with_require_leader(true);
        if url.starts_with("https://") {
            let mut tls = TlsOptions::new();
            tls = match &credentials.ca {
                Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
                None => tls.with_native_roots(),
            };
            if let Some((cert, key)) = &credentials.identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls);
        }
        let client = answered(url, Client::connect([url], Some(options))).await?;
        Ok(Self { client, url: url.to_owned(), site, node })
    }

    /// The member.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks the member for something that it can only answer with a majority of the others.
    ///
    /// # Errors
    ///
    /// It refuses, or does not answer.
    pub async fn check(&self) -> Result<(), EtcdError> {
        let path = Key::Current.path(&self.site);
        self.get(vec![TxnOp::get(path, Some(GetOptions::new().with_keys_only()))]).await.map(drop)
    }

    /// Renews a lease, or asks for one that ends so many seconds after it was renewed for the last time; returns its id.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn renew(&self, lease: Option<i64>, seconds: i64) -> Result<i64, EtcdError> {
        let mut client = self.client.clone();
        if let Some(lease) = lease {
            match answered(&self.url, client.lease_keep_alive(lease)).await {
                Ok(_) => return Ok(lease),
                // It has ended, or was taken away.
                Err(EtcdError::Refused { why, .. }) if why.contains("not found") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answered(&self.url, client.lease_grant(seconds, None)).await?.id())
    }

    /// Ends a lease, and with it the session.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let mut client = self.client.clone();
        answered(&self.url, client.lease_revoke(lease)).await.map(drop)
    }

    /// The session of this node as a majority of the members has it, if it can be read, with the revision that wrote it; 0 if
    /// there is none; and all claims at the same moment, and, if wanted, all sessions, which are as many as there are nodes, and
    /// orders.
    ///
    /// # Errors
    ///
    /// There is no majority in reach, or it does not answer.
    pub async fn own_session(&self, with_sessions: bool) -> Result<(SessionInStore, ClaimsInStore), EtcdError> {
        let prefix = || Some(GetOptions::new().with_prefix());
        let own = TxnOp::get(Key::Alive { node: self.node.clone() }.path(&self.site), None);
        let claims = TxnOp::get(Key::claims(&self.site), prefix());
        let of_groups = [Key::sessions(&self.site), Key::orders(&self.site)].map(|path| TxnOp::get(path, prefix()));
        let operations = [own, claims].into_iter().chain(of_groups.into_iter().filter(|_| with_sessions)).collect();
        let (_, answers) = self.get(operations).await?;
        let found = answers.first().and_then(|kvs| kvs.first());
        let session = found.and_then(|kv| serde_json::from_slice(kv.value()).ok());
        let own = (session, found.map_or(0, KeyValue::mod_revision));
        Ok((own, claims::read(&self.site, answers.iter().skip(1).flatten(), with_sessions)))
    }

    /// Writes states, and, if all are written with it, the session of this node in place of the one that this revision wrote,
    /// with the claims that the node holds; false if the session is another one by now, of a gaggled that has taken its place,
    /// or a claim is.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer: the write may have been carried out.
    pub async fn write(
        &self,
        batch: Batch,
        (session, is_announced): (&Session, bool),
        lease: i64,
        over: i64,
        renewals: &[ClaimWrite],
    ) -> Result<bool, EtcdError> {
        let path =
            |program: &Arc<str>| Key::State { node: self.node.clone(), program: program.clone() }.path(&self.site);
        let alive = Key::Alive { node: self.node.clone() }.path(&self.site);
        let put = |(program, state): &(Arc<str>, Arc<PublishedState>)| {
            let value = StateValue::new(session.session.clone(), state.clone());
            TxnOp::put(path(program), encode(&value), None)
        };
        let mut operations: Vec<TxnOp> = batch.states.iter().map(put).collect();
        operations.extend(batch.withdrawn.iter().map(|program| TxnOp::delete(path(program), None)));
        let mut write = Txn::new();
        if batch.announces {
            let mut unchanged = vec![Compare::mod_revision(alive.clone(), CompareOp::Equal, over)];
            for renewal in renewals {
                unchanged.push(self.is_unchanged(renewal));
                operations.push(self.put_claim(renewal));
            }
            write = write.when(unchanged);
            operations.push(TxnOp::put(alive, encode(session), Some(PutOptions::new().with_lease(lease))));
        } else if is_announced {
            write = write.when([Compare::lease(alive, CompareOp::Equal, lease)]);
        }
        let mut client = self.client.clone();
        Ok(answered(&self.url, client.txn(write.and_then(operations))).await?.succeeded())
    }

    /// Reads all sessions, these states, which states of this node there are, and which configuration is published.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn read(&self, states: Vec<Key>) -> Result<Reading, EtcdError> {
        let mut reading = Reading::default();
        let (sessions, own) = (Key::sessions(&self.site), Key::states_of(&self.site, &self.node));
        let config = [Key::Current, Key::Canary { node: self.node.clone() }].map(|key| key.path(&self.site));
        let applied = Key::Applied { node: self.node.clone() }.path(&self.site);
        let prefix = || Some(GetOptions::new().with_prefix());
        let first = [
            TxnOp::get(sessions.clone(), prefix()),
            TxnOp::get(config[0].clone(), None),
            TxnOp::get(config[1].clone(), None),
            TxnOp::get(applied, None),
            TxnOp::get(own.clone(), Some(GetOptions::new().with_prefix().with_keys_only())),
        ];
        let (revision, mut answers) = self.get(first.into()).await?;
        reading.watches.push((sessions, true, revision + 1));
        reading.watches.push((Key::claims(&self.site), true, revision + 1));
        reading.watches.push((Key::orders(&self.site), true, revision + 1));
        reading.watches.extend(config.map(|path| (path, false, revision + 1)));
        let own_keys = answers.pop().unwrap_or_default();
        let applied = answers.pop().unwrap_or_default();
        reading.applied = applied.first().and_then(|kv| serde_json::from_slice(kv.value()).ok());
        let name = |kv: &KeyValue| Some(kv.key_str().ok()?.strip_prefix(&own)?.into());
        reading.own = own_keys.iter().filter_map(name).collect();
        self.take(&mut reading, answers);
        let paths: Vec<String> = states.iter().map(|key| key.path(&self.site)).collect();
        for paths in paths.chunks(READ_MAX) {
            let (revision, answers) =
                self.get(paths.iter().map(|path| TxnOp::get(path.clone(), None)).collect()).await?;
            reading.watches.extend(paths.iter().map(|path| (path.clone(), false, revision + 1)));
            self.take(&mut reading, answers);
        }
        Ok(reading)
    }

    async fn get(&self, operations: Vec<TxnOp>) -> Result<(i64, Vec<Vec<KeyValue>>), EtcdError> {
        let mut client = self.client.kv_client().max_decoding_message_size(ANSWER_MAX);
        let answer = answered(&self.url, client.txn(Txn::new().and_then(operations))).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let values = answer.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(mut got) => got.take_kvs(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Vec::new(),
        });
        Ok((revision, values.collect()))
    }

    fn take(&self, reading: &mut Reading, answers: Vec<Vec<KeyValue>>) {
        let seen = answers.iter().flatten().filter_map(|kv| self.seen(kv, true));
        reading.seen.extend(seen);
    }

    /// What a key shows. A value that is too long, which would keep the reports about other nodes from the daemon, counts as one
    /// that cannot be read.
    fn seen(&self, kv: &KeyValue, exists: bool) -> Option<Seen> {
        let value = || exists.then_some(kv.value()).filter(|value| value.len() <= VALUE_MAX);
        Some(match Key::parse(&self.site, kv.key_str().ok()?)? {
            Key::Alive { node } => Seen::Session(node, value().and_then(|value| serde_json::from_slice(value).ok())),
            Key::State { node, program } => {
                let read = value().and_then(|value| serde_json::from_slice(value).ok());
                let missing = if exists { StateInStore::Unreadable } else { StateInStore::Missing };
                Seen::State(node, program, read.map_or(missing, StateInStore::Written))
            }
            Key::Current => Seen::Current(value().and_then(|value| serde_json::from_slice(value).ok())),
            Key::Canary { .. } => Seen::Canary(value().and_then(|value| serde_json::from_slice(value).ok())),
            Key::Claim { .. } | Key::Drain { .. } | Key::Move { .. } | Key::Level { .. } | Key::Fence { .. } => {
                Seen::Claim
            }
            Key::Part { .. } | Key::Description { .. } | Key::Applied { .. } => return None,
        })
    }

    /// Watches everything that was read, and calls `tell` with each change. Returns why the watch has ended: then everything has
    /// to be read again.
    pub async fn watch(&self, reading: &Reading, tell: impl Fn(Vec<Seen>)) -> EtcdError {
        match self.watched(reading, tell).await {
            Err(error) => error,
            Ok(why) => EtcdError::Refused { url: self.url.clone(), why },
        }
    }

    async fn watched(&self, reading: &Reading, tell: impl Fn(Vec<Seen>)) -> Result<String, EtcdError> {
        let refused = |error: etcd_client::Error| EtcdError::Refused { url: self.url.clone(), why: cause(&error) };
        let options = |(_, is_prefix, revision): &(String, bool, i64)| {
            let options = WatchOptions::new().with_start_revision(*revision);
            Some(if *is_prefix { options.with_prefix() } else { options })
        };
        let mut watches = reading.watches.iter();
        let Some(first) = watches.next() else { return Ok("there is nothing to watch".to_owned()) };
        let mut client = self.client.watch_client().max_decoding_message_size(ANSWER_MAX);
        let stream = answered(&self.url, client.watch(first.0.clone(), options(first))).await?;
        let (mut requests, mut stream) = stream.split();
        for watch in watches {
            requests.watch(watch.0.clone(), options(watch)).await.map_err(refused)?;
        }
        let mut is_asked = false;
        loop {
            match tokio::time::timeout(PROGRESS, stream.message()).await {
                Ok(Ok(Some(message))) if message.canceled() => {
                    return Ok(format!("the watch was cancelled: {}", message.cancel_reason()));
                }
                Ok(Ok(Some(message))) => {
                    is_asked = false;
                    let seen =
                        |event: &etcd_client::Event| self.seen(event.kv()?, event.event_type() == EventType::Put);
                    let changes: Vec<_> = message.events().iter().filter_map(seen).collect();
                    if !changes.is_empty() {
                        tell(changes);
                    }
                }
                Ok(Ok(None)) => return Ok("the watch was closed".to_owned()),
                Ok(Err(error)) => return Err(refused(error)),
                Err(_) if is_asked => return Ok(format!("the watch is silent for {} s", 2 * PROGRESS.as_secs())),
                Err(_) => {
                    is_asked = true;
                    requests.request_progress().await.map_err(refused)?;
                }
            }
        }
    }
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// The answer of a member, if it comes in time.
async fn answered<T>(url: &str, answer: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, EtcdError> {
    match tokio::time::timeout(ANSWER_TIME, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(EtcdError::Refused { url: url.to_owned(), why: cause(&error) }),
        Err(_) => Err(EtcdError::Silent { url: url.to_owned() }),
    }
}

/// The last of the causes of an error: the others only say that there was one.
fn cause(error: &etcd_client::Error) -> String {
    let (mut last, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        error => (error.to_string(), error.source()),
    };
    while let Some(error) = source {
        last = error.to_string();
        source = error.source();
    }
    last
}
