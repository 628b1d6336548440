//! What several programs of gaggled share.

pub mod diagnostics;
pub mod endpoints;
pub mod event_format;
pub mod gateway_log;
pub mod host;
pub mod output;
pub mod time_args;
