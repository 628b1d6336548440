//! A log file that is rotated when it is large or old, and output that is merged with that of other programs.
//!
//! The directory of a log may belong to the program's user, who can put anything in the place of any file there at any
//! moment: see [`safe_path`](gaggled_actors::safe_path).

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use flate2::{Compression, write::GzEncoder};
use gaggled_actors::safe_path::{SafeDirectory, SafePath, reopen_for_reading};
use gaggled_core::config::log_policy::{Overflow, Rotate};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::sink::{Sink, is_ready};

/// How soon a disk that has failed is tried again while the program waits, in milliseconds.
const RETRY_DELAY: u16 = 1000;

/// A log that is open.
struct Open {
    /// Where it is.
    path: SafePath,
    file: File,
    /// Its size, in bytes.
    size: u64,
    /// When it was begun.
    since: SystemTime,
}

/// A log file.
pub struct LogFile {
    path: PathBuf,
    rotate: Rotate,
    /// Readable when this process is to end.
    stopped: Arc<OwnedFd>,
    /// `None` if it is not open.
    open: Option<Open>,
    /// How many bytes were dropped since the last line that says so.
    lost: u64,
    at_line: bool,
}

impl LogFile {
    /// The log at a path, rotated like this. Once the descriptor is readable, a stuck disk is not waited for any more.
    pub fn new(path: &str, rotate: Rotate, stopped: Arc<OwnedFd>) -> Self {
        Self { path: PathBuf::from(path), rotate, stopped, open: None, lost: 0, at_line: true }
    }

    /// Writes a line or a part of one.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(Open::find(&self.path)?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        match open.file.write_all(bytes) {
            Ok(()) => {
                open.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part may have been written: cut it off.
                let _ = open.file.set_len(open.size);
                self.open = None;
                Err(error)
            }
        }
    }

    /// Writes a part, or counts it. False if this process is to end and the disk still does not take it.
    fn put(&mut self, bytes: &[u8]) -> bool {
        while self.try_write(bytes).is_err() {
            let waits = self.rotate.overflow == Overflow::Block;
            let is_over = waits && is_ready(&self.stopped, RETRY_DELAY.into());
            if is_over || !waits {
                self.lost += bytes.len() as u64;
                return !is_over;
            }
        }
        true
    }

    /// Rotates the log if it is full or old; only between lines.
    fn look_whether_full(&mut self) {
        let is_full = |open: &mut Open| {
            let rotate = self.rotate;
            let old = rotate.age.is_some_and(|age| open.since.elapsed().is_ok_and(|spent| spent >= age.as_duration()));
            // A device is never full.
            open.size > 0
                && (open.size >= rotate.size.0 || old)
                && open.file.metadata().is_ok_and(|found| found.is_file())
        };
        if !self.at_line {
            return;
        }
        if let Some(Open { path, file, .. }) = self.open.take_if(is_full)
            && let Err(error) = begin_anew(&path, &file, self.rotate)
        {
            eprintln!("Error: {} cannot be rotated: {error}", self.path.display());
        }
    }

    fn say_what_was_lost(&mut self) {
        if self.lost > 0 && self.at_line {
            let line = format!("gaggled: {} bytes of output were dropped here\n", self.lost);
            if self.try_write(line.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
    }
}

impl Sink for LogFile {
    fn write(&mut self, chunk: &[u8]) -> bool {
        let mut goes_on = true;
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.look_whether_full();
            self.say_what_was_lost();
            goes_on = if self.rotate.timestamps && self.at_line {
                let stamped = [format!("{:.3} ", jiff::Timestamp::now()).as_bytes(), line].concat();
                self.put(&stamped)
            } else {
                self.put(line)
            };
            self.at_line = line.ends_with(b"\n");
        }
        goes_on
    }

    fn dropped(&mut self, bytes: u64) {
        self.lost += bytes;
        self.say_what_was_lost();
    }

    fn end(&mut self) {
        self.at_line = true;
        self.say_what_was_lost();
    }
}

/// Output that is merged with that of other programs: whole lines, each with the name of its program.
pub(super) struct PrefixedOutput {
    prefix: String,
    rest: Vec<u8>,
}

/// The longest incomplete line that is held back, in bytes.
const LINE_MAX: usize = 64 << 10;

impl PrefixedOutput {
    pub(super) fn new(program: &str, width: usize) -> Self {
        Self { prefix: format!("{program:<width$} | "), rest: Vec::new() }
    }

    fn print(&self, line: &[u8]) {
        let whole = [self.prefix.as_bytes(), line.strip_suffix(b"\n").unwrap_or(line), b"\n"].concat();
        // The reader may have gone.
        let _ = io::stdout().lock().write_all(&whole);
    }
}

impl Sink for PrefixedOutput {
    fn write(&mut self, chunk: &[u8]) -> bool {
        self.rest.extend(chunk);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.print(&line);
        }
        if self.rest.len() > LINE_MAX {
            let line = std::mem::take(&mut self.rest);
            self.print(&line);
        }
        true
    }

    fn dropped(&mut self, bytes: u64) {
        self.print(format!("gaggled: {bytes} bytes of output were dropped here").as_bytes());
    }

    fn end(&mut self) {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.print(&line);
        }
    }
}

impl Open {
    fn find(path: &Path) -> io::Result<Self> {
        let path = SafePath::find(path)?;
        let file = path.append()?;
        let found = file.metadata()?;
        if !found.is_file() {
            // Writes to a terminal or a pipe that root has put there are blocking.
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
        }
        let since = if found.len() == 0 { now() } else { found.created().or_else(|_| found.modified())? };
        Ok(Self { path, file, size: found.len(), since })
    }
}

/// The two possible names of an older file, such as `log.1` and `log.1.gz`; 1 is the youngest.
fn older(path: &SafePath, number: u32) -> [OsString; 2] {
    ["", ".gz"].map(|suffix| path.beside(&format!(".{number}{suffix}")))
}

/// Rotates the files: renames each to the next number, and removes the oldest. Resumes a rotation that was interrupted.
fn begin_anew(path: &SafePath, log: &File, rotate: Rotate) -> io::Result<()> {
    let directory = &path.directory;
    for file in older(path, rotate.max_files) {
        directory.remove(&file)?;
    }
    for number in (1..rotate.max_files).rev() {
        for (from, to) in older(path, number).into_iter().zip(older(path, number + 1)) {
            absent_is_fine(directory.rename(&from, &to))?;
        }
    }
    let [first, compressed] = older(path, 1);
    let interrupted = put_new(path, log, &first)?;
    if rotate.compress {
        compress(directory, interrupted.as_ref().unwrap_or(log), &path.beside(".1.new"), &compressed)?;
        directory.remove(&first)?;
    }
    Ok(())
}

/// Compresses the file behind a descriptor, whichever file has its name by now.
fn compress(directory: &SafeDirectory, log: &File, new: &OsString, compressed: &OsString) -> io::Result<()> {
    let mut encoder = GzEncoder::new(directory.make_like(new, log)?, Compression::default());
    io::copy(&mut reopen_for_reading(log)?, &mut encoder)?;
    encoder.finish()?;
    directory.rename(new, compressed)
}

/// Replaces a log by an empty file. The two are exchanged in one step where the file system can do that, so that there
/// is always a log. If this process was killed after the exchange and before the rename, only the rename is done, and
/// the file that became the old log is returned.
fn put_new(path: &SafePath, log: &File, old: &OsString) -> io::Result<Option<File>> {
    let (directory, new) = (&path.directory, path.beside(".new"));
    if directory.size(&new).is_some_and(|size| size > 0) {
        let interrupted = directory.read(&new)?;
        directory.rename(&new, old)?;
        return Ok(Some(interrupted));
    }
    directory.make_like(&new, log)?;
    if directory.exchange(&new, &path.name).is_ok() {
        directory.rename(&new, old)?;
    } else {
        directory.rename(&path.name, old)?;
        directory.rename(&new, &path.name)?;
    }
    Ok(None)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[expect(clippy::disallowed_methods, reason = "the age of a file is wall time")]
fn now() -> SystemTime {
    SystemTime::now()
}
