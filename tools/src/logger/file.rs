//! A log file that is begun anew when it is large or old, and output that goes together with that of others.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use gaggled_core::logs::{Rotate, WhenStuck};
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    libc::O_NOFOLLOW,
};

use super::Sink;

/// How soon a disk that has failed is tried again while the program waits.
const AGAIN: Duration = Duration::from_secs(1);

/// An open file, its size, and since when it is written.
type Open = (File, u64, SystemTime);

/// A log file.
pub(super) struct LogFile {
    path: PathBuf,
    rotate: Rotate,
    /// The file, its size, and since when it is written; nothing if it could not be opened.
    open: Option<Open>,
    /// How many bytes were dropped since the last line that says so.
    lost: u64,
    at_line: bool,
}

impl LogFile {
    pub(super) fn new(path: &str, rotate: Rotate) -> Self {
        Self { path: PathBuf::from(path), rotate, open: None, lost: 0, at_line: true }
    }

    /// Writes a part that does not go beyond a line, or tells why not.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(open(&self.path)?);
        }
        let Some((file, size, _)) = &mut self.open else { return Ok(()) };
        match file.write_all(bytes) {
            Ok(()) => {
                *size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part may have been written: it begins where it was.
                let _ = file.set_len(*size);
                self.open = None;
                Err(error)
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        loop {
            match self.try_write(bytes) {
                Ok(()) => return,
                Err(_) if self.rotate.when_stuck == WhenStuck::Drop => {
                    self.lost += bytes.len() as u64;
                    return;
                }
                Err(_) => pause(AGAIN),
            }
        }
    }

    /// Another file is begun only between lines.
    fn look_whether_full(&mut self) {
        let Some((file, size, since)) = &self.open else { return };
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            // A device is never full.
            return;
        }
        let old = self.rotate.age.is_some_and(|age| since.elapsed().is_ok_and(|passed| passed >= age.as_duration()));
        if self.at_line && *size > 0 && (*size >= self.rotate.size.0 || old) {
            self.open = None;
            if let Err(error) = begin_anew(&self.path, self.rotate) {
                eprintln!("Error: {} cannot be begun anew: {error}", self.path.display());
            }
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
    fn write(&mut self, chunk: &[u8]) {
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.look_whether_full();
            self.say_what_was_lost();
            if self.rotate.stamp && self.at_line {
                let stamped = [format!("{:.3} ", jiff::Timestamp::now()).as_bytes(), line].concat();
                self.put(&stamped);
            } else {
                self.put(line);
            }
            self.at_line = line.ends_with(b"\n");
        }
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

/// Output that goes together with that of others: each line whole, and with the name of its program.
pub(super) struct Merged {
    prefix: String,
    rest: Vec<u8>,
}

/// The longest line that is waited for, in bytes.
const LONGEST: usize = 64 << 10;

impl Merged {
    pub(super) fn new(program: &str, width: usize) -> Self {
        Self { prefix: format!("{program:<width$} | "), rest: Vec::new() }
    }

    fn print(&self, line: &[u8]) {
        let whole = [self.prefix.as_bytes(), line.strip_suffix(b"\n").unwrap_or(line), b"\n"].concat();
        // Nobody may be reading any more.
        let _ = io::stdout().lock().write_all(&whole);
    }
}

impl Sink for Merged {
    fn write(&mut self, chunk: &[u8]) {
        self.rest.extend(chunk);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.print(&line);
        }
        if self.rest.len() > LONGEST {
            let line = std::mem::take(&mut self.rest);
            self.print(&line);
        }
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

fn open(path: &Path) -> io::Result<(File, u64, SystemTime)> {
    // Its directory may belong to the program, which must not lead this process elsewhere.
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(O_NOFOLLOW).open(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.nlink() > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has another name"));
    }
    let since = if found.len() == 0 { now() } else { found.created().or_else(|_| found.modified())? };
    Ok((file, found.len(), since))
}

/// The names of older files, the youngest first: `log.1`, `log.2`, each perhaps with `.gz`.
fn older(path: &Path, number: u32) -> [PathBuf; 2] {
    let plain = format!("{}.{number}", path.display());
    [PathBuf::from(&plain), PathBuf::from(format!("{plain}.gz"))]
}

/// Moves every file on by one, and forgets the oldest. What was interrupted before is gone on with.
fn begin_anew(path: &Path, rotate: Rotate) -> io::Result<()> {
    for file in older(path, rotate.keep) {
        remove(&file)?;
    }
    for number in (1..rotate.keep).rev() {
        for (from, to) in older(path, number).into_iter().zip(older(path, number + 1)) {
            rename(&from, &to)?;
        }
    }
    let [first, compressed] = older(path, 1);
    put_new(path, &first)?;
    if rotate.compress {
        let new = compressed.with_extension("new");
        let mut encoder = GzEncoder::new(make_new(&new)?, Compression::default());
        io::copy(&mut File::open(&first)?, &mut encoder)?;
        encoder.finish()?;
        fs::rename(new, compressed)?;
        fs::remove_file(first)?;
    }
    Ok(())
}

/// Puts an empty file in the place of a log, so that there is always one: the two change places, where the file system can
/// do that.
fn put_new(path: &Path, old: &Path) -> io::Result<()> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    if new.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
        // Whoever was killed between the two steps has left the old one here.
        return fs::rename(new, old);
    }
    make_new(&new)?;
    match renameat2(AT_FDCWD, &new, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => fs::rename(new, old),
        Err(_) => fs::rename(path, old).and_then(|()| fs::rename(new, path)),
    }
}

/// Makes a file of our own, whatever had its name.
fn make_new(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o640).custom_flags(O_NOFOLLOW).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(path))
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    absent_is_fine(fs::rename(from, to))
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

#[expect(clippy::disallowed_methods, reason = "nothing tells that a disk has room again")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}
