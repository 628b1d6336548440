//! Interfaces to other processes: the bus and the control channel over nng, and mail. They decide nothing about
//! programs.

pub mod access;
pub mod bus;
pub mod client;
pub mod control;
pub mod follow;
pub mod listen;
mod nng_ffi;
pub mod smtp;
pub mod url;
