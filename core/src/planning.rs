//! Previews: what another configuration would change, and what a failure would cause.

pub mod plan;
pub mod simulate;
