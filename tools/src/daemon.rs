//! The daemon: checks a configuration, starts actors, channels and a log for it, and runs until everything has stopped.

mod event_log;
mod event_sinks;
mod handover;
mod loaded_config;
pub mod own_programs;
mod published_config;
mod run;
mod startup;
pub mod subreaper;
mod subreaper_link;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use gaggled_actors::{
    control::ControlActor,
    host,
    journal::directory::{Origin, RecoveredState, StateDirectory, StateError},
    spec,
};
use gaggled_core::{event::Handover, journal::segment::SegmentHeader, process::ExitStatus, state::State};
use gaggled_gateways::url::{Url, make_default_directory};

pub use self::loaded_config::LoadedConfig;
use self::{
    run::DaemonExit,
    startup::Startup,
    subreaper::{HandoffFile, InheritedFds, Takeover},
    subreaper_link::SubreaperLink,
};
use crate::{VERSION, common::endpoints};

/// Exit status: the configuration cannot be used.
pub const BAD_CONFIGURATION: u8 = 1;
/// Exit status: programs could not be ended.
pub const SURVIVORS: u8 = 3;
/// Exit status: gaggled cannot run here, for instance because another one does.
pub const CANNOT_RUN: u8 = 100;

/// How gaggled is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration.
    pub config: PathBuf,
    /// Whether the interrupt of the terminal is ignored.
    pub ignore_interrupts: bool,
    /// Whether a state directory of another configuration may be used.
    pub take_state: bool,
    /// The descriptors from the subreaper.
    pub inherit: Option<InheritedFds>,
}

/// Runs until everything has stopped, or another daemon follows.
pub fn run(options: &Options) -> ExitCode {
    let _ = nix::sys::prctl::set_name(c"gaggled");
    if options.ignore_interrupts {
        host::ignore_interrupts();
    }
    match begin(options) {
        Ok((code, None)) => ExitCode::from(code),
        Ok((_, Some(takeover))) => {
            let error = subreaper::take_its_place(&takeover);
            eprintln!("Error: gaggled cannot take the place of its subreaper: {error}");
            ExitCode::from(CANNOT_RUN)
        }
        Err(StartError::Configuration) => ExitCode::from(BAD_CONFIGURATION),
        Err(StartError::Here(why)) => {
            eprintln!("Error: {why}");
            ExitCode::from(CANNOT_RUN)
        }
    }
}

/// Why a daemon cannot start.
enum StartError {
    /// The configuration cannot be used. The reasons have been printed.
    Configuration,
    /// This machine or the state directory does not allow it.
    Here(String),
}

impl<E: std::fmt::Display> From<E> for StartError {
    fn from(why: E) -> Self {
        Self::Here(why.to_string())
    }
}

/// Starts the daemon and runs it; the exit status, and, if this process is to take the place of its subreaper, what it
/// resumes.
fn begin(options: &Options) -> Result<(u8, Option<Takeover>), StartError> {
    let parent = nix::unistd::getppid();
    let subreaper = options.inherit.clone().map(SubreaperLink::new).transpose()?;
    let before = subreaper.as_ref().and_then(|subreaper| subreaper.before.as_ref());
    let (system, directory, fallback_directory_reason, recovered) = if let Some(before) = before {
        let (system, directory, recovered) = resume(before, options)?;
        if let Some((_, State { unkillable: Some(survivors), essential_exit, .. })) = &recovered.last {
            // Everything had stopped, but the previous daemon died before it could report that.
            subreaper.iter().for_each(SubreaperLink::end);
            return Ok((stopped(*survivors, *essential_exit), None));
        }
        (system, directory, None, recovered)
    } else {
        let system =
            LoadedConfig::check(&options.config, options.ignore_interrupts).ok_or(StartError::Configuration)?;
        let (directory, fallback_directory_reason) = find_state(&system)?;
        let elsewhere = fallback_directory_reason.as_ref().and_then(|_| {
            // The pipes of logs are in the directory of the journal.
            LoadedConfig::in_force(system.text.clone(), options.ignore_interrupts, directory.path())
        });
        let system = elsewhere.unwrap_or(system);
        let recovered = directory.recover(ControlActor::HISTORY)?;
        if directory.origin == Origin::New {
            refuse_strangers(&system, &directory)?;
        }
        refuse_another(&system, &directory, &recovered, options.take_state)?;
        (system, directory, fallback_directory_reason, recovered)
    };
    let channels = system.open_channels()?;
    let server = channels.1.clone();
    let sockets =
        [&system.urls.control, &system.urls.event].map(|url| Url::parse(url, &system.config.gaggled.insecure));
    let stash = subreaper.as_ref().and_then(SubreaperLink::stash);
    let takeover = Takeover { state: directory.path().display().to_string(), stash };
    let startup = Startup {
        system: &system,
        directory,
        fallback_directory_reason,
        recovered,
        subreaper,
        channels: Some(channels),
    };
    let ended = actix::System::new().block_on(startup.run())?;
    // The contexts of the server belong to threads of nng that end with the process.
    std::mem::forget(server);
    Ok(match ended {
        // Without a subreaper no other daemon can follow.
        DaemonExit::HandedOver(_) if nix::unistd::getppid() != parent => (0, Some(takeover)),
        DaemonExit::HandedOver(Handover::Subreaper) => (0, Some(takeover)),
        DaemonExit::HandedOver(Handover::Reload | Handover::Upgrade) => (0, None),
        DaemonExit::Stopped { survivors, essential_exit } => {
            for socket in sockets {
                if let Ok(Url::Ipc(path)) = socket {
                    // A client that connects now gets an error at once.
                    let _ = std::fs::remove_file(path);
                }
            }
            (stopped(survivors, essential_exit), None)
        }
    })
}

/// The exit status when everything has stopped except this many programs.
fn stopped(survivors: u32, essential_exit: Option<ExitStatus>) -> u8 {
    if survivors == 0 {
        return essential_exit.map_or(0, status_of);
    }
    eprintln!("Error: {survivors} programs could not be ended; they wait in the kernel for a device");
    SURVIVORS
}

/// The exit status of gaggled when an essential program has ended with this status.
fn status_of(essential_exit: ExitStatus) -> u8 {
    match essential_exit {
        ExitStatus::Code(code) => u8::try_from(code).unwrap_or(1),
        ExitStatus::Signal(signal) | ExitStatus::Core(signal) => u8::try_from(128 + signal).unwrap_or(1),
        ExitStatus::OutOfMemory => 128 + 9,
        ExitStatus::Unknown => 1,
    }
}

/// Goes on with the configuration that the previous daemon has left, or, if that is lost, with that of the command line.
fn resume(
    before: &HandoffFile,
    options: &Options,
) -> Result<(LoadedConfig, StateDirectory, RecoveredState), StartError> {
    let state = Path::new(&before.state);
    let kept = Some(before.identity.as_str()).filter(|identity| !identity.is_empty());
    let directory = StateDirectory::open(state, kept)?;
    let recovered = directory.recover(ControlActor::HISTORY)?;
    let in_force = recovered.last.as_ref().map(|(head, _)| head.config.clone());
    let text = recovered.next_config.clone().or(in_force);
    let system = text.and_then(|text| LoadedConfig::in_force(text, options.ignore_interrupts, state));
    let system = system.or_else(|| LoadedConfig::check(&options.config, options.ignore_interrupts));
    Ok((system.ok_or(StartError::Configuration)?, directory, recovered))
}

/// Refuses a directory that another configuration has used: it holds the history and the operator commands of another
/// system, and programs of the same name would be mistaken for each other.
fn refuse_another(
    system: &LoadedConfig,
    directory: &StateDirectory,
    recovered: &RecoveredState,
    take_state: bool,
) -> Result<(), StartError> {
    let Some((SegmentHeader { config: before, .. }, _)) = recovered.last.as_ref().filter(|_| !take_state) else {
        return Ok(());
    };
    let is_copy = directory.origin == Origin::Copy;
    if before.path == system.text.path || before.path.is_empty() || is_copy {
        return Ok(());
    }
    Err(StartError::Here(format!(
        "{} is the state of {}, and this is {}: give each system a directory of its own (gaggled.state_directory), or, if the file was \
         renamed, start gaggled once with --take-state",
        directory.path().display(),
        before.path,
        system.text.path
    )))
}

/// Refuses to start beside programs of an earlier gaggled at the same control url whose state directory is gone: they
/// cannot be recognised, and would be started a second time.
fn refuse_strangers(system: &LoadedConfig, directory: &StateDirectory) -> Result<(), StartError> {
    let found = host::strangers(&system.urls.control, &spec::users(&system.config));
    if found.is_empty() {
        return Ok(());
    }
    // Nothing has been started: the next start must find the directory as this one did.
    directory.forget();
    let pids: Vec<String> = found.iter().map(|(program, pid)| format!("{program} (pid {pid})")).collect();
    Err(StartError::Here(format!(
        "{} has no record of the programs that an earlier gaggled has left running: {}; restore the directory, \
         or end those processes",
        directory.path().display(),
        pids.join(", ")
    )))
}

/// Opens the state directory. If its disk cannot be written, a fallback is used that does not survive a reboot; the
/// reason is returned with it.
fn find_state(system: &LoadedConfig) -> Result<(StateDirectory, Option<String>), StartError> {
    let path = endpoints::state_directory(&system.config.gaggled)?;
    match StateDirectory::open(&path, None) {
        Ok(directory) => Ok((directory, None)),
        Err(StateError::Io { path, error }) if is_disk(&error) => {
            let elsewhere = make_default_directory()?.join("journal");
            let directory = StateDirectory::open(&elsewhere, None)?;
            let why = format!("{path} cannot be written ({error}), so it is kept in {} for now", elsewhere.display());
            Ok((directory, Some(why)))
        }
        Err(why) => Err(why.into()),
    }
}

fn is_disk(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EROFS | nix::libc::ENOSPC | nix::libc::EDQUOT | nix::libc::EIO))
}

/// Answers a running gaggled before an upgrade: whether this binary can read the journal, and which version it is.
pub fn check_takeover(state: &Path) -> ExitCode {
    match gaggled_actors::journal::directory::last_segment(state) {
        Ok(()) => {
            crate::common::output::end(crate::common::output::line(&format!("gaggled {VERSION}{}", handover::GOES_ON)))
        }
        Err(why) => {
            eprintln!("Error: {why}");
            ExitCode::from(CANNOT_RUN)
        }
    }
}
