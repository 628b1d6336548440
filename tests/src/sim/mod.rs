//! The rules of gaggled in virtual time: one seed is one world.
//!
//! [`world`] draws a system, its misfortunes and its operators from a seed. [`scheduler`] runs the machines of the core
//! on it, in any order that the real actors could see; [`actix`] runs the real actors on it. [`crash`] lets the daemon die. [`invariants`] watches
//! both, and [`operators`] their commands, without using the code that it checks. [`mutants`] are defects on purpose, which the invariants must find. [`shrink`] makes a failing world small, and
//! [`script`] is its text.

pub mod actix;
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
