//! Printing: a reader that has had enough ends a tool quietly, anything else is said.

use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Prints a line and sends it off.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// How a tool ends that has printed something, or tried to.
pub fn end(printed: io::Result<()>) -> ExitCode {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("Error: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}
