//! The programs of gaggled: the daemon, and the tools that read its files or talk to it.
//!
//! | module | program |
//! |---|---|
//! | [`daemon`] | `gaggled -c`: the daemon and its subreaper |
//! | [`logger`] | `gaggled logger`: a program of the daemon's own that writes and rotates log files |
//! | [`offline`] | `gaggled` subcommands that need no daemon: `import`, `graph`, `simulate`, `nodes`, `journal` |
//! | [`controller`] | `gaggled_controller` |
//! | [`smtpgate`] | `gaggled_smtpgate` |
//! | [`common`] | endpoints, times, diagnostics and formats that they share |

pub mod common;
pub mod controller;
pub mod daemon;
pub mod keeper;
pub mod logger;
pub mod offline;
pub mod smtpgate;

/// The version of gaggled.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
