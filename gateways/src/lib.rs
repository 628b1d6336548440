//! Other parties: the bus and the control channel over nng, and mail. No decisions about programs are taken here.

pub mod access;
pub mod bus;
pub mod client;
pub mod control;
pub mod follow;
pub mod listen;
mod nng_ffi;
pub mod smtp;
pub mod url;
