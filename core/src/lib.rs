//! The rules of gaggled: what the state of a system of programs is, and what should happen next.
//!
//! Everything here is pure: bytes, numbers and `now` come in, events and requests go out. There is no clock, no
//! thread, no file and no socket in this crate, so the same rules run in the daemon, in every tool that follows it,
//! and in the simulator.
//!
//! The modules, in reading order, which follows the path of an event:
//!
//! | module | what |
//! |---|---|
//! | [`base`] | ids, times, sizes |
//! | [`process`] | how processes start and end, as the kernel reports it |
//! | [`config`] | reads a configuration file, and reports its errors |
//! | [`graph`] | programs, dependencies and groups of a configuration |
//! | [`event`] | what can happen |
//! | [`state`] | the one fold over events |
//! | [`journal`] | admits and numbers events; segments, recovery after a crash, replicas, the audit |
//! | [`machine`] | the machines that propose events and ask a host for effects |
//! | [`control`] | what commands of operators mean |
//! | [`host`] | the interface to the owner of the processes |
//! | [`planning`] | what another configuration would change, and what a failure would do |
//! | [`protocol`] | events, requests and replies as JSON |

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod base;
pub mod cluster;
pub mod config;
pub mod control;
pub mod event;
pub mod graph;
pub mod host;
pub mod journal;
pub mod machine;
pub mod planning;
pub mod process;
pub mod protocol;
pub mod state;
