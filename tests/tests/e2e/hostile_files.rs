//! Attacks of a program's unprivileged user on a gaggled that runs as root, in the directories that belong to that
//! user: nothing outside them is made, changed, read or removed, and no other program is affected.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use gaggled_actors::safe_path::SafePath;
use gaggled_core::{
    base::bytes::Bytes,
    config::log_policy::{Overflow, Rotate},
    event::{Event, ProgramEvent},
    process::SpawnStage,
    protocol::{Action, Selection},
};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, directory, substitute};
use gaggled_tools::logger::{LogFile, Sink};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The user `nobody`.
const NOBODY: u32 = 65534;
/// How often each operation is tried against the racer: four of them make ten thousand tries.
const TRIES: usize = 2500;

/// A directory of root with a directory of `nobody` in it, and one of root with a file that only root can read. `None`,
/// with a notice, where the test is not run by root.
struct Site {
    root: Arc<TempDir>,
    home: PathBuf,
    victim: PathBuf,
}

impl Site {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can start programs as others");
            return None;
        }
        let root = directory();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let [home, victim] = ["home", "victim"].map(|name| root.path().join(name));
        for made in [&home, &victim, &home.join("logs")] {
            fs::create_dir(made).expect("a directory");
        }
        for given in [&home, &home.join("logs")] {
            chown(given, Some(NOBODY), Some(NOBODY)).expect("root may do that");
        }
        fs::write(victim.join("secret"), "secret\n").expect("a file");
        fs::set_permissions(victim.join("secret"), fs::Permissions::from_mode(0o600)).expect("a mode");
        Some(Self { root: Arc::new(root), home, victim })
    }

    /// Asserts that root's directory has the same files with the same contents as before.
    fn untouched(&self) {
        let found: BTreeMap<String, Vec<u8>> = fs::read_dir(&self.victim)
            .expect("a directory")
            .flatten()
            .map(|entry| (entry.file_name().display().to_string(), fs::read(entry.path()).expect("a file")))
            .collect();
        assert_eq!(found, BTreeMap::from([("secret".to_owned(), b"secret\n".to_vec())]));
    }

    /// Puts a link to the directory of root in the place of the directory of the logs.
    fn lead_astray(&self) {
        fs::remove_dir(self.home.join("logs")).expect("it is empty");
        symlink(&self.victim, self.home.join("logs")).expect("a link");
        lchown(self.home.join("logs"), Some(NOBODY), Some(NOBODY)).expect("root may do that");
    }

    fn start(&self, programs: &str) -> Daemon {
        let text = format!(
            "(gaggled: (eventurl: \"ipc://@DIR@/e.ipc\", controlurl: \"ipc://@DIR@/c.ipc\"), programs: {{{programs}}})"
        );
        let local = |name: &str| format!("ipc://{}/{name}.ipc", self.root.path().display());
        let start = DaemonOptions { urls: Some((local("e"), local("c"))), ..DaemonOptions::default() };
        Daemon::with(&text, self.root.clone(), &start)
    }
}

/// The stage at which each program has failed to start.
fn failed_stages(daemon: &Daemon) -> BTreeMap<String, SpawnStage> {
    let failed = daemon.heard.iter().filter_map(|heard| match &heard.event {
        Event::Program(of, ProgramEvent::SpawnFailed { stage, .. }) => {
            Some((daemon.state().graph.programs[*of].name.to_string(), *stage))
        }
        _ => None,
    });
    failed.collect()
}

#[test]
fn a_directory_that_is_replaced_by_a_link_makes_no_file_elsewhere() {
    let Some(site) = Site::new() else { return };
    site.lead_astray();
    let log = "log: \"@DIR@/home/logs/@NAME@\"";
    let run = "command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]";
    let programs = [
        ("plain", format!("{run}, user: \"nobody\", {log}")),
        ("of_root", format!("{run}, {log}")),
        ("line", format!("{run}, user: \"nobody\", {log}, ready: LogLine(\"ready\")")),
        ("pid", format!("{run}, user: \"nobody\", pid_file: Write(\"@DIR@/home/logs/pid\")")),
        ("rotated", format!("shell: \"while :; do echo line; sleep 0.01; done\", {log}, rotate: (size: \"4k\")")),
        ("well", run.to_owned()),
    ];
    let programs: String =
        programs.iter().map(|(name, fields)| format!("\"{name}\": ({}),", fields.replace("@NAME@", name))).collect();
    let mut daemon = site.start(&programs);
    daemon.wait_up("well", 1);
    daemon.wait_up("rotated", 1);
    let failing = BTreeMap::from([
        ("line".to_owned(), SpawnStage::Log),
        ("of_root".to_owned(), SpawnStage::Log),
        ("pid".to_owned(), SpawnStage::PidFile),
        ("plain".to_owned(), SpawnStage::Log),
    ]);
    daemon.wait("the starts to fail", |heard, state| {
        let names = state.graph.names();
        failing.keys().all(|name| {
            heard.iter().any(|heard| {
                matches!(&heard.event, Event::Program(of, ProgramEvent::SpawnFailed { .. }) if *of == names[&**name])
            })
        })
    });
    assert_eq!(failed_stages(&daemon), failing);
    site.untouched();
    daemon.end();
    site.untouched();
}

/// `gaggled -t` warns of such directories before any program is started.
#[test]
fn directories_that_others_can_change_are_warned_of() {
    let Some(site) = Site::new() else { return };
    site.lead_astray();
    fs::create_dir(site.home.join("given")).expect("a directory");
    let run = "command: \"/bin/true\", mode: Once";
    let text = format!(
        "(programs: {{\"a\": ({run}, log: \"@DIR@/home/logs/log\"), \"b\": ({run}, pid_file: \
         Write(\"@DIR@/home/given/pid\")), \"c\": ({run}, log: \"@DIR@/victim/log\")}})"
    );
    let file = site.root.path().join("system.ron");
    fs::write(&file, substitute(&text, site.root.path())).expect("a configuration");
    let said = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&file).output().expect("gaggled");
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{words}");
    assert!(words.contains("\"a\" is reached by a symbolic link that a user other than root can replace"), "{words}");
    assert!(words.contains("\"b\" can be changed by a user other than root"), "{words}");
    assert!(!words.contains("of program \"c\""), "{words}");
}

#[test]
fn a_fifo_in_the_place_of_a_log_holds_up_nobody() {
    let Some(site) = Site::new() else { return };
    let swap = "mv @DIR@/home/logs/@NAME@ @DIR@/home/logs/@NAME@.x; mkfifo @DIR@/home/logs/@NAME@; ";
    let endless = "mv @DIR@/home/logs/@NAME@ @DIR@/home/logs/@NAME@.x; ln -s /dev/zero @DIR@/home/logs/@NAME@; ";
    let stay = "exec @PUPPET@ sleep 1000000";
    let hostile = |name: &str, trick: &str, fields: &str| {
        let shell = format!("{trick}{stay}");
        format!("\"{name}\": (user: \"nobody\", shell: \"{shell}\", log: \"@DIR@/home/logs/{name}\", {fields}),")
            .replace("@NAME@", name)
    };
    let programs = [
        hostile("fifo", swap, "ready: LogLine(\"never\")"),
        hostile("zero", endless, "ready: LogLine(\"never\")"),
        format!(
            "\"rotated\": (user: \"nobody\", shell: \"sleep 0.2; mkfifo @DIR@/home/logs/r; {stay}\", \
             log: \"@DIR@/home/logs/r\", rotate: (size: \"4k\")),"
        ),
        "\"good\": (command: \"@PUPPET@\", argv: [\"notify\", \"100\", \"READY=1\"], ready: Notify),".to_owned(),
        "\"late\": (command: \"@PUPPET@\", argv: [\"notify\", \"100\", \"READY=1\"], ready: Notify, depends: {\"good\": \
         (delay: \"500ms\")}),"
            .to_owned(),
    ];
    let mut daemon = site.start(&programs.concat());
    daemon.wait("the programs that say so to be ready", |_, state| {
        let names = state.graph.names();
        ["good", "late"].iter().all(|name| state.programs[names[*name]].is_ready())
    });
    daemon.kill("good", Signal::SIGKILL);
    daemon.wait("the next run to be ready", |_, state| {
        let good = &state.programs[state.graph.names()["good"]];
        good.instance.0 == 2 && good.is_ready()
    });
    // The logger ends at once, also with a fifo in the place of a log.
    daemon.must(Action::Restart(Selection { programs: vec!["logger".to_owned()], wait: true, timeout_ms: None }));
    let killed = daemon.heard.iter().any(|heard| {
        matches!(&heard.event, Event::Program(of, ProgramEvent::KillRequested { .. }) if *of == daemon.state().graph.names()["logger"])
    });
    assert!(!killed, "{}", daemon.timeline());
    daemon.end();
}

/// Runs the racer as `nobody` until it is dropped.
struct Racer(Child);

impl Racer {
    fn new(site: &Site) -> Self {
        let nobody = NOBODY.to_string();
        let child = Command::new("setpriv")
            .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
            .arg(binary("puppet"))
            .arg("race")
            .args([&site.home, &site.victim])
            .stdin(Stdio::null())
            .spawn();
        Self(child.expect("setpriv"))
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ten thousand tries.
#[test]
fn ten_thousand_races_against_links_fifos_and_hard_links_leave_everything_outside_alone() {
    let Some(site) = Site::new() else { return };
    let racer = Racer::new(&site);
    let (stopped, stop) = nix::unistd::pipe().expect("a pipe");
    let stopped: Arc<OwnedFd> = Arc::new(stopped);
    let log = site.home.join("logs/log");
    let rotate = Rotate { size: Bytes(1), compress: true, max_files: 2, overflow: Overflow::Drop, ..Rotate::default() };
    let mut done = [0; 4];
    for _ in 0..TRIES {
        // A rotated log, as the logger writes it.
        let mut rotated = LogFile::new(&log.display().to_string(), rotate, stopped.clone());
        rotated.write(b"line\nline\n");
        done[0] += 1;
        // A plain log.
        done[1] += usize::from(append(&site.home.join("log"), b"line\n"));
        // A pid file that is written, and one that is read.
        done[2] += usize::from(write_pid(&log));
        done[3] += usize::from(SafePath::find(&log).and_then(|path| path.read()).is_ok());
    }
    drop((racer, stop));
    site.untouched();
    assert!(done.iter().all(|done| *done > 0), "some tries reach the end: {done:?}");
    for found in files(&site.home) {
        let text = Command::new("gzip").args(["-dcf"]).arg(&found).output().expect("gzip").stdout;
        assert!(!String::from_utf8_lossy(&text).contains("secret"), "{} tells the secret", found.display());
    }
}

fn append(path: &Path, bytes: &[u8]) -> bool {
    use std::io::Write;
    let file = SafePath::find(path).and_then(|path| path.append());
    file.is_ok_and(|mut file| file.write_all(bytes).is_ok())
}

fn write_pid(path: &Path) -> bool {
    use std::io::Write;
    let Ok(path) = SafePath::find(path) else { return false };
    let new = path.beside(".gaggled");
    let _ = path.directory.remove(&new);
    let made = path.directory.make(&new, 0o644).and_then(|mut file| file.write_all(b"1\n"));
    made.and_then(|()| path.directory.rename(&new, &path.name)).is_ok()
}

/// The regular files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
