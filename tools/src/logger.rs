//! The process that writes logs which are rotated or merged: a program like any other, which gaggled runs itself.
//!
//! Each program writes to a named pipe, which it also holds open for reading. So nothing is lost and no program is
//! affected while this process, or gaggled, does not run: the output waits in the pipe. Each log has its own thread, so
//! that a stuck disk delays no other log.

mod bounded_buffer;
mod file;
mod pipes;
mod sink;

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use gaggled_actors::host;
use gaggled_core::config::log_policy::{LogRoute, Overflow};
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::pipe,
};
use sha2::{Digest, Sha256};

use self::{
    bounded_buffer::{BoundedBuffer, Waiting},
    file::PrefixedOutput,
    pipes::{each_chunk, named, nameless},
};
pub use self::{file::LogFile, sink::Sink};

/// The directory of the pipes, in that of the journal.
pub fn pipes(state: &Path) -> PathBuf {
    state.join("pipes")
}

fn told(state: &Path) -> PathBuf {
    state.join("logs.json")
}

/// A fingerprint of a list of logs.
pub fn fingerprint(log_routes: &[LogRoute]) -> String {
    let piped: Vec<&LogRoute> = log_routes.iter().filter(|outlet| outlet.pipe.is_some()).collect();
    let text = serde_json::to_string(&piped).unwrap_or_default();
    let digest = Sha256::digest(text.as_bytes());
    let number = digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
    format!("{number:016x}")
}

/// Writes the list of logs to the state directory, for the logger and for the readers of logs.
pub fn leave(state: &Path, log_routes: &[LogRoute]) -> io::Result<()> {
    let directory = pipes(state);
    if log_routes.iter().any(|outlet| outlet.pipe.is_some()) {
        fs::create_dir_all(&directory)?;
    }
    let new = told(state).with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(log_routes)?)?;
    fs::rename(new, told(state))
}

/// The list of logs.
pub fn list(state: &Path) -> io::Result<Vec<LogRoute>> {
    serde_json::from_slice(&fs::read(told(state))?).map_err(io::Error::from)
}

/// Writes until it gets a signal to stop, and then what is left in the pipes.
pub fn run(state: &Path) -> ExitCode {
    host::ignore_file_limit();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if let Err(errno) = signals.thread_block() {
        eprintln!("Error: the logger cannot wait for signals: {errno}");
        return ExitCode::FAILURE;
    }
    let log_routes = match list(state) {
        Ok(log_routes) => log_routes,
        Err(error) => {
            eprintln!("Error: {}: {error}", told(state).display());
            return ExitCode::FAILURE;
        }
    };
    let Ok((stopped, stop)) = pipe() else { return ExitCode::FAILURE };
    let stopped = Arc::new(stopped);
    let width = log_routes.iter().filter(|outlet| outlet.pipe.is_some() && outlet.file.is_none());
    let width = width.map(|outlet| outlet.program.len()).max().unwrap_or(0);
    let mut nameless = nameless(state, &log_routes);
    let mut threads = Vec::new();
    for outlet in log_routes.into_iter().filter(|outlet| outlet.pipe.is_some()) {
        let (name, stopped) = (outlet.program.clone(), stopped.clone());
        let earlier = nameless.remove(&outlet.program).unwrap_or_default();
        let write = move || {
            if let Err(error) = take(&outlet, earlier, &stopped, width) {
                eprintln!("Error: the log of {} cannot be written: {error}", outlet.program);
            }
        };
        match thread::Builder::new().name(name).spawn(write) {
            Ok(thread) => threads.push(thread),
            Err(error) => eprintln!("Error: a log cannot be written: {error}"),
        }
    }
    let _ = signals.wait();
    drop(stop);
    for thread in threads {
        let _ = thread.join();
    }
    ExitCode::SUCCESS
}

fn take(outlet: &LogRoute, nameless: Vec<fs::File>, stopped: &Arc<OwnedFd>, width: usize) -> io::Result<()> {
    let Some(path) = &outlet.pipe else { return Ok(()) };
    let mut pipes = nameless;
    pipes.push(named(path)?);
    let rotate = outlet.rotate.unwrap_or_default();
    let mut sink: Box<dyn Sink> = match &outlet.file {
        Some(file) => Box::new(LogFile::new(file, rotate, stopped.clone())),
        None => Box::new(PrefixedOutput::new(&outlet.program, width)),
    };
    if rotate.overflow == Overflow::Block {
        each_chunk(&mut pipes, stopped, |chunk| sink.write(chunk));
        sink.end();
        return Ok(());
    }
    // The reader of the pipe never waits for the disk.
    let bounded_buffer = BoundedBuffer::default();
    thread::scope(|scope| {
        thread::Builder::new().spawn_scoped(scope, || {
            while let Some(Waiting { bytes, dropped, .. }) = bounded_buffer.take() {
                sink.write(&bytes);
                if dropped > 0 {
                    sink.dropped(dropped);
                }
            }
            sink.end();
        })?;
        each_chunk(&mut pipes, stopped, |chunk| {
            bounded_buffer.push(chunk);
            true
        });
        bounded_buffer.close();
        Ok(())
    })
}
