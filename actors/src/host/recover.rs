//! Finds the programs of the previous daemon.

pub(crate) mod flight_recorder;
mod leftovers;
pub(crate) mod scan;
pub(crate) mod stash;
