//! What etcd has of claims.

use std::collections::BTreeMap;

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use gaggled_core::cluster::{
    claims::{ClaimWrite, ClaimsInStore},
    store::{Claim, Key},
};

use super::{Connection, EtcdError, VALUE_MAX, answered, encode};

/// The sessions and claims in these keys. A session that cannot be read counts as none, and a claim that cannot be read as one of
/// another node, which is never overwritten.
pub(super) fn read<'a>(site: &str, kvs: impl Iterator<Item = &'a KeyValue>, with_sessions: bool) -> ClaimsInStore {
    let (mut sessions, mut claims) = (BTreeMap::new(), BTreeMap::new());
    for kv in kvs {
        let value = Some(kv.value()).filter(|value| value.len() <= VALUE_MAX);
        match Key::parse(site, kv.key_str().unwrap_or_default()) {
            Some(Key::Alive { node }) => {
                let session = value.and_then(|value| serde_json::from_slice(value).ok());
                sessions.extend(session.map(|session| (node, session)));
            }
            Some(Key::Claim { group }) => {
                let revision = u64::try_from(kv.mod_revision()).unwrap_or_default();
                let claim: Option<Claim> = value.and_then(|value| serde_json::from_slice(value).ok());
                // Sessions are named after their leases.
                let claim = claim.filter(|claim| lease(&claim.session) != 0).unwrap_or_else(Claim::unreadable);
                claims.insert(group, (revision, claim));
            }
            _ => {}
        }
    }
    ClaimsInStore { sessions: with_sessions.then_some(sessions), claims }
}

/// The lease of a session, which is named after it.
fn lease(session: &str) -> i64 {
    i64::from_str_radix(session, 16).unwrap_or_default()
}

impl Connection {
    pub(super) fn put_claim(&self, write: &ClaimWrite) -> TxnOp {
        TxnOp::put(Key::Claim { group: write.group.clone() }.path(&self.site), encode(&write.claim), None)
    }

    /// Whether nothing has changed a claim since it was read.
    pub(super) fn is_unchanged(&self, write: &ClaimWrite) -> Compare {
        let path = Key::Claim { group: write.group.clone() }.path(&self.site);
        Compare::mod_revision(path, CompareOp::Equal, i64::try_from(write.over).unwrap_or(i64::MAX))
    }

    /// Writes a claim if it has not changed, this node has still this session, and the one who had it does not come back; whether
    /// it was written.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer: it may have been written.
    pub async fn claim(&self, write: &ClaimWrite, own_lease: i64) -> Result<bool, EtcdError> {
        let alive = |node| Key::Alive { node }.path(&self.site);
        let own = Compare::lease(alive(self.node.clone()), CompareOp::Equal, own_lease);
        let gone = write
            .absent
            .as_ref()
            .map(|(node, session)| Compare::lease(alive(node.clone()), CompareOp::NotEqual, lease(session)));
        let conditions: Vec<Compare> = [self.is_unchanged(write), own].into_iter().chain(gone).collect();
        let mut client = self.client.clone();
        let claim = Txn::new().when(conditions).and_then([self.put_claim(write)]);
        Ok(answered(&self.url, client.txn(claim)).await?.succeeded())
    }
}
