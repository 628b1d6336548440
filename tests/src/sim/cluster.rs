//! Several nodes in virtual time, with a store between them that fails as etcd does.
//!
//! Each node is a [`Simulation`](super::scheduler::Simulation) with its own journal, order of messages and crashes. Its
//! cluster gateway runs what the real one runs, [`Exports`](gaggled_core::cluster::exports) and
//! [`Sights`](gaggled_core::cluster::sights). [`world`] draws the nodes and the faults from a seed, [`store`] models etcd,
//! [`network`] carries messages between gateways and the store, and [`invariants`] checks the result.

mod claims;
mod gateways;
pub mod invariants;
mod keeper;
pub mod mutants;
pub mod network;
pub mod store;
pub mod world;
