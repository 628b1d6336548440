//! Starting processes: what a child does between its creation and its command, and what it is marked with.

pub(crate) mod pid_file;
pub(crate) mod spawner;
pub(crate) mod sys;
pub(crate) mod token;
