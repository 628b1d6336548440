//! A lack of processes or descriptors, clocks that jump, machines that stand still: supervision continues.

use std::{fs, sync::Arc, time::Duration};

use gaggled_core::{
    event::{Event, ProgramEvent},
    process::ExitStatus,
    protocol::Action,
    state::ProgramState,
};
use gaggled_tests::{
    faults::{Faults, config, crash_looper, sleeper},
    harness::{Daemon, DaemonOptions, children, code, directory, now, possible},
};
use nix::sys::signal::Signal;

/// Test 13: no process can be created for a while, and no start is lost.
#[test]
fn without_processes_starts_are_tried_again() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    faults.set("clone 15");
    let programs: String = (0..20).map(|i| sleeper(&format!("p{i}"))).collect();
    let mut daemon = faults.daemon(&programs, directory);
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let failed = daemon.heard.iter().filter(|envelope| envelope.event.name() == "ProgramSpawnFailed").count();
    assert_eq!(failed, 15);
}

/// Test 14: too few descriptors for so many programs with logs of their own, and requests are answered all the same.
#[test]
fn without_descriptors_gaggled_answers() {
    let directory = Arc::new(directory());
    let programs: String = (0..100).map(|i| sleeper(&format!("p{i}"))).collect();
    let limit = ["sh", "-c", "ulimit -n 64 && exec \"$@\"", "sh"];
    let mut daemon =
        Daemon::with(&config(&programs), directory, &DaemonOptions { wrapper: &limit, ..DaemonOptions::default() });
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    assert_eq!(daemon.dump().as_object().map(serde_json::Map::len), Some(100));
}

/// Test 35: the time of day jumps by a day, forth and back, and nothing waits for it.
#[test]
fn a_clock_that_jumps_changes_no_delay() {
    let directory = Arc::new(directory());
    let faults = Faults::new(directory.path());
    let programs = format!(
        "{} \"b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"a\": (delay: 300, propagate: true)}}),",
        sleeper("a")
    );
    let mut daemon = faults.daemon(&programs, directory);
    daemon.wait_up("b", 1);
    for (round, seconds) in [86_400, -86_400, 1, -1].into_iter().enumerate() {
        faults.set(&format!("clock {seconds}"));
        daemon.kill("a", Signal::SIGKILL);
        let run = round as u64 + 2;
        daemon.wait_up("b", run);
        let last = |name: &str, program: &str| {
            let id = daemon.state().graph.names()[program];
            let of = |envelope: &&gaggled_core::event::Envelope| {
                envelope.event.name() == name && daemon.state().graph.subject(&envelope.event) == Some(id)
            };
            daemon.heard.iter().rev().find(of).expect("it happened").monotonic
        };
        let waited = last("ProgramStarted", "a").until(last("ProgramStarting", "b"));
        assert!((300..1500).contains(&waited.0), "the delay took {waited} with the clock off by {seconds} s");
    }
}

/// Test 36: everything stands still for a while, and then nothing happens twice.
#[test]
fn a_daemon_that_stood_still_makes_up_for_nothing() {
    let mut daemon = Daemon::new(&format!(
        "{} \"b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"a\": (delay: 200)}}),",
        sleeper("a")
    ));
    daemon.wait_up("a", 1);
    let daemon_pid = daemon.daemon_pid();
    daemon.freeze(daemon_pid);
    daemon.listen_until(now() + Duration::from_millis(1500));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon_pid), Signal::SIGCONT).expect("it stands");
    daemon.wait_up("b", 1);
    let starts = daemon.heard.iter().filter(|envelope| envelope.event.name() == "ProgramStarting").count();
    assert_eq!(starts, 2);
}

/// Test 36: a machine that has been up for a hundred years.
#[test]
fn a_machine_that_has_been_up_for_very_long_is_no_different() {
    if !possible(&["unshare", "-T", "--monotonic", "1000", "true"]) {
        return;
    }
    for days in [24.8, 49.7, 36_500.0] {
        let seconds = format!("{:.0}", days * 86_400.0);
        let wrapper = ["unshare", "-T", "--monotonic", &seconds, "--boottime", &seconds];
        let programs = format!(
            "{} \"b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"a\": (delay: 200)}}),",
            sleeper("a")
        );
        let mut daemon = Daemon::with(
            &config(&programs),
            Arc::new(directory()),
            &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() },
        );
        daemon.wait_up("b", 1);
        let output = daemon.tool("gaggled_controller", &["shutdown"]);
        assert!(output.status.success());
        assert_eq!(code(daemon.await_end()), 0);
    }
}

/// Test 45 and I5: followers follow the next daemon without being started again, and their state equals a dump.
#[test]
fn a_follower_goes_on_across_the_death_of_gaggled() {
    let mut daemon = Daemon::new(&format!("{}{}", sleeper("a"), crash_looper("b")));
    daemon.wait_up("a", 1);
    for run in 2..5 {
        daemon.kill_daemon();
        daemon.kill("a", Signal::SIGKILL);
        daemon.wait_up("a", run);
    }
    daemon.must(Action::Down(gaggled_core::protocol::Selection { programs: Vec::new(), wait: true, timeout_ms: None }));
    daemon.wait("everything to be down", |_, state| state.running.is_empty());
    let numbers: Vec<u64> = daemon.heard.iter().map(|envelope| envelope.seq.0).collect();
    // A number that is used again in a later epoch belongs to an event that had not reached the disk.
    let broken: Vec<_> = numbers.windows(2).filter(|pair| pair[1] > pair[0] + 1).collect();
    assert!(broken.is_empty(), "gaps that nobody has announced: {broken:?}");
}

/// Both processes of gaggled die, and the new parent of the programs never reaps: a zombie counts as ended.
#[test]
fn a_program_that_nobody_reaps_has_ended_all_the_same() {
    let idle = "import subprocess, sys, threading; subprocess.Popen(sys.argv[1:]); threading.Event().wait()";
    let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "python3", "-c", idle];
    if !possible(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "nsenter", "--version"]) {
        return;
    }
    let directory = Arc::new(directory());
    let text = config(&sleeper("a"));
    let mut daemon =
        Daemon::with(&text, directory.clone(), &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait_up("a", 1);
    let init = daemon.init();
    let subreaper = children(init)[0];
    let daemon_pid = children(subreaper)[0];
    let kill = |pid: i32, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it runs");
    kill(subreaper, Signal::SIGKILL);
    kill(daemon_pid, Signal::SIGKILL);
    daemon.wait_outside("the program to be adopted", || children(init).len() == 3);
    let zombie = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    let program = children(init).into_iter().find(|pid| !zombie(*pid)).expect("the program lives");
    let target = init.to_string();
    let inside = ["nsenter", "--target", &target, "--pid", "--mount"];
    let mut again = Daemon::with(&text, directory, &DaemonOptions { wrapper: &inside, ..DaemonOptions::default() });
    again.wait_up("a", 1);
    kill(program, Signal::SIGUSR1);
    again.wait_up("a", 2);
    let status = again.heard.iter().rev().find_map(|envelope| match envelope.event {
        Event::Program(_, ProgramEvent::Exited { status, .. }) => Some(status),
        _ => None,
    });
    assert_eq!(status, Some(ExitStatus::Signal(10)));
    assert!(again.tool("gaggled_controller", &["shutdown"]).status.success());
    kill(init, Signal::SIGKILL);
}
