//! The processes of a run besides its main process: those in sessions of their own, those that a stop command or a
//! check leaves, and the daemon of a command whose end gaggled did not see.

use std::{fs, path::Path};

use gaggled_core::{
    event::{Event, ProgramEvent},
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::harness::Daemon;

fn down(daemon: &Daemon, program: &str) {
    daemon.must(Action::Down(Selection { programs: vec![program.to_owned()], wait: true, timeout_ms: None }));
}

/// The number of processes with this argument.
fn count(word: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let has = |path: &Path| {
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    processes.filter(|entry| has(&entry.path())).count()
}

/// A number that no other test uses, as an argument of `sleep`: 9 digits that begin with these.
fn unique(number: u32) -> String {
    format!("{number}{:05}", std::process::id() % 100_000)
}

fn orphans(daemon: &Daemon, program: &str) -> Option<u16> {
    let id = daemon.state().graph.names()[program];
    daemon.heard.iter().rev().find_map(|heard| match heard.event {
        Event::Program(of, ProgramEvent::Exited { orphans, .. }) if of == id => Some(orphans),
        _ => None,
    })
}

/// From the decision to stop a program to its end, in milliseconds.
fn stop_took(daemon: &Daemon, program: &str) -> u64 {
    let id = daemon.state().graph.names()[program];
    let at = |is: fn(&ProgramEvent) -> bool| {
        daemon.heard.iter().rev().find_map(|heard| match &heard.event {
            Event::Program(of, event) if *of == id && is(event) => Some(heard.monotonic.as_millis()),
            _ => None,
        })
    };
    let stopping = at(|event| matches!(event, ProgramEvent::Stopping { .. })).expect("it was stopped");
    at(|event| matches!(event, ProgramEvent::Exited { .. })).expect("it has ended") - stopping
}

#[test]
fn what_has_a_session_of_its_own_is_asked_to_end_and_has_its_time() {
    let clean =
        "trap 'sleep 0.4; echo clean >> @DIR@/out; exit' TERM; echo >> @DIR@/there; while :; do sleep 0.05; done";
    let mut daemon =
        Daemon::new(&format!("\"k\": (shell: \"setsid sh -c \\\"{clean}\\\" & exec sleep 1000\", killwait: \"20s\"),"));
    daemon.wait_up("k", 1);
    let there = daemon.directory.path().join("there");
    daemon.wait_outside("the helper", move || there.exists());
    down(&daemon, "k");
    daemon.wait_down("k", 1);
    let out = fs::read_to_string(daemon.directory.path().join("out")).unwrap_or_default();
    assert_eq!((out.as_str(), orphans(&daemon, "k")), ("clean\n", Some(0)), "{}", daemon.timeline());
    let took = stop_took(&daemon, "k");
    assert!((400..10_000).contains(&took), "{took} ms");
}

/// A process that does not end within the killwait is killed and counted, also when it has lost its parent.
#[test]
fn what_has_a_session_of_its_own_and_stays_is_killed_when_its_time_is_over() {
    let word = unique(4711);
    let mut daemon = Daemon::new(&format!(
        "\"k\": (shell: \"(setsid sh -c 'trap : TERM; while :; do sleep {word} & wait; done' &); exec sleep 1000\", \
         killwait: \"1s\"),"
    ));
    daemon.wait_up("k", 1);
    let helper = word.clone();
    daemon.wait_outside("the helper", move || count(&helper) == 1);
    down(&daemon, "k");
    daemon.wait_down("k", 1);
    assert!(orphans(&daemon, "k").is_some_and(|left| left >= 1), "{}", daemon.timeline());
    assert!(stop_took(&daemon, "k") >= 1000);
    daemon.wait_outside("everything to be gone", move || count(&word) == 0);
}

#[test]
fn what_a_stop_command_leaves_is_asked_to_end_at_once() {
    let word = unique(4712);
    let mut daemon = Daemon::new(&format!(
        "\"a\": (shell: \"sleep {word} & exec sleep 100000\", stop_command: \"kill -TERM $GAGGLED_PROGRAM_PID\", killwait: \"30s\"),"
    ));
    daemon.wait_up("a", 1);
    let helper = word.clone();
    daemon.wait_outside("the child", move || count(&helper) == 1);
    down(&daemon, "a");
    daemon.wait_down("a", 1);
    let took = stop_took(&daemon, "a");
    assert!(took < 10_000, "{took} ms");
    assert_eq!(count(&word), 0);
}

/// The next gaggled finds a process without parent that a run has left, although it gets no notification of it.
#[test]
fn what_has_a_session_of_its_own_goes_with_its_program_also_after_both_were_killed() {
    for how in ["down", "kill", "shutdown"] {
        let word = unique(4713);
        let mut daemon =
            Daemon::new(&format!("\"d\": (shell: \"setsid sleep {word} & exec sleep 1000\", killwait: \"1s\"),"));
        daemon.wait_up("d", 1);
        let helper = word.clone();
        daemon.wait_outside("the helper", move || count(&helper) == 1);
        daemon.kill_all();
        let mut daemon = daemon.again();
        assert_eq!(count(&word), 1, "it has survived");
        match how {
            "down" => down(&daemon, "d"),
            "kill" => {
                daemon.kill("d", nix::sys::signal::Signal::SIGKILL);
                daemon.wait_up("d", 2);
                // The helper of the previous run is gone; that of this run exists.
                let helper = word.clone();
                daemon.wait_outside("one helper", move || count(&helper) == 1);
                down(&daemon, "d");
            }
            _ => drop(daemon.end()),
        }
        assert_eq!(count(&word), 0, "{how}\n{}", daemon.timeline());
    }
}

/// A forking daemon is recognized, whichever process of gaggled was killed while its command ran.
#[test]
fn a_daemon_whose_command_was_not_seen_to_end_runs_once() {
    for forks_before in [true, false] {
        let word = unique(4714);
        let fork = format!("setsid sh -c 'echo $$ > @DIR@/d.new; mv @DIR@/d.new @DIR@/d.pid; exec sleep {word}' &");
        let (before, after) = if forks_before { (fork.as_str(), "") } else { ("", fork.as_str()) };
        let mut daemon = Daemon::new(&format!(
            "\"d\": (shell: \"{before} while ! [ -e @DIR@/go ]; do sleep 0.02; done; {after} sleep 0.3\", \
             pid_file: Read(\"@DIR@/d.pid\"), start_timeout: \"20s\", killwait: \"2s\"),"
        ));
        daemon.wait("its command", |_, state| state.programs.values().all(|program| program.process.is_some()));
        daemon.kill_all();
        let mut daemon = daemon.again();
        fs::write(daemon.directory.path().join("go"), "").expect("a file");
        daemon.wait("the daemon to be ready", |_, state| state.programs.values().all(ProgramState::is_ready));
        assert_eq!((count(&word), daemon.dump()["d"]["instance"].as_u64()), (1, Some(1)), "{}", daemon.timeline());
        daemon.kill("d", nix::sys::signal::Signal::SIGKILL);
        daemon.wait("its next run to be ready", |_, state| {
            state.programs.values().all(|program| program.is_ready() && program.instance.0 == 2)
        });
        assert_eq!(count(&word), 1);
        daemon.end();
        assert_eq!(count(&word), 0);
    }
}

/// A daemon that has thrown its environment away, and with it the token, is known by its pid file, also when that is
/// written after gaggled was killed.
#[test]
fn a_daemon_without_a_token_that_was_awaited_when_gaggled_was_killed_runs_once() {
    for both in [true, false] {
        let word = unique(4716);
        let mut daemon = Daemon::new(&format!(
            "\"d\": (shell: \"env -i setsid sh -c 'echo > @DIR@/forked; while ! [ -e @DIR@/go ]; do sleep 0.02; done; \
             echo $$ > @DIR@/d.new; mv @DIR@/d.new @DIR@/d.pid; exec sleep {word}' &\", \
             pid_file: Read(\"@DIR@/d.pid\"), start_timeout: \"20s\", killwait: \"2s\"),"
        ));
        daemon.wait("its command", |_, state| state.programs.values().all(|program| program.process.is_some()));
        let (command, forked) = (daemon.pid_of("d"), daemon.directory.path().join("forked"));
        daemon.wait_outside("its daemon", move || forked.exists());
        daemon.wait_gone(command);
        if both {
            daemon.kill_all();
            daemon = daemon.again();
        } else {
            daemon.kill_daemon();
        }
        fs::write(daemon.directory.path().join("go"), "").expect("a file");
        daemon.wait("the daemon to be ready", |_, state| state.programs.values().all(ProgramState::is_ready));
        // It writes its pid file before it executes what is counted.
        let executed = word.clone();
        daemon.wait_outside("what it executes", move || count(&executed) == 1);
        assert_eq!(daemon.dump()["d"]["instance"].as_u64(), Some(1), "{}", daemon.timeline());
        daemon.end();
        assert_eq!(count(&word), 0);
    }
}

#[test]
fn a_check_ends_with_its_time_its_run_and_gaggled() {
    let word = unique(4715);
    let mut daemon = Daemon::new(&format!(
        "\"slow\": (command: \"/bin/sleep\", argv: [\"90001\"], start_timeout: \"500ms\", \
         ready: Command(\"setsid sleep {word} & sleep {word}\"), backoff: (initial: \"50ms\", max: \"50ms\")),"
    ));
    daemon.wait_up("slow", 3);
    // Those of earlier runs are gone: at most the two of one check are there.
    let helper = word.clone();
    daemon.wait_outside("the checks of earlier runs to be gone", move || count(&helper) <= 2);
    daemon.kill_daemon();
    let id = daemon.dump()["slow"]["instance"].as_u64().expect("a run");
    daemon.wait_up("slow", id + 2);
    let helper = word.clone();
    daemon.wait_outside("the checks of earlier runs to be gone", move || count(&helper) <= 2);
    daemon.end();
    assert_eq!(count(&word), 0);
}
