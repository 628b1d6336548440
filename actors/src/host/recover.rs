//! What a daemon finds of the programs of the daemon before it.

pub(crate) mod flight_recorder;
mod leftovers;
pub(crate) mod scan;
pub(crate) mod stash;
