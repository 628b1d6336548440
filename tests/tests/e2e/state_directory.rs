//! The state directory is removed, emptied or replaced under a running gaggled: no program runs twice, and nothing that an
//! operator wanted is forgotten.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command, thread};

use gaggled_actors::journal::directory::StateDirectory;
use gaggled_core::{
    event::{Event, ProgramEvent, SystemEvent},
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::{
    harness::{Daemon, binary},
    import_harness,
};
use nix::{
    fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// The output of a tool.
fn said(output: &std::process::Output) -> String {
    import_harness::said(output).1
}

fn start() -> Daemon {
    let program = |name: &str| format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),");
    let rotated =
        "\"noisy\": (shell: \"while :; do echo line; sleep 0.05; done\", log: \"@DIR@/noisy.log\", rotate: ()),";
    let mut daemon = Daemon::new(&format!("{}{}{}{rotated}", program("a"), program("b"), program("down")));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    daemon.must(Action::Down(Selection { programs: vec!["down".to_owned()], wait: true, timeout_ms: None }));
    daemon
}

/// Removes the directory with a rename, because the daemon could make it anew while its files are being removed.
fn remove(daemon: &Daemon) {
    let trash = tempfile::tempdir_in(daemon.directory.path()).expect("a directory");
    fs::rename(daemon.journal(), trash.path().join("state")).expect("it is there");
}

/// The process ids of the programs that must not be touched.
fn pids(daemon: &Daemon) -> Vec<Value> {
    let dump = daemon.dump();
    ["a", "b", "noisy"].iter().map(|name| dump[*name]["pid"].clone()).collect()
}

fn wait_restored(daemon: &mut Daemon, times: usize) {
    daemon.wait("the journal to be written again", |heard, _| {
        let restored = heard
            .iter()
            .filter(|heard| matches!(heard.event, Event::System(SystemEvent::JournalRestored { .. })))
            .count();
        restored >= times
    });
}

fn controller(daemon: &Daemon, words: &[&str]) {
    let output = daemon.tool("gaggled_controller", words);
    assert!(output.status.success(), "{words:?}: {}", said(&output));
}

/// Asserts that everything is as it was, except for the logger, whose pipes were made anew.
fn must_be_untouched(daemon: &Daemon, before: &[Value]) {
    assert_eq!(pids(daemon), before, "{}", daemon.timeline());
    assert_eq!(daemon.dump()["down"]["operator_down"], true);
    let url = format!("GAGGLED_CONTROL_URL={}", daemon.control);
    let of_test = |pid: &str| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "puppet" && String::from_utf8_lossy(&environment).contains(&url)
    };
    let found = fs::read_dir("/proc").expect("processes").flatten();
    let count = found.filter_map(|entry| entry.file_name().into_string().ok()).filter(|pid| of_test(pid)).count();
    assert_eq!(count, 2, "one process of each");
    daemon.verify();
}

/// Removed before a reload, an upgrade, the death of the daemon, and that of both processes.
#[test]
fn a_state_directory_that_is_removed_is_made_anew_from_memory() {
    let mut daemon = start();
    let before = pids(&daemon);
    for (round, words) in [&["reload"][..], &["upgrade"]].into_iter().enumerate() {
        remove(&daemon);
        wait_restored(&mut daemon, round + 1);
        let config = daemon.directory.path().join("system.ron");
        let text = fs::read_to_string(&config).expect("a configuration");
        fs::write(&config, format!("{text}\n// Changed.\n")).expect("a configuration");
        controller(&daemon, words);
        must_be_untouched(&daemon, &before);
    }
    remove(&daemon);
    wait_restored(&mut daemon, 3);
    daemon.kill_daemon();
    must_be_untouched(&daemon, &before);
    remove(&daemon);
    wait_restored(&mut daemon, 4);
    daemon.kill_all();
    let daemon = daemon.again();
    must_be_untouched(&daemon, &before);
    // The logger still writes the output that it reads from the pipes.
    let log = daemon.directory.path().join("noisy.log");
    let length = fs::metadata(&log).expect("a log").len();
    let mut daemon = daemon;
    daemon.wait_outside("more lines", move || fs::metadata(&log).is_ok_and(|found| found.len() > length + 100));
}

#[test]
fn a_state_directory_that_is_emptied_or_replaced_is_taken_again() {
    let mut daemon = start();
    let before = pids(&daemon);
    let copy = daemon.directory.path().join("copy");
    let copied = Command::new("cp").arg("-a").args([&daemon.journal(), &copy]).status().expect("cp");
    assert!(copied.success());
    for entry in fs::read_dir(daemon.journal()).expect("a directory").flatten() {
        let path = entry.path();
        // Errors are ignored: the daemon makes the directory anew meanwhile, so entries may be gone or not empty.
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    wait_restored(&mut daemon, 1);
    daemon.kill_daemon();
    must_be_untouched(&daemon, &before);
    // Put an older copy in its place, like a restored backup. Between two renames the daemon could make it anew.
    renameat2(AT_FDCWD, &copy, AT_FDCWD, &daemon.journal(), RenameFlags::RENAME_EXCHANGE).expect("both are there");
    let daemon_pid = daemon.daemon_pid();
    // The directory is checked before a handover, even if the kernel has not reported the change yet.
    controller(&daemon, &["upgrade"]);
    daemon.wait_for_another(daemon_pid);
    must_be_untouched(&daemon, &before);
    daemon.kill_all();
    let daemon = daemon.again();
    must_be_untouched(&daemon, &before);
}

/// gaggled refuses to start beside running programs that its journal does not have.
#[test]
fn without_its_state_directory_gaggled_does_not_begin_beside_its_programs() {
    let mut daemon = start();
    let before = pids(&daemon);
    daemon.kill_all();
    let away = daemon.directory.path().join("away");
    fs::rename(daemon.journal(), &away).expect("it is there");
    let config = daemon.directory.path().join("system.ron");
    for _ in 0..2 {
        let output = Command::new(binary("gaggled")).arg("-c").arg(&config).output().expect("gaggled");
        assert_eq!(output.status.code(), Some(100), "{}", said(&output));
        assert!(said(&output).contains(&format!("a (pid {})", before[0])), "{}", said(&output));
        assert!(said(&output).contains("restore the directory"), "{}", said(&output));
    }
    remove(&daemon);
    fs::rename(&away, daemon.journal()).expect("it is there");
    let daemon = daemon.again();
    must_be_untouched(&daemon, &before);
}

/// The daemon is killed before it can heal the directory: what its subreaper has kept is enough to know the programs.
#[test]
fn a_daemon_that_dies_with_its_state_directory_is_followed_by_one_that_knows_its_programs() {
    let mut daemon = start();
    let before = pids(&daemon);
    let daemon_pid = daemon.daemon_pid();
    daemon.freeze(daemon_pid);
    remove(&daemon);
    kill(Pid::from_raw(daemon_pid), Signal::SIGKILL).expect("it runs");
    daemon.wait("its programs to be found", |heard, state| {
        let found = |name: &str| {
            let id = state.graph.names().get(name).copied();
            heard.iter().any(
                |heard| matches!(&heard.event, Event::Program(of, ProgramEvent::Adopted { .. }) if Some(*of) == id),
            )
        };
        ["a", "b"].into_iter().all(found)
    });
    assert_eq!(pids(&daemon)[..2], before[..2], "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("it was removed while gaggled ran"), "{log}");
    assert!(Path::new(&daemon.journal()).join("identity").exists());
}

/// Two systems on one machine do not share what operators wanted.
#[test]
fn the_state_of_another_configuration_is_taken_only_when_that_is_asked_for() {
    let mut daemon = start();
    daemon.end();
    let directory = daemon.directory.clone();
    let [own, other] = ["system.ron", "other.ron"].map(|name| directory.path().join(name));
    fs::copy(&own, &other).expect("a copy");
    let output = Command::new(binary("gaggled")).arg("-c").arg(&other).output().expect("gaggled");
    assert_eq!(output.status.code(), Some(100), "{}", said(&output));
    let words = format!("is the state of {}, and this is {}", own.display(), other.display());
    assert!(said(&output).contains(&words) && said(&output).contains("--take-state"), "{}", said(&output));
    let mut gaggled =
        Command::new(binary("gaggled")).arg("--take-state").arg("-c").arg(&other).spawn().expect("gaggled");
    let caller = gaggled_gateways::client::ControlClient::dial_whenever(&daemon.control).expect("a url");
    let shutdown = gaggled_core::protocol::Request::new("", Action::Shutdown { wait: false, timeout_ms: None });
    assert!(caller.call(&shutdown, gaggled_tests::harness::PATIENCE).expect("an answer").ok);
    assert!(gaggled.wait().expect("its end").success());
}

/// A child that a killed gaggled was just starting holds the lock until it has executed its program.
#[test]
fn a_lock_that_a_dying_process_still_has_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    drop(StateDirectory::open(&path, None).expect("a directory"));
    let file = fs::File::open(path.join("lock")).expect("the lock");
    let inode = file.metadata().expect("it is there").ino();
    let held = Flock::lock(file, FlockArg::LockExclusive).expect("it is free");
    let opener = thread::spawn(move || StateDirectory::open(&path, None).map(drop));
    let waiter = format!(":{inode} ");
    let is_waited_for = || {
        let locks = fs::read_to_string("/proc/locks").expect("the locks");
        locks.lines().any(|lock| lock.contains("-> FLOCK") && lock.contains(&waiter))
    };
    while !is_waited_for() {
        assert!(!opener.is_finished(), "it has not waited");
        thread::yield_now();
    }
    drop(held);
    opener.join().expect("no panic").expect("the directory");
}
