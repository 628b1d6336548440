//! What would happen: with another configuration, or if something failed.

pub mod plan;
pub mod simulate;
