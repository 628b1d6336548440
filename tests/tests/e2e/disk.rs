//! Full, slow or broken disks, and unsafe directories: supervision continues, or does not begin, and gaggled says why.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
};

use gaggled_core::{
    event::{Envelope, Event, StartKind, SystemEvent},
    protocol::Action,
    state::{ProgramState, State},
};
use gaggled_tests::{
    faults::{Faults, config, crash_looper, degraded, happened, restored, sleeper},
    harness::{Daemon, DaemonOptions, binary, code, directory, possible},
};
use nix::sys::signal::Signal;

/// Tests 37 and 38: writing fails for a while.
#[test]
fn a_disk_that_cannot_be_written_stops_nothing_and_is_healed_by_a_snapshot() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let mut daemon = faults.daemon(&format!("{}{}", sleeper("a"), crash_looper("b")), directory);
    daemon.wait_up("a", 1);
    for errno in [28, 5] {
        let before = happened(&daemon, restored);
        faults.set(&format!("write {errno}"));
        daemon.wait("the journal to be degraded", |heard, _| {
            heard.iter().filter(|envelope| matches!(&envelope.event, Event::System(event) if degraded(event))).count()
                > before
        });
        let starts = daemon.dump()["b"]["restarts"].as_u64().expect("a number");
        daemon.wait("supervision to go on", |_, state| state.programs[state.graph.names()["b"]].restarts > starts + 20);
        faults.set("");
        daemon.wait("the journal to be restored", |heard, _| {
            heard.iter().filter(|envelope| matches!(&envelope.event, Event::System(event) if restored(event))).count()
                > before
        });
    }
    daemon.must(Action::Down(gaggled_core::protocol::Selection {
        programs: vec!["b".into()],
        wait: true,
        timeout_ms: None,
    }));
    let pid = daemon.pid_of("a");
    daemon.kill_daemon();
    assert_eq!(daemon.pid_of("a"), pid, "what the snapshot has is gone on from");
    assert!(daemon.verify().contains("are missing"), "what was never written is said to be missing");
    assert_eq!(code(daemon.end()), 0);
}

/// A new segment records how many events are missing before it, even if no event is ever added to it.
#[test]
fn what_is_missing_is_said_although_the_disk_fails_again_at_once() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let mut daemon = faults.daemon(&crash_looper("b"), directory);
    daemon.wait_up("b", 1);
    faults.set("append 28");
    let times = |which: fn(&SystemEvent) -> bool, times: usize| {
        move |heard: &[Envelope], _: &State| {
            let is = |envelope: &&Envelope| matches!(&envelope.event, Event::System(event) if which(event));
            heard.iter().filter(is).count() >= times
        }
    };
    daemon.wait("a segment to be begun", times(restored, 1));
    daemon.wait("it to fail", times(degraded, 2));
    faults.set("");
    daemon.wait("another that lasts", times(restored, 2));
    daemon.kill_daemon();
    assert!(daemon.verify().contains("are missing"), "what was never written is said to be missing");
    assert_eq!(code(daemon.end()), 0);
}

/// Events of a shutdown that are missing in the journal are not taken for a violation by it.
#[test]
fn a_shutdown_that_is_missing_in_the_journal_is_no_fault() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let slow = "\"slow\": (command: \"@PUPPET@\", argv: [\"slowterm\", \"3000\", \"0\"], killwait: \"20s\"),";
    let mut daemon = faults.daemon(&format!("{slow}{}", crash_looper("b")), directory);
    daemon.wait_up("slow", 1);
    daemon.wait_deaf(&["slow"]);
    faults.set("write 28");
    daemon.wait("the journal to fail", |heard, _| {
        heard.iter().any(|envelope| matches!(&envelope.event, Event::System(event) if degraded(event)))
    });
    assert!(daemon.tool("gaggled_controller", &["shutdown", "--no-wait"]).status.success());
    faults.set("");
    daemon.wait("the journal to be written again", |heard, _| {
        heard.iter().any(|envelope| matches!(&envelope.event, Event::System(event) if restored(event)))
    });
    assert_eq!(code(daemon.await_end()), 0);
    assert!(daemon.verify().contains("are missing"));
}

#[test]
fn a_journal_that_is_written_in_small_pieces_is_whole() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    faults.set("short 5");
    let mut daemon = faults.daemon(&crash_looper("b"), directory);
    daemon.wait("some churn", |_, state| state.programs.values().all(|program| program.restarts > 20));
    daemon.end();
    daemon.verify();
}

/// Test 38: a synchronisation takes five seconds, and a start does not.
#[test]
fn a_slow_disk_delays_no_start() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let mut daemon = faults.daemon(&sleeper("a"), directory);
    daemon.wait_up("a", 1);
    faults.set("sync 5000");
    // What is written now is being synchronised while the next restarts happen.
    for run in 2..12 {
        daemon.kill("a", Signal::SIGKILL);
        daemon.wait_up("a", run);
        let up =
            daemon.heard.iter().rev().find(|envelope| envelope.event.name() == "ProgramStarted").expect("it came up");
        let ended =
            daemon.heard.iter().rev().find(|envelope| envelope.event.name() == "ProgramExited").expect("it ended");
        let spaced =
            daemon.heard.iter().rev().find(|envelope| envelope.event.name() == "ProgramStarting").expect("it started");
        assert!(
            spaced.monotonic.until(up.monotonic).0 < 1000,
            "the start took {}",
            spaced.monotonic.until(up.monotonic)
        );
        assert!(ended.monotonic <= spaced.monotonic);
        daemon.must(Action::Up(gaggled_core::protocol::Selection::default()));
    }
    faults.set("");
}

/// Test 37 on a real disk that is really full.
#[test]
fn a_disk_that_is_full_stops_nothing() {
    let directory = Arc::new(directory());
    let state = directory.path().join("state");
    fs::create_dir(&state).expect("a directory");
    let mount = format!("mount -t tmpfs -o size=1m,mode=700 tmpfs {} && exec \"$@\"", state.display());
    let wrapper = ["unshare", "-m", "sh", "-c", &mount, "sh"];
    if !possible(&["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]) {
        return;
    }
    let config = config(&format!("{}{}{}", sleeper("a"), crash_looper("b"), crash_looper("c")))
        .replace("killwait", "journal: (megabytes: 64), killwait");
    let mut daemon = Daemon::with(&config, directory, &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait("the disk to be full", |heard, _| {
        heard.iter().any(|envelope| matches!(&envelope.event, Event::System(SystemEvent::JournalDegraded { reason: why }) if why.contains("no space left")))
    });
    let starts = daemon.dump()["b"]["restarts"].as_u64().expect("a number");
    daemon.wait("supervision to go on", |_, state| state.programs[state.graph.names()["b"]].restarts > starts + 50);
    assert_eq!(daemon.dump()["a"]["instance"], 1);
    let output = daemon.tool("gaggled_controller", &["shutdown"]);
    assert!(output.status.success());
    daemon.await_end();
}

/// Tests 41 and 50: directories where a journal must not be kept.
#[test]
fn a_journal_is_only_kept_where_nobody_else_can_change_it() {
    let directory = directory();
    let place = directory.path().join("place");
    let config = directory.path().join("system.ron");
    let local = |name: &str| format!("ipc://{}/{name}.ipc", directory.path().display());
    fs::write(
        &config,
        format!(
            "(gaggled: (eventurl: \"{}\", controlurl: \"{}\", state_directory: \"{}\"), programs: {{\"a\": (command: \"/bin/true\")}})",
            local("events"),
            local("control"),
            place.display()
        ),
    )
    .expect("a configuration");
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    let cases: [(&str, &dyn Fn(), &str); 6] = [
        ("a link", &|| symlink(&elsewhere, &place).expect("a link"), "is a symbolic link"),
        ("a file", &|| fs::write(&place, "precious").expect("a file"), "is not a directory"),
        (
            "a fifo",
            &|| nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).expect("a fifo"),
            "is not a directory",
        ),
        (
            "a directory that others can write",
            &|| {
                fs::create_dir(&place).expect("a directory");
                mode(&place, 0o777);
            },
            "can be written by others",
        ),
        (
            "a directory of another user",
            &|| {
                fs::create_dir(&place).expect("a directory");
                let nobody = Some(nix::unistd::Uid::from_raw(65534));
                nix::unistd::chown(&place, nobody, None).expect("root may do that");
            },
            "belongs to another user",
        ),
        (
            "a segment that is a link",
            &|| {
                fs::create_dir(&place).expect("a directory");
                mode(&place, 0o700);
                symlink("/etc/passwd", place.join("0000000000000001-0000000000000000.journal")).expect("a link");
            },
            "is a symbolic link",
        ),
    ];
    let root = nix::unistd::geteuid().is_root();
    for (what, make, words) in cases {
        if what.contains("another user") && !root {
            eprintln!("skipped: only root can give a directory to another user");
            continue;
        }
        make();
        let refused = Command::new(binary("gaggled")).arg("-c").arg(&config).output().expect("gaggled");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(100), "{what}: {said}");
        assert!(said.contains(words), "{what}: {said}");
        let _ = fs::remove_file(&place);
        let _ = fs::remove_dir_all(&place);
    }
}

/// Test 50: two daemons with one journal, although their urls differ.
#[test]
fn a_second_gaggled_with_the_same_journal_is_refused() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let text = fs::read_to_string(daemon.directory.path().join("system.ron")).expect("a configuration");
    let other = daemon.directory.path().join("other.ron");
    fs::write(&other, text.replace("events.ipc", "e2.ipc").replace("control.ipc", "c2.ipc")).expect("a configuration");
    let refused = Command::new(binary("gaggled")).arg("-c").arg(other).output().expect("gaggled");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(100), "{said}");
    assert!(said.contains("is already in use by another gaggled, pid"), "{said}");
    assert_eq!(daemon.dump()["a"]["instance"], 1);
}

/// Test 40: a byte in the middle of the journal is changed.
#[test]
fn a_damaged_segment_is_put_aside_and_said_to_be() {
    // An event, and the snapshot.
    for frame in [3, 1] {
        damaged_at(frame);
    }
}

fn damaged_at(frame: usize) {
    let mut daemon = Daemon::new(&format!("{}{}", sleeper("a"), sleeper("b")));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let (a, b) = (daemon.pid_of("a"), daemon.pid_of("b"));
    daemon.kill_all();
    let segment = fs::read_dir(daemon.journal()).expect("a journal").flatten().map(|entry| entry.path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "journal")).max().expect("a segment");
    let mut bytes = fs::read(&segment).expect("a segment");
    let marks: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, mark)| *mark == b"gag\x01").map(|(at, _)| at).collect();
    bytes[marks[frame] + 40] ^= 1;
    fs::write(&segment, &bytes).expect("a damaged segment");
    let fold = Command::new(binary("gaggled")).args(["journal", "state"]).arg(daemon.journal()).output();
    let (status, told) = gaggled_tests::import_harness::said(&fold.expect("gaggled"));
    let expected = if frame == 1 { "no segment of the journal can be read" } else { "this is the state before that" };
    assert_eq!((status, told.contains(expected)), (1, true), "{told}");
    let mut again = daemon.again();
    again.wait("the damage to be told", |heard, _| {
        heard.iter().any(|envelope| matches!(envelope.event, Event::System(SystemEvent::JournalDamaged { .. })))
    });
    assert_eq!((again.pid_of("a"), again.pid_of("b")), (a, b), "found by their tokens");
    assert_eq!(fs::read(segment.with_extension("damaged")).expect("it is kept"), bytes);
    again.verify();
}

/// A gaggled with a copy of a journal, such as a backup, must not take over the programs of the original.
#[test]
fn a_copy_of_a_journal_takes_nobodys_programs() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let pid = daemon.pid_of("a");
    let other = Arc::new(directory());
    let copied = Command::new("cp").arg("-r").arg(daemon.journal()).arg(other.path().join("state")).status();
    assert!(copied.expect("cp").success());
    let mut copy = Daemon::with(&config(&sleeper("a")), other, &DaemonOptions::default());
    copy.wait("a life of its own", |heard, _| {
        heard.iter().any(|envelope| {
            matches!(
                envelope.event,
                Event::System(SystemEvent::DaemonStarted { start_kind: StartKind::CopiedState, .. })
            )
        })
    });
    copy.wait_up("a", 2);
    assert_ne!(copy.pid_of("a"), pid);
    copy.end();
    assert_eq!((daemon.pid_of("a"), daemon.dump()["a"]["instance"].as_i64()), (pid, Some(1)));
}

/// Test 38, driven by seeds: any call that changes the state directory fails, is torn or takes its time.
#[test]
fn whatever_a_disk_does_nothing_runs_twice_and_the_journal_is_whole_again() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let mut daemon = faults.daemon(&format!("{}{}{}", sleeper("a"), sleeper("c"), crash_looper("b")), directory);
    daemon.wait_up("a", 1);
    daemon.wait_up("c", 1);
    let pids = [daemon.pid_of("a"), daemon.pid_of("c")];
    for seed in 0..8 {
        let (seq, restarts) = (daemon.state().seq.0, happened(&daemon, restored));
        faults.set(&format!("random {}", seed * 100 + [10, 40, 80][seed % 3]));
        daemon.wait("events on a bad disk", |_, state| state.seq.0 > seq + 300);
        if seed % 4 == 3 {
            // Runs that are missing in the journal are known from the flight recorder and the tokens.
            daemon.kill_daemon();
        }
        faults.set("");
        let was_bad = happened(&daemon, degraded) > restarts;
        if was_bad && seed % 4 != 3 {
            daemon.wait("the journal to be restored", |heard, _| {
                let count = |wanted: fn(&SystemEvent) -> bool| {
                    heard.iter().filter(|heard| matches!(&heard.event, Event::System(event) if wanted(event))).count()
                };
                count(restored) > restarts
            });
        }
        assert_eq!([daemon.pid_of("a"), daemon.pid_of("c")], pids, "seed {seed}\n{}", daemon.timeline());
    }
    assert!(happened(&daemon, degraded) > 3, "the disk was bad: {}", happened(&daemon, degraded));
    assert_eq!(code(daemon.end()), 0);
    daemon.verify();
}
