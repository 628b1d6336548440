//! The cluster gateway: it publishes the states of exported programs to etcd, and reports to its gaggled how programs of other
//! nodes are seen there.
//!
//! It decides nothing. What it writes, and when, is said by [`Exports`](gaggled_core::cluster::exports::Exports); what it sees,
//! by [`Sights`](gaggled_core::cluster::sights::Sights); which published configuration it takes, by
//! [`Rollout`](gaggled_core::cluster::rollout::Rollout); what it reads and writes of claims on groups, by
//! [`Claims`](gaggled_core::cluster::claims::Claims); what follows from all that, by the machines of the daemon. It runs as a
//! program of gaggled, so that its session in etcd survives every reload, upgrade and crash of the daemon, and the daemon
//! needs no gRPC.
//!
//! ```text
//! daemon --- events ---> daemon_link ---\                 /--- etcd ---> a member of etcd
//!    ^                                   >--- gateway ---<
//!    \-- observe <------ reporter <-----/                 \--- Exports, Sights, Rollout, Claims (core)
//! ```
//!
//! [`administrator`] has the commands for people.

pub mod administrator;
pub mod daemon_link;
pub mod etcd;
pub mod gateway;
pub mod roles;
