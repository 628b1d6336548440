//! The log of a gateway.

use std::sync::Mutex;

use slog::{Drain, Level, LevelFilter, Logger, o};

/// A log on the standard error output; with what changes nothing, if it is verbose.
pub fn logger(verbose: bool) -> Logger {
    let decorator = slog_term::TermDecorator::new().stderr().build();
    let format = slog_term::CompactFormat::new(decorator).use_local_timestamp().build();
    let level = if verbose { Level::Debug } else { Level::Info };
    Logger::root(LevelFilter::new(Mutex::new(format), level).ignore_res(), o!())
}
