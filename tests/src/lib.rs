//! The simulator of gaggled's rules, and the harness of the end-to-end tests.

pub mod faults;
pub mod fuzz;
pub mod harness;
pub mod import_harness;
pub mod modules;
pub mod scenario;
pub mod sim;
