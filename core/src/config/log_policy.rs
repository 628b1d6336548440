//! How the output of programs is logged: as configured, and as passed to the logger.

use serde::{Deserialize, Serialize};

use crate::base::{bytes::Bytes, time::Millis};

/// What happens to output that cannot be written in time, or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// The program waits.
    #[default]
    Block,
    /// It is dropped, and counted in the log.
    Drop,
}

/// How a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "rotate", deny_unknown_fields, default)]
pub struct Rotate {
    /// The size at which another file is begun.
    pub size: Bytes,
    /// The age at which another file is begun; no limit if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<Millis>,
    /// How many files are kept besides the one that is written.
    pub max_files: u32,
    /// Whether the other files are compressed.
    pub compress: bool,
    /// Whether every line gets the time at which it was written.
    pub timestamps: bool,
    /// What happens to output that cannot be written.
    pub overflow: Overflow,
}

impl Rotate {
    /// The smallest size, in bytes.
    pub const SMALLEST: Bytes = Bytes(4096);
    /// The most files that are kept.
    pub const MOST: u32 = 1000;
}

impl Default for Rotate {
    fn default() -> Self {
        Self {
            size: Bytes(10 << 20),
            age: None,
            max_files: 5,
            compress: false,
            timestamps: false,
            overflow: Overflow::default(),
        }
    }
}

/// Where the output of a program goes, for the logger that writes it and the tools that read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRoute {
    /// The program.
    pub program: String,
    /// The file; gaggled's own output if there is none.
    pub file: Option<String>,
    /// The pipe that the program writes to, if it does not write to the file itself.
    pub pipe: Option<String>,
    /// How the file is kept.
    pub rotate: Option<Rotate>,
}
