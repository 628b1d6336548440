//! Finds the programs of the previous daemon.

pub(crate) mod flight_recorder;
pub(crate) mod kill_runs;
mod leftovers;
pub(crate) mod scan;
pub(crate) mod stash;
