//! Ids, times, sizes, texts and the random numbers of the simulator: what every other module may use.

pub mod bytes;
pub mod ids;
pub mod random;
pub mod text;
pub mod time;
