//! gaggled is killed at any moment, and nothing is lost: no program, exit status, event or request of an operator.

use std::{collections::BTreeMap, fs, process::Command};

use gaggled_core::{
    event::{Event, ProgramEvent},
    process::ExitStatus,
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::{
    harness::{Daemon, binary, children, code, exists, parent},
    sim::random::Random,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn sleeper(name: &str) -> String {
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"2000000000\"]),")
}

fn one(program: &str) -> Selection {
    Selection { programs: vec![program.to_owned()], wait: true, timeout_ms: None }
}

fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The main processes that carry a token of this daemon's journal, by program.
fn bearers(daemon: &Daemon) -> BTreeMap<String, Vec<i32>> {
    let url = format!("GAGGLED_CONTROL_URL={}", daemon.control);
    let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let pids = fs::read_dir("/proc").expect("processes").flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&environment).into_owned();
        let ours = text.split('\0').any(|pair| pair == url);
        let token = text.split('\0').find_map(|pair| pair.strip_prefix("GAGGLED_TOKEN=")).filter(|_| ours);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let session = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(3)?.parse::<i32>().ok());
        if let Some(name) = token.and_then(|token| token.split(':').nth(1))
            && session == Some(pid)
            && !stat.contains(") Z ")
        {
            found.entry(name.to_owned()).or_default().push(pid);
        }
    }
    found
}

fn assert_no_duplicates(daemon: &Daemon) {
    let twice: Vec<_> = bearers(daemon).into_iter().filter(|(_, pids)| pids.len() > 1).collect();
    assert!(twice.is_empty(), "these run twice: {twice:?}\n{}", daemon.timeline());
}

/// The last state that the journal on the disk folds to, without fields that change without an event.
fn folded(daemon: &Daemon) -> serde_json::Value {
    let output = Command::new(binary("gaggled"))
        .args(["journal", "state", "--json"])
        .arg(daemon.journal())
        .output()
        .expect("gaggled");
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    lasting(&dump["programs"])
}

fn lasting(programs: &serde_json::Value) -> serde_json::Value {
    let mut programs = programs.clone();
    for program in programs.as_array_mut().expect("programs") {
        for field in ["uptime_ms", "wait_ms", "reason"] {
            program.as_object_mut().expect("a state").remove(field);
        }
    }
    programs
}

/// Test 20 and more: the daemon dies, its programs run on, and the exit status of one that ends later is known.
#[test]
fn programs_do_not_notice_the_death_of_the_daemon() {
    let programs: String = (0..50).map(|i| sleeper(&format!("p{i}"))).collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let before = daemon.dump();
    daemon.kill_daemon();
    let after = daemon.dump();
    for (name, program) in before.as_object().expect("programs") {
        assert_eq!(program["pid"], after[name]["pid"], "{name} was touched");
        assert_eq!(after[name]["instance"], 1);
    }
    assert_no_duplicates(&daemon);
    // The exit status of a program that is no longer the daemon's child is known all the same.
    daemon.kill("p7", Signal::SIGUSR1);
    daemon.wait_down("p7", 1);
    let status = daemon.heard.iter().rev().find_map(|envelope| match envelope.event {
        Event::Program(_, ProgramEvent::Exited { status, .. }) => Some(status),
        _ => None,
    });
    assert_eq!(status, Some(ExitStatus::Signal(10)));
    assert_eq!(code(daemon.end()), 0);
    assert!(bearers(&daemon).is_empty(), "nothing is left");
    daemon.verify();
}

#[test]
fn a_daemon_that_is_killed_while_it_begins_is_followed_by_another() {
    let mut daemon = Daemon::new(
        &(0..10)
            .map(|i| format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),"))
            .collect::<String>(),
    );
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let before = daemon.dump();
    for _ in 0..3 {
        daemon.kill_all();
        let config = daemon.directory.path().join("system.ron");
        let mut subreaper = Command::new(binary("gaggled")).arg("-c").arg(config).spawn().expect("gaggled");
        let pid = i32::try_from(subreaper.id()).expect("a small number");
        // The daemon is killed as soon as it exists, long before it has started.
        let child = loop {
            if let Some(child) = children(pid).first() {
                break *child;
            }
        };
        kill(Pid::from_raw(child), Signal::SIGKILL).expect("it runs");
        daemon.wait_for_another(child);
        assert!(subreaper.try_wait().expect("a status").is_none(), "the subreaper goes on");
        let after = daemon.dump();
        for (name, program) in before.as_object().expect("programs") {
            assert_eq!(program["pid"], after[name]["pid"], "{name} was touched");
        }
        let daemon_pid = daemon.daemon_pid();
        for pid in [pid, daemon_pid] {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        }
        subreaper.wait().expect("its end");
        daemon.wait_gone(daemon_pid);
        daemon = daemon.again();
    }
}

#[test]
fn what_ends_while_nobody_is_there_is_told_with_its_status() {
    let mut daemon = Daemon::new(&format!("{} {} {}", sleeper("a"), sleeper("b"), sleeper("c")));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let (a, b, daemon_pid) = (daemon.pid_of("a"), daemon.pid_of("b"), daemon.daemon_pid());
    // The subreaper is stopped, so that no daemon runs for a while.
    let subreaper = daemon.pid();
    daemon.freeze(subreaper);
    signal(daemon_pid, Signal::SIGKILL);
    signal(a, Signal::SIGUSR2);
    signal(b, Signal::SIGKILL);
    daemon.signal(Signal::SIGCONT);
    daemon.wait_down("a", 1);
    daemon.wait_down("b", 1);
    let told: BTreeMap<String, ExitStatus> = daemon
        .heard
        .iter()
        .filter_map(|envelope| match envelope.event {
            Event::Program(id, ProgramEvent::Exited { status, .. }) => {
                Some((daemon.state().graph.programs[id].name.to_string(), status))
            }
            _ => None,
        })
        .collect();
    assert_eq!((told["a"], told["b"]), (ExitStatus::Signal(12), ExitStatus::Signal(9)));
    assert_eq!(daemon.dump()["c"]["instance"], 1);
    daemon.verify();
}

#[test]
fn both_are_killed_and_the_next_gaggled_takes_over() {
    let mut daemon = Daemon::new(&format!(
        "{} {} {} \"d\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"c\": (propagate: true)}}),",
        sleeper("a"),
        sleeper("b"),
        sleeper("c")
    ));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    daemon.must(Action::Down(one("b")));
    let (a, c, d) = (daemon.pid_of("a"), daemon.pid_of("c"), daemon.pid_of("d"));
    daemon.kill_all();
    assert!(exists(a) && exists(c) && exists(d), "they live on");
    signal(c, Signal::SIGKILL);
    let mut again = daemon.again();
    again.wait_up("c", 2);
    again.wait_up("d", 2);
    let dump = again.dump();
    assert_eq!((dump["a"]["pid"].as_i64(), dump["a"]["instance"].as_i64()), (Some(a.into()), Some(1)));
    assert_eq!(dump["b"]["operator_down"], true, "an operator's wish survives everything");
    assert_eq!(dump["d"]["instance"], 2, "what c took down while nobody was there is restarted");
    assert_no_duplicates(&again);
    // The operator's request survives a shutdown, too.
    again.end();
    let mut third = again.again();
    third.wait_up("a", 2);
    assert_eq!(third.dump()["b"]["operator_down"], true);
    third.end();
    third.verify();
}

#[test]
fn the_daemon_takes_the_place_of_a_subreaper_that_has_died() {
    let mut daemon = Daemon::new(&format!("{} {}", sleeper("a"), sleeper("b")));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    for round in 0..2 {
        let (a, daemon_pid) = (daemon.pid_of("a"), daemon.daemon_pid());
        let subreaper = parent(daemon_pid);
        signal(subreaper, Signal::SIGKILL);
        daemon.wait_for_another(daemon_pid);
        assert_eq!(daemon.pid_of("a"), a, "round {round}");
        // It works as a subreaper: when the next daemon is killed, it starts another.
        daemon.kill_daemon();
        assert_eq!(daemon.pid_of("a"), a, "round {round}");
    }
    daemon.kill("b", Signal::SIGUSR1);
    daemon.wait_down("b", 1);
    let exited = daemon.heard.iter().rev().find_map(|envelope| match envelope.event {
        Event::Program(_, ProgramEvent::Exited { status, .. }) => Some(status),
        _ => None,
    });
    assert_eq!(exited, Some(ExitStatus::Signal(10)));
    daemon.must(Action::Shutdown { wait: true, timeout_ms: None });
    daemon.verify();
}

/// Test 21: a process is not in the journal, because gaggled was killed between the fork and the record.
#[test]
fn a_process_that_the_journal_has_not_heard_of_is_found_by_its_token() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let pid = daemon.pid_of("a");
    daemon.kill_all();
    let segment = fs::read_dir(daemon.journal()).expect("a journal").flatten().map(|entry| entry.path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "journal")).max().expect("a segment");
    let bytes = fs::read(&segment).expect("a segment");
    let frames: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, mark)| *mark == b"gag\x01").map(|(at, _)| at).collect();
    // Head, snapshot, DaemonStarted, ProgramStarting, ProgramStarted: without the last, and then without the last two.
    assert_eq!(frames.len(), 5);
    let mut daemon = daemon;
    for cut in [frames[4], frames[3]] {
        fs::write(&segment, &bytes[..cut]).expect("a shorter segment");
        for other in fs::read_dir(daemon.journal()).expect("a journal").flatten().map(|entry| entry.path()) {
            if other.extension().is_some_and(|end| end == "journal") && other != segment {
                fs::remove_file(other).expect("a later segment");
            }
        }
        let mut again = daemon.again();
        again.wait_up("a", 1);
        assert_eq!(again.pid_of("a"), pid, "adopted, not started again");
        assert_eq!(again.dump()["a"]["instance"], 1);
        assert_no_duplicates(&again);
        again.kill_all();
        daemon = again;
    }
    let mut last = daemon.again();
    last.end();
}

/// The main processes end while gaggled is not running, and leave processes without parent; one of these has no
/// environment, and so no token.
#[test]
fn what_a_program_left_while_gaggled_was_dead_is_killed_and_counted_once() {
    let program = |name: &str, prefix: &str| {
        format!(
            "\"{name}\": (shell: \"{prefix} @PUPPET@ sleep 1000000 & echo $! > @DIR@/{name}; exec @PUPPET@ sleep 1000000\"),"
        )
    };
    let mut daemon = Daemon::new(&format!("{} {}", program("kept", ""), program("bare", "env -i")));
    let directory = daemon.directory.path().to_owned();
    let left = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<i32>().ok();
    daemon.wait_outside("all to be started", || left("kept").is_some() && left("bare").is_some());
    let before = ["kept", "bare"].map(|name| (daemon.pid_of(name), left(name).expect("its child")));
    daemon.kill_all();
    for (main, _) in before {
        signal(main, Signal::SIGKILL);
        daemon.wait_gone(main);
    }
    let mut daemon = daemon.again();
    for name in ["kept", "bare"] {
        daemon.wait_up(name, 2);
        let output = daemon.tool("gaggled_controller", &["events", "--program", name]);
        let events = String::from_utf8_lossy(&output.stdout);
        assert!(events.contains("orphans=1 "), "{events}");
    }
    for (_, child) in before {
        daemon.wait_gone(child);
    }
    daemon.end();
}

/// Test 39: killed at random moments under churn. `GAGGLED_KILLS=1000` does it a thousand times.
#[test]
fn killed_again_and_again_under_churn_nothing_is_lost_and_nothing_runs_twice() {
    let kills: u64 = std::env::var("GAGGLED_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let churn = "backoff: (initial: 20, max: 50)";
    let programs: String = (0..8)
        .map(|i| {
            let life = [30, 70, 150, 400][i % 4];
            let depends = if i > 3 {
                format!("depends: {{\"p{}\": (delay: 10, propagate: {})}},", i - 4, i % 2 == 0)
            } else {
                String::new()
            };
            format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"exit\", \"{life}\", \"{i}\"], {churn}, {depends}),")
        })
        .chain((0..8).map(|i| sleeper(&format!("s{i}"))))
        .collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("some churn", |_, state| state.programs.values().any(|program| program.restarts > 5));
    let steady: Vec<i32> = (0..8).map(|i| daemon.pid_of(&format!("s{i}"))).collect();
    let mut random = Random::new(kills);
    let mut only_the_daemon = true;
    for number in 0..kills {
        let moment = gaggled_tests::harness::now() + std::time::Duration::from_millis(random.below(60));
        daemon.listen_until(moment);
        let daemon_pid = daemon.daemon_pid();
        // In the first half only the daemon is killed, and every exit status must be known.
        match random.below(10) {
            0 if number >= kills / 2 => {
                only_the_daemon = false;
                daemon.kill_all();
                daemon = daemon.again();
            }
            1 | 2 if number >= kills / 2 => {
                only_the_daemon = false;
                signal(parent(daemon_pid), Signal::SIGKILL);
                daemon.wait_for_another(daemon_pid);
            }
            _ => {
                signal(daemon_pid, Signal::SIGKILL);
                daemon.wait_for_another(daemon_pid);
            }
        }
        assert_no_duplicates(&daemon);
        if only_the_daemon {
            let unknown = daemon.heard.iter().filter(|envelope| {
                matches!(envelope.event, Event::Program(_, ProgramEvent::Exited { status: ExitStatus::Unknown, .. }))
            });
            assert_eq!(unknown.count(), 0, "kill {number}: a status was lost\n{}", daemon.timeline());
        }
    }
    for (i, pid) in steady.iter().enumerate() {
        assert_eq!(daemon.pid_of(&format!("s{i}")), *pid, "s{i} has noticed");
    }
    // The journal on the disk folds to the state that the daemon shows.
    daemon.must(Action::Down(Selection { programs: vec!["p*".to_owned()], wait: true, timeout_ms: None }));
    daemon.wait("everything that was stopped", |_, state| {
        state.programs.iter().all(|(id, program)| {
            state.graph.programs[id].name.starts_with('s') || program.phase == gaggled_core::state::Phase::Down
        })
    });
    let dump = daemon.must(Action::Dump { programs: Vec::new(), from: 0, limit: None, at: None });
    let said = daemon.verify();
    assert!(!said.contains("missing"), "{said}");
    assert_eq!(folded(&daemon), lasting(&dump["programs"]));
    daemon.must(Action::Shutdown { wait: true, timeout_ms: None });
}
