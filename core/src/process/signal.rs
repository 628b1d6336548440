//! Signals, by their numbers and names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A signal, by its number on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(pub i32);

impl Signal {
    /// Asks a process to end; it can be caught.
    pub const TERM: Self = Self(15);
    /// Ends a process; it cannot be caught.
    pub const KILL: Self = Self(9);

    /// Whether it is commonly sent to end a program: INT, QUIT, KILL or TERM.
    pub fn asks_to_end(self) -> bool {
        [2, 3, Self::KILL.0, Self::TERM.0].contains(&self.0)
    }

    /// Whether a program can take it as a request to end: it has a name, can be caught, and neither stops nor continues.
    pub fn may_end(self) -> bool {
        let controls = ["KILL", "STOP", "CONT", "TSTP", "TTIN", "TTOU", "CHLD"];
        Self::NAMES.iter().any(|(name, number)| *number == self.0 && !controls.contains(name))
    }

    const NAMES: [(&'static str, i32); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];

    /// Reads a name with or without `SIG`, or a number from 1 to 64.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=64).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| Self(*number))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}
