//! Printing: a closed pipe ends a tool quietly, any other error is reported.

use std::{
    io::{self, IsTerminal, StdoutLock, Write},
    process::ExitCode,
};

/// Prints a line and flushes it.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// The exit status of a tool after it has printed something, or failed to.
pub fn end(printed: io::Result<()>) -> ExitCode {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("Error: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// Standard output for the output of programs. On a terminal every control character but the line feed and the tab is
/// escaped, because a terminal would interpret it; a pipe or a file gets the bytes as they are.
#[derive(Debug)]
pub struct TerminalSafe<W> {
    out: W,
    is_terminal: bool,
    /// The beginning of an incomplete character.
    rest: Vec<u8>,
}

impl TerminalSafe<StdoutLock<'static>> {
    /// Standard output.
    pub fn stdout() -> Self {
        Self { out: io::stdout().lock(), is_terminal: io::stdout().is_terminal(), rest: Vec::new() }
    }
}

impl<W: Write> Write for TerminalSafe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.out.write(bytes);
        }
        self.rest.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&self.rest) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Ok(_) | Err(_) => self.rest.len(),
        };
        let whole: Vec<u8> = self.rest.drain(..cut).collect();
        let mut shown = String::with_capacity(whole.len());
        for chunk in whole.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\r' => {}
                    '\n' | '\t' => shown.push(character),
                    _ if character.is_control() => shown.extend(character.escape_default()),
                    _ => shown.push(character),
                }
            }
            shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
        self.out.write_all(shown.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[&[u8]], is_terminal: bool) -> Vec<u8> {
        let mut safe = TerminalSafe { out: Vec::new(), is_terminal, rest: Vec::new() };
        for part in parts {
            safe.write_all(part).expect("memory can be written");
        }
        safe.out
    }

    #[test]
    fn a_terminal_is_sent_no_control_characters_and_a_pipe_is_sent_everything() {
        let said = "\x1b]0;owned\x07 gr\u{fc}n \u{9b}31m\t1\r\n".as_bytes();
        let safe = "\\u{1b}]0;owned\\u{7} gr\u{fc}n \\u{9b}31m\t1\n".as_bytes();
        assert_eq!(shown(&[said], true), safe);
        let (begin, end) = said.split_at(14);
        assert_eq!(shown(&[begin, end], true), safe, "also if a character comes in two parts");
        assert_eq!(shown(&[b"\x9b31m"], true), b"\\x9b31m");
        assert_eq!(shown(&[said], false), said);
    }
}
