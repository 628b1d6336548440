//! Reloads and upgrades of a running gaggled, gaggled in a container, and essential programs.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, sync::Arc};

use gaggled_core::{
    event::{Cause, Event, Handover, ProgramEvent, StartKind, SystemEvent},
    state::ProgramState,
};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, code, directory, exists};
use nix::sys::signal::Signal;

fn sleeper(name: &str, more: &str) -> String {
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], {more}),")
}

fn rewrite(daemon: &Daemon, change: impl Fn(String) -> String) -> std::path::PathBuf {
    let path = daemon.directory.path().join("system.ron");
    let text = fs::read_to_string(&path).expect("a configuration");
    fs::write(&path, change(text)).expect("a configuration");
    path
}

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_reload_does_what_the_plan_says_and_touches_nothing_else() {
    let mut daemon = Daemon::new(&format!(
        "{}{}{}{}",
        sleeper("same", ""),
        sleeper("moved", ""),
        sleeper("gone", ""),
        sleeper("web", "depends: {\"same\": ()}")
    ));
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let before = daemon.dump();
    let epoch = daemon.state().epoch;
    assert!(said(&daemon.tool("gaggled_controller", &["plan"])).contains("nothing changes"));
    rewrite(&daemon, |text| text.replace("killwait: 2000", "killwait: 3000"));
    let plan = said(&daemon.tool("gaggled_controller", &["plan"]));
    assert!(plan.contains("update   gaggled  gaggled.killwait changed\n\n4 programs stay as they are"), "{plan}");
    rewrite(&daemon, |text| text.replace("killwait: 3000", "killwait: 2000"));
    rewrite(&daemon, |text| {
        let gone = text.find("\"gone\"").expect("it is there");
        let end = text[gone..].find("),").expect("its end") + gone + 2;
        let text = format!("{}{}", &text[..gone], &text[end..]);
        text.replacen("\"moved\": (", "\"new\": (command: \"sleep\", argv: [\"1000000\"]), \"moved\": (wd: \"/\", ", 1)
    });
    let plan = said(&daemon.tool("gaggled_controller", &["plan"]));
    for line in [
        "start    new    it is new",
        "restart  moved  wd changed",
        "stop     gone   it is no longer configured",
        "2 programs stay as they are",
    ] {
        assert!(plan.contains(line), "{line}\n{plan}");
    }
    assert_eq!(daemon.dump()["moved"]["pid"], before["moved"]["pid"], "a plan changes nothing");
    let output = daemon.tool("gaggled_controller", &["reload"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), plan);
    daemon.wait_up("new", 1);
    daemon.wait_up("moved", 2);
    daemon.wait_down("gone", 1);
    let after = daemon.dump();
    for kept in ["same", "web"] {
        assert_eq!(before[kept]["pid"], after[kept]["pid"], "{kept} was touched");
    }
    assert!(daemon.state().epoch > epoch);
    let asked = daemon.heard.iter().any(|envelope| {
        matches!(
            envelope.event,
            Event::System(SystemEvent::DaemonStarted { start_kind: StartKind::Handover(Handover::Reload), .. })
        )
    });
    assert!(asked);
    daemon.end();
    daemon.verify();
}

#[test]
fn a_configuration_that_is_wrong_is_refused_and_changes_nothing() {
    let mut daemon = Daemon::new(&sleeper("a", ""));
    daemon.wait_up("a", 1);
    let before = daemon.dump()["a"]["pid"].clone();
    let good = fs::read_to_string(daemon.directory.path().join("system.ron")).expect("a configuration");
    for (wrong, words) in [
        (good.replace("argv", "argw"), "argw"),
        (good.replace("\"a\": (", "\"a\": (depends: {\"nosuch\": ()},"), "which does not exist"),
        (good.replace("command: \"", "command: \"/nosuch"), "does not exist"),
        (String::new(), ""),
    ] {
        rewrite(&daemon, |_| wrong.clone());
        for command in ["plan", "reload"] {
            let output = daemon.tool("gaggled_controller", &[command]);
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert!(said(&output).contains(words) && said(&output).contains("system.ron"), "{}", said(&output));
        }
    }
    let output = daemon.tool("gaggled_controller", &["reload", "/nosuch/file.ron"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the refusal of a hangup", |heard, _| {
        let by_signal = |cause: &Cause| matches!(cause, Cause::Operator { who, .. } if &**who == "SIGHUP");
        heard.iter().any(|envelope| envelope.event.name() == "CommandRefused" && by_signal(&envelope.cause))
    });
    assert_eq!(daemon.dump()["a"]["pid"], before);
    assert_eq!(daemon.dump()["a"]["instance"], 1);
}

#[test]
fn a_hangup_reloads() {
    let mut daemon = Daemon::new(&sleeper("a", ""));
    daemon.wait_up("a", 1);
    let pid = daemon.pid_of("a");
    rewrite(&daemon, |text| text.replacen("\"a\": (", "\"b\": (command: \"sleep\", argv: [\"1000000\"]), \"a\": (", 1));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the new program", |_, state| state.graph.names().contains_key("b"));
    daemon.wait_up("b", 1);
    assert_eq!(daemon.pid_of("a"), pid);
}

/// Test 59: a hundred programs, an upgrade to another binary, and upgrades to broken ones.
#[test]
fn an_upgrade_restarts_no_program_and_a_broken_binary_changes_nothing() {
    let programs: String = (0..100).map(|i| sleeper(&format!("p{i}"), "")).collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    let (before, daemon_pid) = (daemon.dump(), daemon.daemon_pid());
    let next = daemon.directory.path().join("gaggled-next");
    fs::copy(binary("gaggled"), &next).expect("a copy");
    let output = daemon.tool("gaggled_controller", &["upgrade", next.to_str().expect("a path")]);
    assert!(output.status.success(), "{}", said(&output));
    daemon.wait_for_another(daemon_pid);
    let daemon_pid = daemon.daemon_pid();
    assert_eq!(fs::read_link(format!("/proc/{daemon_pid}/exe")).expect("it runs"), next);
    let after = daemon.dump();
    for (name, program) in before.as_object().expect("programs") {
        assert_eq!(program["pid"], after[name]["pid"], "{name} was touched");
    }
    // When the daemon dies, the new binary is started again.
    daemon.kill_daemon();
    assert_eq!(fs::read_link(format!("/proc/{}/exe", daemon.daemon_pid())).expect("it runs"), next);

    // Without an argument the binary at the path of the running one is taken, also when that one was moved aside.
    fs::rename(&next, next.with_extension("old")).expect("it can be moved");
    fs::copy(binary("gaggled"), &next).expect("a copy");
    let daemon_pid = daemon.daemon_pid();
    let output = daemon.tool("gaggled_controller", &["upgrade"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(daemon.daemon_pid() != daemon_pid);
    assert_eq!(fs::read_link(format!("/proc/{}/exe", daemon.daemon_pid())).expect("it runs"), next);

    let broken = daemon.directory.path().join("broken");
    for (script, words) in [
        ("#!/bin/sh\nexit 1\n", "is no gaggled that could go on here"),
        ("#!/bin/sh\necho gaggled 9.9.9\nexit 3\n", "is no gaggled that could go on here"),
        ("garbage", "cannot be run"),
    ] {
        fs::write(&broken, script).expect("a file");
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("a mode");
        let output = daemon.tool("gaggled_controller", &["upgrade", broken.to_str().expect("a path")]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    // A binary that passes the check and does not come up: gaggled returns to the previous one.
    fs::write(
        &broken,
        format!("#!/bin/sh\n[ \"$1\" = check-takeover ] && exec {} \"$@\"\nexit 1\n", binary("gaggled").display()),
    )
    .expect("a file");
    let output = daemon.tool("gaggled_controller", &["upgrade", broken.to_str().expect("a path")]);
    assert!(output.status.success() || said(&output).contains("did not come up"), "{}", said(&output));
    assert_eq!(fs::read_link(format!("/proc/{}/exe", daemon.daemon_pid())).expect("it runs"), next);
    let after = daemon.dump();
    for (name, program) in before.as_object().expect("programs") {
        assert_eq!(program["pid"], after[name]["pid"], "{name} was touched");
    }
    assert_eq!(code(daemon.end()), 0);
    daemon.verify();
}

#[test]
fn a_new_version_that_hangs_is_killed_and_the_old_one_goes_on() {
    let mut daemon = Daemon::new(&sleeper("a", ""));
    daemon.wait_up("a", 1);
    let (daemon_pid, pid) = (daemon.daemon_pid(), daemon.pid_of("a"));
    let output = daemon.tool("gaggled_controller", &["upgrade", binary("puppet").to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("did not come up"), "{}", said(&output));
    assert!(daemon.daemon_pid() != daemon_pid && daemon.pid_of("a") == pid);
    assert_eq!(fs::read_link(format!("/proc/{}/exe", daemon.daemon_pid())).expect("it runs"), binary("gaggled"));
    daemon.kill("a", Signal::SIGKILL);
    daemon.wait_up("a", 2);
    assert_eq!(code(daemon.end()), 0);
}

#[test]
fn an_essential_program_takes_everything_with_it() {
    for (part, expected) in
        [("\"exit\", \"300\", \"7\"", 7), ("\"exit\", \"300\", \"0\"", 0), ("\"raise\", \"300\", \"9\"", 137)]
    {
        let mut daemon = Daemon::new(&format!(
            "{} \"main\": (command: \"@PUPPET@\", argv: [{part}], essential: true),",
            sleeper("helper", "")
        ));
        daemon.wait_up("helper", 1);
        assert_eq!(code(daemon.await_end()), expected, "{part}\n{}", daemon.log());
    }
    // A restart by an operator does not count as an end of the essential program.
    let mut daemon = Daemon::new(&sleeper("main", "essential: true"));
    daemon.wait_up("main", 1);
    assert!(daemon.tool("gaggled_controller", &["restart", "main"]).status.success());
    assert_eq!(daemon.dump()["main"]["instance"], 2);
    assert_eq!(code(daemon.end()), 0);
}

/// Test 22: the first process of a container, with strays, signals and an exit status.
#[test]
fn as_the_first_process_it_reaps_everything_and_ends_as_asked() {
    let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no pid namespace can be had here");
        return;
    }
    let config = format!(
        "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\"), programs: {{{} \
         \"strays\": (command: \"@PUPPET@\", argv: [\"stray\"]), \
         \"look\": (shell: \"sleep 1; ps -eo pid,ppid,stat,args > @DIR@/ps; exec sleep 1000000\")}})",
        sleeper("a", "")
    );
    let mut daemon =
        Daemon::with(&config, Arc::new(directory()), &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait_up("strays", 1);
    let path = daemon.directory.path().join("ps");
    daemon
        .wait_outside("the list of processes", || fs::read_to_string(&path).is_ok_and(|text| text.contains("gaggled")));
    let listed = fs::read_to_string(&path).expect("a list");
    assert!(
        listed.lines().any(|line| line.split_whitespace().next() == Some("1") && line.contains("gaggled")),
        "{listed}"
    );
    assert!(!listed.contains(" Z"), "no zombies:\n{listed}");
    daemon.kill_daemon_inside();
    assert_eq!(daemon.dump()["a"]["instance"], 1);
    let init = daemon.init();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGTERM).expect("it runs");
    assert_eq!(code(daemon.await_end()), 0);
}

/// Test 1: the process id of a program is given to a bystander before it would be killed.
#[test]
fn a_process_that_got_the_id_of_a_program_is_not_killed_for_it() {
    let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let last = "/proc/sys/kernel/ns_last_pid";
    let can = format!("echo 100 > {last}");
    if !Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(["sh", "-c", &can])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: process ids cannot be chosen here");
        return;
    }
    // The victim ends within its killwait, so that its process id is free; the bystander, which another program starts,
    // gets that id.
    let config = format!(
        "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", killwait: \"1s\"), programs: {{\
         \"victim\": (command: \"@PUPPET@\", argv: [\"slowterm\", \"200\", \"0\"]), \
         \"taker\": (shell: \"while [ -d /proc/$(cat @DIR@/pid 2>/dev/null || echo self) ]; do sleep 0.01; done; \
            n=$(cat @DIR@/pid); echo $((n - 1)) > {last}; sleep 1000000 & echo $! > @DIR@/bystander; wait\")}})"
    );
    let mut daemon =
        Daemon::with(&config, Arc::new(directory()), &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait_up("victim", 1);
    let pid = daemon.pid_of("victim");
    fs::write(daemon.directory.path().join("pid"), pid.to_string()).expect("a file");
    daemon.must(gaggled_core::protocol::Action::Down(gaggled_core::protocol::Selection {
        programs: vec!["victim".into()],
        wait: true,
        timeout_ms: None,
    }));
    let bystander = daemon.directory.path().join("bystander");
    daemon.wait_outside("the bystander", || fs::read_to_string(&bystander).is_ok_and(|text| text.ends_with('\n')));
    let taken: i32 = fs::read_to_string(&bystander).expect("a file").trim().parse().expect("a pid");
    daemon.listen_until(gaggled_tests::harness::now() + std::time::Duration::from_millis(1500));
    let inside = format!("/proc/{}/root/proc/{taken}", daemon.init());
    assert!(fs::metadata(&inside).is_ok() || exists(taken), "the bystander was killed");
    let killed = daemon
        .heard
        .iter()
        .any(|envelope| matches!(envelope.event, Event::Program(_, ProgramEvent::KillRequested { .. })));
    assert!(!killed);
    assert_eq!(taken, pid, "the bystander got another id, so nothing was tried");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.init()), Signal::SIGTERM).expect("it runs");
    daemon.await_end();
}
