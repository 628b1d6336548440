//! Programs of other nodes: what a node publishes about its programs, and what is reported here about those of others.
//!
//! A node publishes the last state of each exported program, not a log. What the states mean for the programs here is
//! decided by [`crate::machine::external`].

pub mod claims;
pub mod exports;
mod external;
pub mod keeper;
mod news;
pub mod orders;
mod publish;
mod published;
pub mod rollout;
pub mod sights;
pub mod store;

pub use self::{
    external::{AT, Assumption, External, RemoteRun, RemoteSource, UnseenReason, split_name},
    news::{News, Observation},
    published::{PublishedState, RemotePhase, Sight},
};
