//! The simulator of gaggled's rules, and what the end-to-end tests share.

pub mod faults;
pub mod fuzz;
pub mod harness;
pub mod modules;
pub mod script;
pub mod seeds;
pub mod sim;
