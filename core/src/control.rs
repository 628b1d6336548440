//! What commands of operators mean: which programs they select, which events they propose, and when they are done.
//!
//! | step | where |
//! |---|---|
//! | names and patterns become programs and groups | [`Operator::choose`] |
//! | a command becomes events, and a target to wait for | [`Operator::propose`] |
//! | a command is done, late, or will never be done | [`Wait`], and [`Waits`] for all of them |
//!
//! Access control and timeouts are not handled here.

mod commands;
mod operator;
mod select;
mod target;
mod wait;
mod waits;

pub use self::{
    operator::{Operator, Proposal},
    target::{Target, Targets},
    wait::{Progress, Wait},
    waits::Waits,
};
