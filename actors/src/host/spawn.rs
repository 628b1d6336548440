//! Starts processes: what a child does between its creation and its command, and the token that it carries.

pub(crate) mod pid_file;
pub(crate) mod spawner;
pub(crate) mod sys;
pub(crate) mod token;
