//! Cgroups: no process of a run escapes from its cgroup, and its settings take effect or are refused.
//!
//! Without a writable cgroup2 these tests print a notice and pass.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gaggled_core::{
    event::{Event, ProgramEvent},
    process::ExitStatus,
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, binary, directory, exists},
    import_harness::said,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A directory for cgroups that is removed with its test.
struct Place {
    path: PathBuf,
    mount: PathBuf,
}

impl Place {
    fn new(directory: &TempDir) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
        let mount = PathBuf::from(mount.map_or("", |words| words[1]));
        let path = mount.join(directory.path().file_name().expect("a name"));
        if mount.as_os_str().is_empty() || fs::create_dir(&path).is_err() {
            println!("skipped: there is no cgroup2 here that can be written");
            return None;
        }
        Some(Self { path, mount })
    }

    fn controllers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.mount.join("cgroup.controllers")).expect("controllers");
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn configuration(&self, directory: &TempDir, programs: &str) -> String {
        let (dir, path) = (directory.path().display(), self.path.display());
        format!(
            "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\", killwait: \"2s\", \
             cgroup: \"{path}\"), programs: {{{programs}}})"
        )
    }

    /// The names of the existing cgroups.
    fn runs(&self) -> Vec<String> {
        let directories = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        let runs = directories(&self.path).into_iter().flat_map(|own| directories(&own));
        let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut runs: Vec<String> = runs.filter_map(name).collect();
        runs.sort();
        runs
    }

    fn file(&self, run: &str, file: &str) -> String {
        let own = fs::read_dir(&self.path).expect("a directory").flatten().map(|entry| entry.path());
        let own = own.into_iter().find(|path| path.is_dir()).expect("gaggled's own");
        fs::read_to_string(own.join(run).join(file)).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for own in fs::read_dir(&self.path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let _ = fs::remove_dir(own.path());
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Leaves a process that only its cgroup can find: in a session of its own, without environment.
const ESCAPER: &str = r#""escaper": (shell: "env -i setsid sleep 1000000 & echo $! > @DIR@/escaped; exec sleep 1000000", log: "@DIR@/log"),"#;

fn escaped(directory: &Arc<TempDir>) -> i32 {
    let text = fs::read_to_string(directory.path().join("escaped")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn ends(daemon: &Daemon, name: &str) -> Vec<(ExitStatus, u16)> {
    let id = daemon.state().graph.names()[name];
    let end = |event: &Event| match event {
        Event::Program(of, ProgramEvent::Exited { status, orphans, .. }) if *of == id => Some((*status, *orphans)),
        _ => None,
    };
    daemon.heard.iter().filter_map(|heard| end(&heard.event)).collect()
}

/// Test 6, with a cgroup.
#[test]
fn nothing_of_a_run_escapes_from_its_cgroup() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    let text = place.configuration(&directory, ESCAPER);
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("escaper", 1);
    let written = directory.clone();
    daemon.wait_outside("the escape", move || escaped(&written) > 0);
    let first = escaped(&directory);
    assert_eq!(place.runs(), ["escaper.1"]);
    assert!(place.file("escaper.1", "cgroup.procs").lines().any(|pid| pid == first.to_string()));
    fs::remove_file(directory.path().join("escaped")).expect("a file");

    daemon.kill("escaper", Signal::SIGKILL);
    daemon.wait_up("escaper", 2);
    assert_eq!(ends(&daemon, "escaper"), [(ExitStatus::Signal(9), 1)], "what has escaped is counted");
    let runs = || place.runs();
    daemon.wait_outside("the end of what has escaped", || !exists(first) && runs() == ["escaper.2"]);

    // The next daemon finds the process, also after a time in which no gaggled ran.
    let written = directory.clone();
    daemon.wait_outside("another escape", move || escaped(&written) > 0);
    let (second, main) = (escaped(&directory), daemon.pid_of("escaper"));
    daemon.kill_daemon();
    assert_eq!((daemon.pid_of("escaper"), place.runs()), (main, vec!["escaper.2".to_owned()]));
    daemon.kill_all();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(main), Signal::SIGKILL).expect("it runs");
    let mut daemon = daemon.again();
    daemon.wait_up("escaper", 3);
    daemon.wait_outside("the end of what has escaped", || !exists(second));
    daemon.kill("escaper", Signal::SIGKILL);
    daemon.wait_up("escaper", 4);
    daemon.wait_outside("the end of older cgroups", || runs() == ["escaper.4"]);
    daemon.end();
    assert_eq!(place.runs(), Vec::<String>::new(), "nothing is left");
    daemon.verify();
}

#[test]
fn a_run_ends_in_the_cgroup_in_which_it_began_whatever_is_configured_now() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    let program = "\"a\": (command: \"sleep\", argv: [\"1000000\"]),";
    let text = place.configuration(&directory, program);
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("a", 1);
    let first = daemon.pid_of("a");
    let config = directory.path().join("system.ron");
    let text =
        fs::read_to_string(&config).expect("a file").replace(&format!("cgroup: \"{}\",", place.path.display()), "");
    fs::write(&config, text).expect("a file");
    let (_, text) = said(&daemon.tool("gaggled_controller", &["plan"]));
    assert!(text.contains("gaggled.cgroup changed"), "{text}");
    let (code, text) = said(&daemon.tool("gaggled_controller", &["reload"]));
    assert_eq!(code, 0, "{text}");
    daemon.wait_up("a", 2);
    assert!(!exists(first));
    assert_eq!(place.runs(), Vec::<String>::new(), "the cgroup of the run before went with it");
}

/// Cgroups that a run makes in its own, as a container does, are removed with it.
#[test]
fn cgroups_that_a_program_has_made_go_with_its_own() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    let inner = format!("{}$(sed -n 's/^0:://p' /proc/self/cgroup)/inner/most", place.mount.display());
    let program = format!(
        r#""nester": (shell: "mkdir -p {inner} && (echo 0 > {inner}/cgroup.procs; exec env -i setsid sleep 1000000) & touch @DIR@/made; exec sleep 1000000"),"#
    );
    let mut daemon =
        Daemon::with(&place.configuration(&directory, &program), directory.clone(), &DaemonOptions::default());
    daemon.wait_up("nester", 1);
    daemon.wait_outside("the inner cgroup", || !place.file("nester.1", "inner/most/cgroup.procs").is_empty());
    let inner: i32 = place.file("nester.1", "inner/most/cgroup.procs").parse().expect("one process");
    daemon.kill("nester", Signal::SIGKILL);
    daemon.wait_up("nester", 2);
    assert_eq!(ends(&daemon, "nester"), [(ExitStatus::Signal(9), 1)]);
    daemon.wait_outside("the end of it", || !exists(inner) && place.runs() == ["nester.2"]);
    daemon.end();
    assert_eq!(place.runs(), Vec::<String>::new());
}

/// Cgroups in the directory of an earlier configuration are found, and a directory is the same by another path.
#[test]
fn a_directory_of_long_ago_is_known_by_any_name() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    let program = format!("{ESCAPER} \"other\": (command: \"sleep\", argv: [\"1000000\"]),")
        .replace("shell:", "killwait: \"3s\", shell:")
        .replace("exec sleep", "trap '' TERM; sleep")
        // Only the first run escapes: a process without a cgroup would outlive this test.
        .replace("env -i", "test -e @DIR@/escaped && exec sleep 1000000; env -i");
    let text = place.configuration(&directory, &program);
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("escaper", 1);
    daemon.wait_up("other", 1);
    let written = directory.clone();
    daemon.wait_outside("the escape", move || escaped(&written) > 0);
    let (stray, other) = (escaped(&directory), daemon.pid_of("other"));
    let config = directory.path().join("system.ron");
    let written = fs::read_to_string(&config).expect("a file");
    let (first, link) = (place.path.display().to_string(), directory.path().join("link"));
    std::os::unix::fs::symlink(&place.path, &link).expect("a link");
    let reload = |daemon: &Daemon, cgroup: &str| {
        fs::write(&config, written.replace(&format!("cgroup: \"{first}\","), cgroup)).expect("a file");
        let (code, text) = said(&daemon.tool("gaggled_controller", &["reload"]));
        assert_eq!(code, 0, "{text}");
    };
    reload(&daemon, "");
    reload(&daemon, "prefix_output: false,");
    daemon.wait_up("escaper", 2);
    daemon.wait_outside("the end of what has escaped", || !exists(stray));
    assert!(!exists(other));
    daemon.wait_outside("the end of the cgroups", || place.runs().is_empty());

    reload(&daemon, &format!("cgroup: \"{first}\","));
    daemon.wait_up("other", 3);
    let other = daemon.pid_of("other");
    // Another path to the same directory is a changed setting, so the program is restarted there.
    reload(&daemon, &format!("cgroup: \"{}\",", link.display()));
    daemon.wait_up("other", 4);
    assert!(!exists(other));
    let stopped = ends(&daemon, "other").last().copied();
    assert_eq!(stopped, Some((ExitStatus::Signal(15), 0)), "it was asked to end, and not killed by surprise");
    daemon.end();
    assert_eq!(place.runs(), Vec::<String>::new());
    daemon.verify();
}

/// The cgroups that a copied journal names belong to the original gaggled.
#[test]
fn a_copy_of_a_journal_leaves_the_cgroups_of_the_original_alone() {
    let (directory, elsewhere) = (Arc::new(directory()), Arc::new(directory()));
    let Some(place) = Place::new(&directory) else { return };
    let program = "\"a\": (command: \"sleep\", argv: [\"1000000\"]),";
    let mut daemon =
        Daemon::with(&place.configuration(&directory, program), directory.clone(), &DaemonOptions::default());
    daemon.wait_up("a", 1);
    let pid = daemon.pid_of("a");
    let copied = Command::new("cp").arg("-r").arg(daemon.journal()).arg(elsewhere.path().join("state")).status();
    assert!(copied.expect("cp").success());
    let mut copy = Daemon::with(&place.configuration(&elsewhere, program), elsewhere, &DaemonOptions::default());
    copy.wait_up("a", 2);
    copy.end();
    assert_eq!((daemon.pid_of("a"), daemon.dump()["a"]["instance"].as_u64()), (pid, Some(1)));
    assert_eq!(place.runs(), ["a.1"]);
    daemon.end();
    assert_eq!(place.runs(), Vec::<String>::new());
}

/// Settings of any available controller.
#[test]
fn what_is_asked_of_a_cgroup_is_kept_or_refused() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    let controllers = place.controllers();
    let known = [("pids", "pids.max", "64"), ("memory", "memory.max", "67108864"), ("hugetlb", "hugetlb.2MB.max", "0")];
    let program = |setting: &str, value: &str| {
        format!("\"held\": (command: \"sleep\", argv: [\"1000000\"], cgroup: {{\"{setting}\": \"{value}\"}}),")
    };
    let config = directory.path().join("system.ron");
    let gaggled = |arguments: &[&str]| {
        said(&Command::new(binary("gaggled")).args(arguments).arg("-c").arg(&config).output().expect("gaggled"))
    };
    fs::write(&config, place.configuration(&directory, &program("nothing.max", "1"))).expect("a file");
    let (code, text) = gaggled(&["-t"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no controller \"nothing\"") && text.contains("system.ron:1:"), "{text}");

    let Some((_, setting, value)) = known.into_iter().find(|(name, ..)| controllers.iter().any(|known| known == name))
    else {
        println!("skipped: cgroup2 has no controller here");
        return;
    };
    let state = format!("gaggled: (state_directory: \"{}/state\", ", directory.path().display());
    let wrong = place.configuration(&directory, &program(setting, "plenty")).replace("gaggled: (", &state);
    fs::write(&config, wrong).expect("a file");
    let (code, text) = gaggled(&[]);
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("\"held\"") && text.contains(&format!("\"{setting}\": \"plenty\"")), "{text}");

    let text = place.configuration(&directory, &program(setting, value));
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("held", 1);
    assert_eq!(place.file("held.1", setting), value);
    assert_eq!(place.file("held.1", "cgroup.procs"), daemon.pid_of("held").to_string());
    let held = daemon.pid_of("held");
    fs::write(&config, fs::read_to_string(&config).expect("a file").replace(&format!(": \"{value}\""), ": \"plenty\""))
        .expect("a file");
    let (code, text) = said(&daemon.tool("gaggled_controller", &["reload"]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("nothing is changed") && text.contains("\"plenty\""), "{text}");
    assert_eq!(daemon.pid_of("held"), held);
    // The reload is also refused while the program is down.
    for (arguments, expected) in [(&["down", "held"][..], 0), (&["reload"], 1), (&["up", "held"], 0)] {
        let (code, text) = said(&daemon.tool("gaggled_controller", arguments));
        assert_eq!(code, expected, "{arguments:?}: {text}");
    }
    daemon.end();
    assert_eq!(place.runs(), Vec::<String>::new());

    // The settings of a disabled program are not checked.
    let disabled = program("nothing.max", "1").replace("cgroup:", "enabled: false, cgroup:");
    let mut daemon =
        Daemon::with(&place.configuration(&directory, &disabled), directory.clone(), &DaemonOptions::default());
    assert_eq!(code_of(&mut daemon), 0);
}

fn code_of(daemon: &mut Daemon) -> i32 {
    gaggled_tests::harness::code(daemon.end())
}

/// Test 60.
#[test]
fn a_program_without_memory_is_told_so_and_gaggled_lives() {
    let directory = Arc::new(directory());
    let Some(place) = Place::new(&directory) else { return };
    if !place.controllers().iter().any(|controller| controller == "memory") {
        println!("skipped: cgroup2 has no controller for memory here");
        return;
    }
    let text = place.configuration(
        &directory,
        r#""hog": (shell: "tail /dev/zero", mode: Once, cgroup: {"memory.max": "16M", "memory.swap.max": "0"}),"#,
    );
    let mut daemon = Daemon::with(&text, directory, &DaemonOptions::default());
    daemon.wait("the end of the hog", |_, state| {
        !state.programs[state.graph.names()["hog"]].is_running()
            && state.programs[state.graph.names()["hog"]].instance.0 > 0
    });
    assert!(ends(&daemon, "hog").iter().any(|(status, _)| *status == ExitStatus::OutOfMemory), "{}", daemon.timeline());
    assert_eq!(daemon.dump()["hog"]["exit_kind"], "OOM");
    daemon.verify();
}
