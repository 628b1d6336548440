//! `gaggled_controller logs`: prints the logs of programs.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use gaggled_actors::safe_path::{SafeDirectory, SafePath};
use gaggled_core::{
    base::time::WallTime,
    config::log_policy::{LogRoute, Rotate},
};
use inotify::{Inotify, WatchMask};
use nix::libc;

use crate::common::output::TerminalSafe;

/// How much of the end of a log is looked at for the last lines, in bytes.
const TAIL: u64 = 1 << 20;

/// What is shown of a log.
#[derive(Clone, Copy, Debug)]
pub struct TailOptions {
    /// How many of the last lines.
    pub lines: usize,
    /// Only lines from this time on; only for logs with timestamps.
    pub since: Option<WallTime>,
    /// Whether to print lines as they are added.
    pub follow: bool,
}

/// Prints the log of a program; the error is in words.
pub fn show(log_routes: &[LogRoute], program: &str, wanted: TailOptions) -> Result<(), String> {
    let outlet = log_routes.iter().find(|outlet| outlet.program == program);
    let outlet = outlet.ok_or_else(|| format!("there is no program \"{program}\""))?;
    let path = outlet
        .file
        .as_ref()
        .ok_or_else(|| format!("\"{program}\" has no log: its output is that of gaggled (give it log: \"...\")"))?;
    let stamped = outlet.rotate.is_some_and(|rotate| rotate.timestamps);
    if wanted.since.is_some() && !stamped {
        return Err(format!("the lines of {path} have no time: give \"{program}\" rotate: (timestamps: true)"));
    }
    let path = Path::new(path);
    let words = |error: io::Error| match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => {
            format!("{} is not there: \"{program}\" has written nothing yet", path.display())
        }
        (_, Some(libc::ELOOP | libc::EINVAL | libc::EMLINK)) => {
            format!("{} is not a log that gaggled writes: a user other than root has replaced it", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    };
    let mut out = TerminalSafe::stdout();
    let printed = match wanted.since {
        Some(since) => since_then(path, since, &mut out).map_err(words),
        None => last_lines(path, wanted.lines, &mut out).map_err(words),
    };
    let at = match printed {
        Ok(at) => at,
        Err(why) => return if why.contains("Broken pipe") { Ok(()) } else { Err(why) },
    };
    out.flush().map_err(|error| error.to_string())?;
    if wanted.follow { follow(path, at, &mut out).map_err(words) } else { Ok(()) }
}

/// Prints the last lines of a log, also from older files if it has too few; returns where the log ends.
fn last_lines(path: &Path, lines: usize, out: &mut impl Write) -> io::Result<u64> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL.min(length)).read_to_end(&mut bytes)?;
    let count = |bytes: &[u8]| bytes.split(|byte| *byte == b'\n').count() - 1;
    let mut found = count(&bytes);
    let mut files = vec![bytes];
    // Older files are read only if the whole file was.
    let mut numbers = (1..=Rotate::MOST).take_while(|number| length <= TAIL && exists(path, *number));
    while let Some(number) = numbers.next().filter(|_| found < lines) {
        let before = older(path, number).unwrap_or_default();
        found += count(&before);
        files.push(before);
    }
    files.reverse();
    let all = files.concat();
    let shown: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
    for line in shown.iter().skip(shown.len().saturating_sub(lines)) {
        out.write_all(line)?;
    }
    Ok(length)
}

/// Every line from a time on, however many files back.
fn since_then(path: &Path, since: WallTime, out: &mut impl Write) -> io::Result<u64> {
    let mut files = Vec::new();
    // A number may be missing if the logger was killed during a rotation.
    for number in 1..=Rotate::MOST {
        let Some(bytes) = older(path, number) else { continue };
        let begins_before = first_time(&bytes).is_none_or(|first| first < since.timestamp());
        files.push(bytes);
        if begins_before {
            break;
        }
    }
    let mut now = Vec::new();
    open(path)?.read_to_end(&mut now)?;
    let length = now.len() as u64;
    files.reverse();
    files.push(now);
    let mut shows = false;
    for line in files.iter().flat_map(|bytes| bytes.split_inclusive(|byte| *byte == b'\n')) {
        // A line without a time belongs to the line before.
        shows = time_of(line).map_or(shows, |time| time >= since.timestamp());
        if shows {
            out.write_all(line)?;
        }
    }
    Ok(length)
}

fn first_time(bytes: &[u8]) -> Option<jiff::Timestamp> {
    bytes.split(|byte| *byte == b'\n').find_map(time_of)
}

fn time_of(line: &[u8]) -> Option<jiff::Timestamp> {
    let word = line.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The contents of an older file, decompressed.
fn older(path: &Path, number: u32) -> Option<Vec<u8>> {
    let plain = PathBuf::from(format!("{}.{number}", path.display()));
    let mut bytes = Vec::new();
    if let Ok(mut file) = open(&plain) {
        file.read_to_end(&mut bytes).ok()?;
        return Some(bytes);
    }
    let file = open(format!("{}.gz", plain.display())).ok()?;
    GzDecoder::new(file).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Prints what is added, also when the file is rotated, until standard output is closed.
fn follow(path: &Path, mut at: u64, out: &mut impl Write) -> io::Result<()> {
    let mut inotify = Inotify::init()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = SafeDirectory::find(directory)?;
    inotify.watches().add(directory.watchable(), WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
    let mut file = open(path)?;
    let mut buffer = [0; 4096];
    loop {
        at += copy_from(&mut file, at, out)?;
        let another = open(path).ok().filter(|other| node(other) != node(&file));
        if let Some(another) = another {
            copy_from(&mut file, at, out)?;
            for bytes in between(path, &file) {
                out.write_all(&bytes)?;
            }
            (file, at) = (another, 0);
            continue;
        }
        if file.metadata()?.len() < at {
            // It was cut, as logrotate does with copytruncate.
            at = 0;
            continue;
        }
        if out.flush().is_err() {
            return Ok(());
        }
        inotify.read_events_blocking(&mut buffer)?.count();
    }
}

/// Opens a log or one of the older files beside it, which the program's user may have replaced.
fn open(path: impl AsRef<Path>) -> io::Result<File> {
    SafePath::find(path.as_ref())?.read()
}

fn node(file: &File) -> Option<u64> {
    file.metadata().map(|found| found.ino()).ok()
}

/// The contents of the files between the one that was read and the current one, the oldest first. A file that has been
/// compressed since is not recognised.
fn between(path: &Path, read: &File) -> Vec<Vec<u8>> {
    let is_read = |number: &u32| {
        let older = open(format!("{}.{number}", path.display())).ok();
        older.is_some_and(|older| node(&older) == node(read))
    };
    let last = (1..=Rotate::MOST).take_while(|number| exists(path, *number)).find(is_read).unwrap_or(1);
    (1..last).rev().filter_map(|number| older(path, number)).collect()
}

fn exists(path: &Path, number: u32) -> bool {
    let plain = format!("{}.{number}", path.display());
    Path::new(&plain).exists() || Path::new(&format!("{plain}.gz")).exists()
}

fn copy_from(file: &mut File, at: u64, out: &mut impl Write) -> io::Result<u64> {
    file.seek(SeekFrom::Start(at))?;
    match io::copy(file, out) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        copied => copied,
    }
}
