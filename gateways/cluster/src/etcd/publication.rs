//! What etcd has of published configurations: texts in parts, and pointers to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use etcd_client::{Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, Txn, TxnOp, WatchOptions};
use gaggled_core::cluster::{
    orders::Orders,
    store::{Applied, Claim, Key, Pointer, Session},
};
use sha2::{Digest, Sha256};

use super::{ANSWER_MAX, Connection, EtcdError, answered, cause, claims, encode};

/// How long a part is at most, in bytes: a request to etcd can have 1.5 MiB.
const PART_MAX: usize = 512 << 10;
/// How far a node may be ahead of a store that was restored from a backup, in revisions.
const AHEAD_MAX: u64 = 100_000;
/// How many parts a text has at most.
const PARTS_MAX: u32 = 64;

/// What etcd has about published configurations and who has them.
#[derive(Clone, Debug, Default)]
pub struct Publications {
    /// The configuration for all nodes.
    pub current: Option<Pointer>,
    /// The revision of etcd at which that was written; 0 if there is none.
    pub written_at: i64,
    /// What single nodes are to try.
    pub canaries: BTreeMap<Arc<str>, Pointer>,
    /// The revisions whose texts are there.
    pub revisions: BTreeMap<u64, Pointer>,
    /// What each node has.
    pub applied: BTreeMap<Arc<str>, Applied>,
    /// The nodes that have a session.
    pub sessions: BTreeMap<Arc<str>, Session>,
    /// The claims on groups, each with the revision of etcd that wrote it.
    pub claims: BTreeMap<Arc<str>, (u64, Claim)>,
    /// What operators want.
    pub orders: Orders,
    /// The revision of etcd at which this was read.
    pub read_at: i64,
}

impl Publications {
    /// The number for the next configuration: larger than any that a node could have.
    pub fn next_revision(&self) -> u64 {
        let pointers = self.current.iter().chain(self.canaries.values()).map(|pointer| pointer.revision);
        let published = pointers.chain(self.revisions.keys().copied()).max().unwrap_or(0);
        // A node can write what it likes about itself: what is far beyond everything else does not count.
        let is_likely = |revision: &u64| revision.checked_sub(published).is_none_or(|ahead| ahead <= AHEAD_MAX);
        let applied = self.applied.values().map(|applied| applied.revision).filter(is_likely);
        applied.chain([published]).max().unwrap_or(0).saturating_add(1)
    }

    /// The newest configuration that a node is to have.
    pub fn wanted(&self, node: &str) -> Option<&Pointer> {
        self.current.iter().chain(self.canaries.get(node)).max_by_key(|pointer| pointer.revision)
    }
}

/// The parts of a text, each short enough for one request.
fn parts(text: &str) -> Vec<&str> {
    split(text, PART_MAX)
}

/// A text in parts of at most so many bytes.
pub fn split(text: &str, most: usize) -> Vec<&str> {
    let mut rest = text;
    let mut parts = Vec::new();
    while rest.len() > most {
        let end = (0..=most).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(most);
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

/// A pointer to a text, without its place in time.
pub fn describe(revision: u64, text: &str) -> Pointer {
    let parts = u32::try_from(parts(text).len()).unwrap_or(u32::MAX);
    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
    Pointer::new(revision, format!("{:x}", Sha256::digest(text)), parts, bytes)
}

impl Connection {
    /// The text of a configuration; an inner error says what is wrong with what etcd has.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn fetch(&self, pointer: &Pointer) -> Result<Result<String, String>, EtcdError> {
        let revision = pointer.revision;
        let damaged = |why: &str| Ok(Err(format!("revision {revision} in etcd {why}: publish it again")));
        if pointer.parts > PARTS_MAX {
            return damaged("has too many parts");
        }
        let mut bytes = Vec::new();
        for part in 0..pointer.parts {
            let path = Key::Part { revision, part }.path(&self.site);
            let (_, mut answers) = self.get(vec![TxnOp::get(path, None)]).await?;
            match answers.pop().unwrap_or_default().first() {
                Some(kv) => bytes.extend_from_slice(kv.value()),
                None => return damaged(&format!("has no part {} of {}", part + 1, pointer.parts)),
            }
        }
        if format!("{:x}", Sha256::digest(&bytes)) != pointer.sha256 {
            return damaged("is not the text that was published");
        }
        Ok(String::from_utf8(bytes).map_err(|_| format!("revision {revision} in etcd is not UTF-8: publish it again")))
    }

    /// Writes which configuration this node has.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn write_applied(&self, applied: &Applied) -> Result<(), EtcdError> {
        let path = Key::Applied { node: self.node.clone() }.path(&self.site);
        let mut client = self.client.clone();
        answered(&self.url, client.put(path, encode(applied), None)).await.map(drop)
    }

    /// Reads everything about published configurations but their texts.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn publications(&self) -> Result<Publications, EtcdError> {
        let (prefix, keys) =
            (|| Some(GetOptions::new().with_prefix()), GetOptions::new().with_prefix().with_keys_only());
        let operations = vec![
            TxnOp::get(Key::Current.path(&self.site), None),
            TxnOp::get(Key::canaries(&self.site), prefix()),
            TxnOp::get(Key::all_applied(&self.site), prefix()),
            TxnOp::get(Key::sessions(&self.site), prefix()),
            TxnOp::get(Key::claims(&self.site), prefix()),
            TxnOp::get(Key::orders(&self.site), prefix()),
            TxnOp::get(Key::revisions(&self.site), Some(keys)),
        ];
        let (read_at, answers) = self.get(operations).await?;
        let mut found = Publications { read_at, ..Publications::default() };
        let mut described = BTreeSet::new();
        for kv in answers.iter().flatten() {
            let value = kv.value();
            match Key::parse(&self.site, kv.key_str().unwrap_or_default()) {
                Some(Key::Current) => {
                    (found.current, found.written_at) = (serde_json::from_slice(value).ok(), kv.mod_revision());
                }
                Some(Key::Canary { node }) => found.canaries.extend(read(node, value)),
                Some(Key::Applied { node }) => found.applied.extend(read(node, value)),
                Some(Key::Alive { node }) => found.sessions.extend(read(node, value)),
                Some(Key::Description { revision }) => drop(described.insert(revision)),
                Some(Key::Claim { group }) => {
                    let revision = claims::revision(kv);
                    found.claims.extend(read(group, value).map(|(group, claim)| (group, (revision, claim))));
                }
                Some(Key::Part { .. } | Key::State { .. }) | None => {}
                Some(order) => claims::take_order(&mut found.orders, order, kv),
            }
        }
        let described: Vec<u64> = described.into_iter().collect();
        for revisions in described.chunks(super::READ_MAX) {
            let path = |revision: &u64| Key::Description { revision: *revision }.path(&self.site);
            let (_, answers) =
                self.get(revisions.iter().map(|revision| TxnOp::get(path(revision), None)).collect()).await?;
            let pointers = answers.iter().flatten().filter_map(|kv| serde_json::from_slice::<Pointer>(kv.value()).ok());
            found.revisions.extend(pointers.map(|pointer| (pointer.revision, pointer)));
        }
        Ok(found)
    }

    /// Writes the text of a new revision; false if there is such a revision already, of another publisher.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn write_text(&self, pointer: &Pointer, text: &str) -> Result<bool, EtcdError> {
        let revision = pointer.revision;
        let description = Key::Description { revision }.path(&self.site);
        let mut client = self.client.clone();
        let is_new = Compare::create_revision(description.clone(), CompareOp::Equal, 0);
        let first = Txn::new().when([is_new]).and_then([TxnOp::put(description, encode(pointer), None)]);
        if !answered(&self.url, client.txn(first)).await?.succeeded() {
            return Ok(false);
        }
        for (part, text) in (0..).zip(parts(text)) {
            answered(&self.url, client.put(Key::Part { revision, part }.path(&self.site), text, None)).await?;
        }
        Ok(true)
    }

    /// Says that all nodes are to have this configuration, and that none is to try another; false if another one was published
    /// since the publications were read.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer: it may have been published.
    pub async fn publish(&self, pointer: &Pointer, known: &Publications) -> Result<bool, EtcdError> {
        let current = Key::Current.path(&self.site);
        let canaries = DeleteOptions::new().with_prefix();
        let publish =
            Txn::new().when([Compare::mod_revision(current.clone(), CompareOp::Equal, known.written_at)]).and_then([
                TxnOp::put(current, encode(pointer), None),
                TxnOp::delete(Key::canaries(&self.site), Some(canaries)),
            ]);
        let mut client = self.client.clone();
        Ok(answered(&self.url, client.txn(publish)).await?.succeeded())
    }

    /// Says that these nodes are to try a configuration.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn publish_to(&self, nodes: &BTreeSet<Arc<str>>, pointer: &Pointer) -> Result<(), EtcdError> {
        let mut client = self.client.clone();
        for node in nodes {
            let path = Key::Canary { node: node.clone() }.path(&self.site);
            answered(&self.url, client.put(path, encode(pointer), None)).await?;
        }
        Ok(())
    }

    /// Deletes the text of a revision.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn delete_text(&self, revision: u64) -> Result<(), EtcdError> {
        let prefix = Key::texts(&self.site, revision);
        let mut client = self.client.clone();
        answered(&self.url, client.delete(prefix, Some(DeleteOptions::new().with_prefix()))).await.map(drop)
    }

    /// Watches what nodes say of their configurations from a revision of etcd on, until `tell` returns true.
    ///
    /// # Errors
    ///
    /// The member refuses, or the watch ends.
    pub async fn watch_applied(
        &self,
        from: i64,
        mut tell: impl FnMut(Arc<str>, Applied) -> bool,
    ) -> Result<(), EtcdError> {
        let tell = |key: Key, kv: &KeyValue| {
            let Key::Applied { node } = key else { return false };
            read(node, kv.value()).is_some_and(|(node, applied)| tell(node, applied))
        };
        self.watch_until(Key::all_applied(&self.site), from, tell).await
    }

    /// Watches claims, each with the revision that writes it, from a revision of etcd on, until `tell` returns true.
    ///
    /// # Errors
    ///
    /// The member refuses, or the watch ends.
    pub async fn watch_claims(
        &self,
        from: i64,
        mut tell: impl FnMut(Arc<str>, u64, Claim) -> bool,
    ) -> Result<(), EtcdError> {
        let tell = |key: Key, kv: &KeyValue| {
            let Key::Claim { group } = key else { return false };
            read(group, kv.value()).is_some_and(|(group, claim)| tell(group, claims::revision(kv), claim))
        };
        self.watch_until(Key::claims(&self.site), from, tell).await
    }

    /// Watches the keys that begin with this, until `tell` returns true of what is written.
    async fn watch_until(
        &self,
        prefix: String,
        from: i64,
        mut tell: impl FnMut(Key, &KeyValue) -> bool,
    ) -> Result<(), EtcdError> {
        let refused = |why: String| EtcdError::Refused { url: self.url.clone(), why };
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let mut client = self.client.watch_client().max_decoding_message_size(ANSWER_MAX);
        let mut stream = answered(&self.url, client.watch(prefix, Some(options))).await?;
        while let Some(message) = stream.message().await.map_err(|error| refused(cause(&error)))? {
            if message.canceled() {
                return Err(refused(format!("the watch was cancelled: {}", message.cancel_reason())));
            }
            let puts = message.events().iter().filter(|event| event.event_type() == EventType::Put);
            for kv in puts.filter_map(etcd_client::Event::kv) {
                let key = kv.key_str().ok().and_then(|path| Key::parse(&self.site, path));
                if key.is_some_and(|key| tell(key, kv)) {
                    return Ok(());
                }
            }
        }
        Err(refused("the watch was closed".to_owned()))
    }
}

fn read<T: serde::de::DeserializeOwned>(node: Arc<str>, value: &[u8]) -> Option<(Arc<str>, T)> {
    Some((node, serde_json::from_slice(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_split_between_characters() {
        assert_eq!(split("aäb", 2), ["a", "ä", "b"]);
        assert_eq!(split("", 2), [""]);
        assert_eq!(describe(1, "abc").sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn the_next_revision_is_larger_than_any_that_a_node_could_have() {
        let mut known = Publications::default();
        assert_eq!(known.next_revision(), 1);
        known.current = Some(describe(5, ""));
        known.applied.insert("n1".into(), Applied::new(8, None));
        assert_eq!(known.next_revision(), 9, "a store that was restored from a backup");
    }
}
