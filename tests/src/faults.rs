//! Injected faults: a library that is preloaded into gaggled and makes system calls fail, and programs for these tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gaggled_core::event::{Event, SystemEvent};

use crate::harness::{Daemon, DaemonOptions};

/// A program that runs until it is stopped.
pub fn sleeper(name: &str) -> String {
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),")
}

/// A program that ends and is started again many times a second.
pub fn crash_looper(name: &str) -> String {
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"exit\", \"5\", \"1\"], backoff: (initial: 5, max: 5)),")
}

/// A configuration with these programs.
pub fn config(programs: &str) -> String {
    format!(
        "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", killwait: \"2s\"), programs: {{{programs}}})"
    )
}

/// The preloaded library, and the file that names the current faults.
#[derive(Debug)]
pub struct Faults {
    library: PathBuf,
    file: PathBuf,
}

impl Faults {
    /// Compiles the library; there are no faults yet.
    pub fn new(directory: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/faults.c");
        let library = directory.join("faults.so");
        let compiled =
            Command::new("gcc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
        assert!(compiled.expect("gcc").success());
        let faults = Self { library, file: directory.join("faults") };
        faults.set("");
        faults
    }

    /// Replaces the current faults.
    pub fn set(&self, faults: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, faults).expect("a file");
        fs::rename(new, &self.file).expect("a file");
    }

    /// Starts a gaggled with the library preloaded.
    pub fn daemon(&self, programs: &str, directory: Arc<tempfile::TempDir>) -> Daemon {
        let variables =
            [("LD_PRELOAD", self.library.display().to_string()), ("FAULTS", self.file.display().to_string())];
        Daemon::with(&config(programs), directory, &DaemonOptions { variables: &variables, ..DaemonOptions::default() })
    }
}

/// How many received system events match.
pub fn happened(daemon: &Daemon, wanted: impl Fn(&SystemEvent) -> bool) -> usize {
    let system = daemon.heard.iter().filter_map(|envelope| match &envelope.event {
        Event::System(event) => Some(event),
        Event::Program(..) | Event::Remote(..) | Event::Dependency(..) | Event::Group(..) => None,
    });
    system.filter(|event| wanted(event)).count()
}

/// The journal cannot be written.
pub fn degraded(event: &SystemEvent) -> bool {
    matches!(event, SystemEvent::JournalDegraded { .. })
}

/// The journal is written again.
pub fn restored(event: &SystemEvent) -> bool {
    matches!(event, SystemEvent::JournalRestored { .. })
}
