//! The rules of gaggled in virtual time: one seed is one world.
//!
//! [`world`] draws a system, its faults and its operators from a seed. [`scheduler`] runs the machines of the core on
//! it, in any order that the real actors could produce; [`actix`] runs the real actors on it. [`crash`] kills the
//! daemon. [`invariants`] checks the runs, and [`operators`] the commands, without the code under test. [`mutants`] are
//! deliberate defects, which the invariants must find. [`shrink`] makes a failing world small, and [`script`] is its
//! text.

pub mod actix;
pub mod cluster;
pub mod crash;
pub mod host;
pub mod invariants;
pub mod mutants;
pub mod operators;
pub mod random;
pub mod scheduler;
pub mod script;
pub mod shrink;
pub mod timer_wheel;
pub mod world;
