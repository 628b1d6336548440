//! What etcd has of claims, and of the orders of operators about them.

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use gaggled_core::cluster::{
    claims::{ClaimWrite, ClaimsInStore},
    orders::{Order, Orders},
    store::{Claim, Key},
};

use super::{Connection, EtcdError, VALUE_MAX, answered, encode};

/// The sessions, claims and orders in these keys. A session or an order that cannot be read counts as none, and a claim that
/// cannot be read as one of another node, which is never overwritten.
pub(super) fn read<'a>(site: &str, kvs: impl Iterator<Item = &'a KeyValue>, with_sessions: bool) -> ClaimsInStore {
    let mut found = ClaimsInStore { sessions: with_sessions.then(Default::default), ..ClaimsInStore::default() };
    for kv in kvs {
        let Some(key) = Key::parse(site, kv.key_str().unwrap_or_default()) else { continue };
        let value = Some(kv.value()).filter(|value| value.len() <= VALUE_MAX);
        match key {
            Key::Alive { node } => {
                let session = value.and_then(|value| serde_json::from_slice(value).ok());
                if let Some(sessions) = &mut found.sessions {
                    sessions.extend(session.map(|session| (node, session)));
                }
            }
            Key::Claim { group } => {
                let claim: Option<Claim> = value.and_then(|value| serde_json::from_slice(value).ok());
                // Sessions are named after their leases.
                let claim = claim.filter(|claim| lease(&claim.session) != 0).unwrap_or_else(Claim::unreadable);
                // A node that writes nonsense must not make all orders old.
                let claim = Claim { level_order: claim.level_order.min(revision(kv)), ..claim };
                found.claims.insert(group, (revision(kv), claim));
            }
            key => take_order(&mut found.orders, key, kv),
        }
    }
    found
}

/// Takes the value of a key if it is an order.
pub(super) fn take_order(orders: &mut Orders, key: Key, kv: &KeyValue) {
    if !matches!(key, Key::Drain { .. } | Key::Move { .. } | Key::Level { .. } | Key::Fence { .. }) {
        return;
    }
    let order: Option<Order> =
        Some(kv.value()).filter(|v| v.len() <= VALUE_MAX).and_then(|v| serde_json::from_slice(v).ok());
    match (key, order.map(|order| order.of)) {
        (Key::Drain { node }, Some(_)) => drop(orders.drained.insert(node)),
        (Key::Move { group }, Some(Some(to))) => drop(orders.moves.insert(group, (revision(kv), to))),
        (Key::Level { group }, Some(Some(level))) => drop(orders.levels.insert(group, (revision(kv), level))),
        (Key::Fence { node }, Some(Some(session))) => drop(orders.fenced.insert(node, session)),
        _ => {}
    }
}

/// The revision that has written a key.
pub(super) fn revision(kv: &KeyValue) -> u64 {
    u64::try_from(kv.mod_revision()).unwrap_or_default()
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
