//! Programs that are difficult to supervise: they leave children, hide them, stand still, or cannot be started.

use std::{fs, os::unix::fs::PermissionsExt};

use gaggled_core::{
    event::{Event, ProgramEvent, SystemEvent},
    process::{ExitStatus, SpawnStage},
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, children, code, exists},
    import_harness::said,
};
use nix::sys::signal::Signal;

/// The signal goes to the group and to what has a session of its own; a survivor of a dead gaggled gets the same.
#[test]
fn a_program_is_asked_to_end_by_its_stop_signal() {
    let wait = "while :; do sleep 0.02; done";
    let note = |name: &str| {
        format!("trap 'echo {name} >> @DIR@/asked; exit 0' USR1; trap '' TERM; echo >> @DIR@/ready; {wait}")
    };
    let mut daemon = Daemon::new(&format!(
        "\"a\": (shell: \"setsid sh -c \\\"{}\\\" & {}\", stop_signal: \"SIGUSR1\", killwait: \"20s\"),",
        note("other"),
        note("main"),
    ));
    let directory = daemon.directory.path().to_owned();
    let lines = move |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default().lines().count();
    for (run, how) in [(1, "daemon"), (2, "both")] {
        let ready = lines.clone();
        daemon.wait_outside("both processes", move || ready("ready") == 2 * run);
        if how == "daemon" {
            daemon.kill_daemon();
        } else {
            daemon.kill_all();
            daemon = daemon.again();
        }
        daemon.down_all();
        assert_eq!(lines("asked"), 2 * run, "{how}\n{}", daemon.timeline());
        daemon.must(Action::Up(Selection { programs: vec!["a".to_owned()], wait: false, timeout_ms: None }));
    }
    daemon.end();
}

#[test]
fn a_stop_command_that_fails_is_told_and_a_signal_does_its_work() {
    let mut daemon =
        Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], stop_command: \"exit 3\"),");
    daemon.wait_up("a", 1);
    daemon.down_all();
    daemon.wait("its end", |_, state| state.running.is_empty());
    let told = daemon.heard.iter().filter_map(|envelope| match &envelope.event {
        Event::Program(_, ProgramEvent::StopCommandFailed { status, .. }) => Some(("failed", *status)),
        Event::Program(_, ProgramEvent::Exited { status, .. }) => Some(("exited", *status)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [("failed", ExitStatus::Code(3)), ("exited", ExitStatus::Signal(15))]);
    let why = said(&daemon.tool("gaggled_controller", &["why", "a"])).1;
    assert!(why.contains("because the stop command of a exited with code 3"), "{why}");
    daemon.verify();
}

/// `why` names the user who has caused a state, and shows repeated events once.
#[test]
fn a_chain_of_causes_leads_to_the_user_who_has_done_it_and_ends() {
    let mut daemon = Daemon::new(
        "\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]), \
         \"lost\": (command: \"@PUPPET@\", wd: \"/nosuch\", backoff: (initial: 1, max: 1)), \
         \"late\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], ready: Notify, start_timeout: 20, backoff: (initial: 1, max: 1)),",
    );
    daemon.wait_up("a", 1);
    assert!(daemon.tool("gaggled_controller", &["signal", "KILL", "a"]).status.success());
    daemon.wait_up("a", 2);
    let why = said(&daemon.tool("gaggled_controller", &["why", "a"])).1;
    assert!(why.contains("because a was sent SIGKILL") && why.contains("asked for it"), "{why}");
    daemon.wait("many failures", |_, state| state.programs[state.graph.names()["lost"]].instance.0 > 30);
    let why = said(&daemon.tool("gaggled_controller", &["why", "lost"])).1;
    assert!(why.lines().count() < 12 && why.contains("again and again"), "{why}");
    daemon.wait("many failures", |_, state| state.programs[state.graph.names()["late"]].instance.0 > 10);
    let why = said(&daemon.tool("gaggled_controller", &["why", "late"])).1;
    assert!(why.lines().count() < 24 && why.contains("again and again"), "{why}");
    daemon.verify();
}

/// Test 4.
#[test]
fn a_stray_grandchild_is_reaped_and_is_nobodys_event() {
    let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"stray\"]),");
    daemon.wait_up("a", 1);
    let (daemon_pid, pid) = (daemon.daemon_pid(), daemon.pid_of("a"));
    // The grandchild becomes a child of the daemon, ends, and is reaped.
    daemon.wait_outside("the stray", || !children(daemon_pid).is_empty());
    let stray = children(daemon_pid)[0];
    daemon.wait_outside("the end of the stray", || !exists(stray));
    assert_eq!(daemon.pid_of("a"), pid);
    assert!(daemon.exits().is_empty());
}

/// Test 5: the main process ends well and leaves a child in its group.
#[test]
fn what_a_daemonising_program_leaves_is_killed_and_counted() {
    let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"daemonise\"], mode: Once),");
    daemon.wait_down("a", 1);
    assert_eq!(daemon.exits(), [(ExitStatus::Code(0), 1)]);
}

/// Test 6: a child that has made a session of its own is found by its token, also after the daemon has died.
#[test]
fn a_child_that_hides_in_a_session_of_its_own_is_found() {
    for killed in [false, true] {
        let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"escape\"]),");
        daemon.wait_up("a", 1);
        let main = daemon.pid_of("a");
        let hides = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ').collect();
            fields.get(3) == Some(&pid.to_string().as_str())
        };
        daemon.wait_outside("the hiding child", || children(main).first().is_some_and(|child| hides(*child)));
        let hidden = children(main)[0];
        if killed {
            daemon.kill_daemon();
        }
        daemon.down_all();
        daemon.wait_outside("the end of the hiding child", || !exists(hidden));
        daemon.wait_down("a", 1);
        assert_eq!(daemon.exits(), [(ExitStatus::Signal(15), 0)], "it was asked to end, and has");
    }
}

/// A check ends while a process that it has put into another session keeps starting processes in further sessions.
#[test]
fn what_a_check_leaves_is_killed_however_fast_it_forks() {
    let check = "setsid sh -c 'for i in $(seq 300); do setsid sleep 100077 & done' & while ! pgrep -f '^sleep 100077$'; do :; done";
    let mut daemon = Daemon::new(&format!(
        "\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], ready: Command(\"{check}\")),"
    ));
    daemon.wait("a to be ready", |_, state| state.programs.values().all(ProgramState::is_ready));
    let sleeps = || {
        let processes = fs::read_dir("/proc").expect("processes").flatten();
        let line = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
        processes
            .filter(|process| process.file_name().to_string_lossy().parse::<i32>().is_ok())
            .map(line)
            .any(|line| String::from_utf8_lossy(&line).contains("100077"))
    };
    daemon.wait_outside("the end of all that the check has left", || !sleeps());
    daemon.end();
}

/// Tests 15 and 17, also for a program that has survived the death of the daemon.
#[test]
fn what_ignores_a_term_is_killed_and_what_stands_still_is_woken() {
    for killed in [false, true] {
        let mut daemon = Daemon::new(
            "\"stubborn\": (command: \"@PUPPET@\", argv: [\"stubborn\"], killwait: 300), \
             \"still\": (command: \"@PUPPET@\", argv: [\"slowterm\", \"0\", \"4\"]),",
        );
        daemon.wait_up("stubborn", 1);
        daemon.wait_up("still", 1);
        daemon.wait_deaf(&["still", "stubborn"]);
        daemon.kill("still", Signal::SIGSTOP);
        if killed {
            daemon.kill_daemon();
        }
        daemon.down_all();
        daemon.wait_down("stubborn", 1);
        daemon.wait_down("still", 1);
        let escalated = daemon.heard.iter().filter(|envelope| envelope.event.name() == "ProgramKillRequested").count();
        assert_eq!(escalated, 1, "only the stubborn one");
        let mut ended = daemon.exits();
        ended.sort_by_key(|(status, _)| format!("{status:?}"));
        assert_eq!(ended, [(ExitStatus::Code(4), 0), (ExitStatus::Signal(9), 0)], "killed: {killed}");
    }
}

/// An application that waits for its migration: until it has completed, not until it has failed, and not again after
/// gaggled has died.
#[test]
fn what_waits_for_a_completion_waits_for_a_good_one() {
    let mut daemon = Daemon::new(
        "\"migrate\": (shell: \"echo run >> @DIR@/runs; exit $(cat @DIR@/code || echo 1)\", mode: Once), \
         \"app\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"migrate\": (condition: Completed)}),",
    );
    daemon.wait_down("migrate", 1);
    let reason = daemon.dump()["app"]["reason"].as_str().expect("a reason").to_owned();
    assert_eq!(reason, "waiting for migrate, which has failed (exited with code 1): start it");
    let hopeless = daemon.tool("gaggled_controller", &["up", "app"]);
    assert_eq!(hopeless.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&hopeless.stderr).contains("which has failed (exited with code 1): start that, too")
    );
    fs::write(daemon.directory.path().join("code"), "0").expect("a file");
    daemon.must(Action::Up(Selection { programs: vec!["migrate".to_owned()], wait: true, timeout_ms: None }));
    daemon.wait_up("app", 1);
    daemon.kill_daemon();
    daemon.kill("app", Signal::SIGKILL);
    daemon.wait_up("app", 2);
    let runs = || fs::read_to_string(daemon.directory.path().join("runs")).expect("runs").lines().count();
    assert_eq!(runs(), 2, "what has completed is not run again");
    // After a shutdown and a new start the migration runs again, before the application.
    daemon.end();
    let mut again = daemon.again();
    again.wait("the application to come up", |heard, state| {
        let app = state.graph.names()["app"];
        heard.iter().any(|envelope| {
            matches!(envelope.event, Event::Program(id, ProgramEvent::Started { instance, .. }) if id == app && instance.0 == 3)
        })
    });
    let place = |wanted: &str, program: &str| {
        let id = again.state().graph.names()[program];
        let is = |envelope: &gaggled_core::event::Envelope| {
            envelope.event.name() == wanted && again.state().graph.subject(&envelope.event) == Some(id)
        };
        again.heard.iter().rposition(is).expect("it happened")
    };
    assert!(place("ProgramExited", "migrate") < place("ProgramStarting", "app"));
    again.verify();
}

/// A program at its start limit stays down until an operator starts it; with `retry_after` it comes back by itself.
#[test]
fn a_program_that_ends_too_often_is_given_up_until_an_operator_starts_it() {
    let mut daemon = Daemon::new(
        "\"bad\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"3\"], backoff: (initial: 0, max: 0), start_limit: (burst: 3, interval: \"1m\")), \
         \"again\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"3\"], backoff: (initial: 0, max: 0), \
            start_limit: (burst: 3, interval: \"1m\", retry_after: 200)), \
         \"lasts\": (command: \"@PUPPET@\", argv: [\"exit\", \"60\", \"3\"], backoff: (initial: 0, max: 0), \
            start_limit: (burst: 3, interval: \"1m\", reset: 50)), \
         \"web\": (command: \"@PUPPET@\", argv: [\"sleep\", \"9\"], depends: {\"bad\": (delay: 5000)}),",
    );
    daemon.wait_down("bad", 3);
    daemon.wait_down("again", 7);
    daemon.wait_down("lasts", 7);
    let dump = daemon.dump();
    assert_eq!((&dump["bad"]["start_limit_hit"], &dump["bad"]["instance"]), (&true.into(), &3.into()));
    assert_eq!(dump["bad"]["reason"], "start limit reached after 3 starts within 1m (exited with code 3): start it");
    assert_eq!(dump["web"]["reason"], "waiting for bad, which has reached its start limit: start it");
    daemon.kill_daemon();
    assert_eq!(daemon.dump()["bad"]["instance"], 3, "that is remembered");
    let asked = daemon.tool("gaggled_controller", &["up", "bad", "--no-wait"]);
    assert!(asked.status.success());
    daemon.wait_down("bad", 6);
    assert_eq!(daemon.dump()["bad"]["instance"], 6, "and then it has three more");
    daemon.end();
    daemon.verify();
}

/// Test 12: a failed start is reported with its stage and error, and no exit code is taken for one.
#[test]
fn each_way_in_which_a_start_can_fail_is_told() {
    let directory = std::sync::Arc::new(gaggled_tests::harness::directory());
    let path = directory.path();
    let make = |name: &str, text: &str, mode: u32| {
        fs::write(path.join(name), text).expect("a file");
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).expect("rights");
    };
    make("garbage", "\u{1}\u{2}", 0o755);
    make("missing-shell", "#!/no/such/shell\n", 0o755);
    // These files pass the check of the configuration, and are broken after it.
    for name in ["vanishes", "locked", "loop"] {
        make(name, "#!/bin/sh\n", 0o755);
    }
    let table = [
        ("garbage", SpawnStage::Exec, nix::libc::ENOEXEC),
        ("missing-shell", SpawnStage::Exec, nix::libc::ENOENT),
        ("vanishes", SpawnStage::Exec, nix::libc::ENOENT),
        ("locked", SpawnStage::Exec, nix::libc::EACCES),
        ("loop", SpawnStage::Exec, nix::libc::ELOOP),
        ("wd", SpawnStage::WorkingDirectory, nix::libc::ENOTDIR),
        ("log", SpawnStage::Log, nix::libc::EISDIR),
    ];
    let command = |name: &str| match name {
        "wd" => "command: \"/bin/true\", wd: \"@DIR@/garbage\"".to_owned(),
        "log" => "command: \"/bin/true\", log: \"@DIR@\"".to_owned(),
        name => format!("command: \"@DIR@/{name}\""),
    };
    let failing =
        table.iter().map(|(name, ..)| format!("\"{name}\": ({}, mode: Once, autostart: false),", command(name)));
    let ending = [66, 77].map(|code| format!("\"exit-{code}\": (shell: \"exit {code}\", mode: Once),"));
    let programs: String = failing.chain(ending).collect();
    let dir = path.display();
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\"), programs: {{{programs}}})"
    );
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    fs::remove_file(path.join("vanishes")).expect("a file");
    fs::set_permissions(path.join("locked"), fs::Permissions::from_mode(0o644)).expect("rights");
    fs::remove_file(path.join("loop")).expect("a file");
    std::os::unix::fs::symlink(path.join("loop"), path.join("loop")).expect("a link");
    for (name, stage, errno) in table {
        let up = Selection { programs: vec![name.to_owned()], wait: true, timeout_ms: None };
        let refused = daemon.ask(Action::Up(up)).error.expect("it cannot be started").message;
        assert!(refused.contains("could not be started"), "{name}: {refused}");
        let state = daemon.dump()[name].clone();
        assert_eq!(state["errno"], errno, "{name}: {state}");
        assert_eq!(state["failed_stage"], serde_json::to_value(stage).expect("a word"), "{name}");
    }
    for code in [66, 77] {
        let name = format!("exit-{code}");
        daemon.wait_down(&name, 1);
        assert_eq!(daemon.dump()[&name]["exit_code"], code);
    }
    daemon.end();
    daemon.verify();
}

/// Test 32: a shutdown in the middle of everything ends in time, whatever operators ask for meanwhile.
#[test]
fn a_badly_timed_shutdown_ends_all_the_same() {
    let mut daemon = Daemon::new(
        "\"base\": (command: \"@PUPPET@\", argv: [\"slowterm\", \"300\", \"0\"]), \
         \"delayed\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"base\": (delay: \"1m\")}), \
         \"crashing\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"1\"], backoff: (initial: \"1m\", max: \"1m\")), \
         \"stubborn\": (command: \"@PUPPET@\", argv: [\"stubborn\"], depends: {\"base\": (propagate: true)}), \
         \"unready\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], ready: Notify), \
         \"waits\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"unready\": ()}), \
         \"daemon\": (shell: \"exit 0\", pid_file: Read(\"@DIR@/no.pid\")),",
    );
    daemon.wait_up("stubborn", 1);
    daemon.wait("a crash", |_, state| state.programs.values().any(|program| program.attempts >= 2));
    // In the middle of a propagated stop.
    daemon.kill("base", Signal::SIGKILL);
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTERM] {
        daemon.signal(signal);
    }
    assert_eq!(code(daemon.await_end()), 0, "{}", daemon.timeline());
    let begun =
        daemon.heard.iter().position(|heard| matches!(heard.event, Event::System(SystemEvent::ShutdownStarted)));
    let after = &daemon.heard[begun.expect("it was asked for")..];
    let starts =
        |heard: &gaggled_core::event::Envelope| matches!(heard.event, Event::Program(_, ProgramEvent::Starting { .. }));
    assert!(!after.iter().any(starts), "{}", daemon.timeline());
    // The audit checks how long the shutdown took.
    daemon.verify();
}

#[test]
fn what_is_to_run_once_is_tried_until_it_has_ended_well() {
    let mut daemon = Daemon::new(
        "\"migrate\": (shell: \"echo x >> @DIR@/runs; [ $(wc -l < @DIR@/runs) -ge 3 ]\", mode: Once, retry: true, \
         backoff: (initial: 10, max: 10)), \
         \"app\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"migrate\": (condition: Completed)}),",
    );
    daemon.wait_up("app", 1);
    let migrate = daemon.dump()["migrate"].clone();
    assert_eq!((&migrate["instance"], &migrate["exit_code"], &migrate["up"]), (&3.into(), &0.into(), &false.into()));
    daemon.end();
    daemon.verify();
}
