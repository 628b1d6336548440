//! Orders of operators, and what is deleted for them.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp, TxnOpResponse};
use gaggled_core::cluster::{orders::Order, store::Key};

use super::{Connection, EtcdError, answered, encode};

impl Connection {
    /// Writes an order; the revision at which it is in etcd.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn order(&self, key: &Key, order: &Order) -> Result<u64, EtcdError> {
        let mut client = self.client.clone();
        let written = answered(&self.url, client.put(key.path(&self.site), encode(order), None)).await?;
        let revision = written.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(u64::try_from(revision).unwrap_or_default())
    }

    /// Deletes an order; whether there was one.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn withdraw(&self, key: &Key) -> Result<bool, EtcdError> {
        let mut client = self.client.clone();
        Ok(answered(&self.url, client.delete(key.path(&self.site), None)).await?.deleted() > 0)
    }

    /// Deletes what a node has written, and the orders about it; how many keys, `None` if it has a session.
    ///
    /// # Errors
    ///
    /// The member refuses, or does not answer.
    pub async fn forget(&self, node: &Arc<str>) -> Result<Option<i64>, EtcdError> {
        let path = |key: Key| key.path(&self.site);
        let alive = path(Key::Alive { node: node.clone() });
        let own = [
            Key::Applied { node: node.clone() },
            Key::Canary { node: node.clone() },
            Key::Drain { node: node.clone() },
            Key::Fence { node: node.clone() },
        ];
        let states = TxnOp::delete(Key::states_of(&self.site, node), Some(DeleteOptions::new().with_prefix()));
        let operations = own.into_iter().map(|key| TxnOp::delete(path(key), None)).chain([states]).collect::<Vec<_>>();
        let delete = Txn::new().when([Compare::create_revision(alive, CompareOp::Equal, 0)]).and_then(operations);
        let mut client = self.client.clone();
        let answer = answered(&self.url, client.txn(delete)).await?;
        let count = |answer: TxnOpResponse| match answer {
            TxnOpResponse::Delete(done) => done.deleted(),
            TxnOpResponse::Get(_) | TxnOpResponse::Put(_) | TxnOpResponse::Txn(_) => 0,
        };
        Ok(answer.succeeded().then(|| answer.op_responses().into_iter().map(count).sum()))
    }
}
