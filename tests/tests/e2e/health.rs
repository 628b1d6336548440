//! Readiness, health checks and watchdogs, and which process is the main process of a forking daemon.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use gaggled_core::{
    event::{Event, ProgramEvent},
    host::probe::{ProbeError, UnhealthyReason},
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::harness::{Daemon, exists, free_port, now, possible};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const FOR_EVER: &str = "1000000000";

/// The number of the first event of a program for which this is true.
fn happened(daemon: &Daemon, program: &str, is: impl Fn(&ProgramEvent) -> bool) -> Option<u64> {
    let id = daemon.state().graph.names().get(program).copied()?;
    daemon.heard.iter().find_map(|heard| match &heard.event {
        Event::Program(of, event) if *of == id && is(event) => Some(heard.seq.0),
        _ => None,
    })
}

fn wait_ready(daemon: &mut Daemon, program: &str, run: u64) {
    daemon.wait(&format!("{program} to be ready in run {run}"), |_, state| {
        let known = state.graph.names().get(program).map(|id| &state.programs[*id]);
        known.is_some_and(|now| now.instance.0 >= run && now.is_ready())
    });
}

fn wait_unhealthy(daemon: &mut Daemon, program: &str) -> UnhealthyReason {
    let found = |daemon: &Daemon| {
        let id = daemon.state().graph.names().get(program).copied()?;
        daemon.heard.iter().find_map(|heard| match &heard.event {
            Event::Program(of, ProgramEvent::Unhealthy { reason: unhealthy_reason, .. }) if *of == id => {
                Some(*unhealthy_reason)
            }
            _ => None,
        })
    };
    daemon.wait(&format!("{program} to be unhealthy"), |heard, state| {
        let Some(id) = state.graph.names().get(program).copied() else { return false };
        heard
            .iter()
            .any(|heard| matches!(&heard.event, Event::Program(of, ProgramEvent::Unhealthy { .. }) if *of == id))
    });
    found(daemon).expect("it was found")
}

fn puppet(name: &str, words: &str, fields: &str) -> String {
    let argv: Vec<String> = words.split(' ').map(|word| format!("\"{word}\"")).collect();
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [{}], {fields}),", argv.join(", "))
}

/// Each way to be ready, and a dependent of each that must not start before.
#[test]
fn what_depends_on_a_program_waits_until_that_is_ready() {
    let port = free_port();
    let ways = [
        ("told", puppet("told", "notify 200 STATUS=soon READY=1", "ready: Notify")),
        (
            "descriptor",
            "\"descriptor\": (shell: \"sleep 0.2; echo >&7; exec sleep 1000000\", ready: Fd(7)),".to_owned(),
        ),
        (
            "line",
            "\"line\": (shell: \"echo starting; sleep 0.2; echo now listening on 1; exec sleep 1000000\", \
             log: \"@DIR@/line.log\", ready: LogLine(\"listening on\")),"
                .to_owned(),
        ),
        (
            "command",
            "\"command\": (shell: \"sleep 0.2; touch @DIR@/there; exec sleep 1000000\", ready: Command(\"test -e @DIR@/there\")),"
                .to_owned(),
        ),
        ("tcp", puppet("tcp", &format!("serve {port} @DIR@/status"), &format!("ready: Tcp(\"127.0.0.1:{port}\")"))),
        ("daemon", puppet("daemon", "forker @DIR@/daemon.pid", "pid_file: Read(\"@DIR@/daemon.pid\")")),
    ];
    let dependents = ways.iter().map(|(name, _)| {
        puppet(&format!("after-{name}"), &format!("sleep {FOR_EVER}"), &format!("depends: {{\"{name}\": ()}}"))
    });
    let programs: String = ways.iter().map(|(_, text)| text.clone()).chain(dependents).collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be ready", |_, state| state.programs.values().all(ProgramState::is_ready));
    for (name, _) in &ways {
        let ready = happened(&daemon, name, |event| {
            matches!(event, ProgramEvent::Ready { .. } | ProgramEvent::Daemonized { .. })
        });
        let after = happened(&daemon, &format!("after-{name}"), |event| matches!(event, ProgramEvent::Starting { .. }));
        assert!(ready < after && ready.is_some(), "{name}: ready by event {ready:?}, followed by event {after:?}");
    }
    assert_eq!(daemon.dump()["told"]["ready"], true);
    // Readiness survives the death of the daemon, and no program is restarted.
    let before = daemon.dump();
    daemon.kill_daemon();
    let after = daemon.dump();
    for (name, program) in before.as_object().expect("programs") {
        assert_eq!((&after[name]["pid"], &after[name]["ready"]), (&program["pid"], &program["ready"]), "{name}");
    }
    daemon.end();
    daemon.verify();
}

#[test]
fn what_is_not_ready_in_time_is_stopped_and_tried_again() {
    let port = free_port();
    let within = "start_timeout: \"300ms\", backoff: (initial: 50, max: 50)";
    let programs = [
        puppet("mute", &format!("sleep {FOR_EVER}"), &format!("ready: Notify, {within}")),
        puppet("deaf", &format!("sleep {FOR_EVER}"), &format!("ready: Tcp(\"127.0.0.1:{port}\"), {within}")),
        puppet("wrong", &format!("sleep {FOR_EVER}"), &format!("ready: Command(\"exit 3\"), {within}")),
        puppet("slow", &format!("sleep {FOR_EVER}"), &format!("ready: Command(\"sleep 1000\"), {within}")),
        puppet("nowhere", "exit 0 0", &format!("pid_file: Read(\"@DIR@/no.pid\"), {within}")),
    ];
    let mut daemon = Daemon::new(&programs.concat());
    let expected = [
        ("mute", UnhealthyReason::ReadinessTimeout(None)),
        ("deaf", UnhealthyReason::ReadinessTimeout(Some(ProbeError::Os(111)))),
        (
            "wrong",
            UnhealthyReason::ReadinessTimeout(Some(ProbeError::ExitStatus(gaggled_core::process::ExitStatus::Code(3)))),
        ),
        ("slow", UnhealthyReason::ReadinessTimeout(None)),
        ("nowhere", UnhealthyReason::ReadinessTimeout(Some(ProbeError::Os(2)))),
    ];
    for (name, unhealthy_reason) in expected {
        assert_eq!(wait_unhealthy(&mut daemon, name), unhealthy_reason, "{name}");
    }
    daemon.wait("all to be tried again", |_, state| state.programs.values().all(|program| program.instance.0 >= 3));
    let up = Action::Up(Selection {
        programs: vec!["deaf".to_owned()],
        wait: true,
        timeout_ms: Some(gaggled_core::base::time::Millis(500)),
    });
    let refused = daemon.ask(up).error.expect("it never is").message;
    assert!(refused.contains("deaf"), "{refused}");
    daemon.end();
    daemon.verify();
}

#[test]
fn a_program_that_fails_its_checks_is_replaced() {
    let port = free_port();
    let check =
        format!("health: (probe: Http(\"http://127.0.0.1:{port}/health\"), interval: \"50ms\", failure_threshold: 3)");
    let mut daemon = Daemon::new(&format!(
        "{} {}",
        puppet(
            "web",
            &format!("serve {port} @DIR@/status"),
            &format!("ready: Http(\"http://127.0.0.1:{port}/\"), {check}, backoff: (initial: 0, max: 0)")
        ),
        puppet("after", &format!("sleep {FOR_EVER}"), "depends: {\"web\": (propagate: true)}"),
    ));
    wait_ready(&mut daemon, "after", 1);
    fs::write(daemon.directory.path().join("status"), "503").expect("a file");
    assert_eq!(wait_unhealthy(&mut daemon, "web"), UnhealthyReason::HealthCheckFailed(ProbeError::HttpStatus(503)));
    daemon.wait_down("web", 1);
    fs::write(daemon.directory.path().join("status"), "302").expect("a file");
    wait_ready(&mut daemon, "web", 2);
    wait_ready(&mut daemon, "after", 2);
    daemon.end();
    daemon.verify();
}

#[test]
fn a_program_that_falls_silent_is_replaced() {
    let words = "notify 100 READY=1 WATCHDOG=1 WATCHDOG=1 WATCHDOG=1";
    let mut daemon = Daemon::new(&puppet("a", words, "ready: Notify, watchdog: \"600ms\""));
    wait_ready(&mut daemon, "a", 1);
    assert_eq!(wait_unhealthy(&mut daemon, "a"), UnhealthyReason::WatchdogTimeout);
    let at = |daemon: &Daemon, is: fn(&ProgramEvent) -> bool| {
        daemon.heard.iter().find_map(|heard| match &heard.event {
            Event::Program(_, event) if is(event) => Some(heard.monotonic.as_millis()),
            _ => None,
        })
    };
    let ready = at(&daemon, |event| matches!(event, ProgramEvent::Ready { .. })).expect("it was ready");
    let silent = at(&daemon, |event| matches!(event, ProgramEvent::Unhealthy { .. })).expect("it was silent");
    assert!(silent >= ready + 800, "it was alive for some time: {} ms", silent - ready);
    wait_ready(&mut daemon, "a", 2);
}

/// Watchdog pings that are sent while gaggled, or the whole machine, stands still count.
#[test]
fn a_stall_of_gaggled_makes_nobody_silent() {
    let mut daemon = Daemon::new(&puppet("a", "alive 200", "ready: Notify, watchdog: \"3s\""));
    wait_ready(&mut daemon, "a", 1);
    for _ in 0..2 {
        let daemon_pid = daemon.daemon_pid();
        daemon.freeze(daemon_pid);
        daemon.listen_until(now() + Duration::from_secs(4));
        kill(Pid::from_raw(daemon_pid), Signal::SIGCONT).expect("it runs");
        daemon.listen_until(now() + Duration::from_secs(1));
    }
    assert_eq!(daemon.dump()["a"]["instance"], 1, "{}", daemon.timeline());
    assert!(!daemon.timeline().contains("silent"), "{}", daemon.timeline());
}

/// While the daemon is dead no other process can take a program's notify socket, and messages sent then are received.
#[test]
fn what_is_said_while_the_daemon_is_dead_is_heard() {
    let mut daemon = Daemon::new(&format!(
        "{} {}",
        puppet("late", "notify 1500 READY=1", "ready: Notify"),
        puppet("there", "report @DIR@/report", "ready: Notify, start_timeout: \"1h\""),
    ));
    daemon.wait("both to have begun", |_, state| state.programs.values().all(|program| program.process.is_some()));
    let (subreaper, daemon_pid) = (daemon.pid(), daemon.daemon_pid());
    daemon.freeze(subreaper);
    kill(Pid::from_raw(daemon_pid), Signal::SIGKILL).expect("it runs");
    daemon.listen_until(now() + Duration::from_secs(2));
    kill(Pid::from_raw(subreaper), Signal::SIGCONT).expect("it runs");
    daemon.wait_for_another(daemon_pid);
    wait_ready(&mut daemon, "late", 1);
    let report = fs::read_to_string(daemon.directory.path().join("report")).expect("a report");
    let address = report.lines().find_map(|line| line.strip_prefix("Env:\tNOTIFY_SOCKET=")).expect("an address");
    let directory = fs::metadata(Path::new(address).parent().expect("a directory")).expect("a path");
    assert_eq!((directory.uid(), directory.mode() & 0o022), (nix::unistd::geteuid().as_raw(), 0));
}

/// The daemon takes the place of a subreaper that was killed, and another daemon follows, which receives the messages
/// that programs send meanwhile.
#[test]
fn what_is_said_while_the_subreaper_is_replaced_is_heard() {
    const PROGRAMS: u64 = 60;
    let speaker = |number: u64| {
        let late = 400 + 10 * number;
        puppet(&format!("p{number}"), &format!("notify {late} READY=1"), "ready: Notify, start_timeout: \"1h\"")
    };
    let programs: Vec<String> = (0..PROGRAMS).map(speaker).collect();
    let mut daemon = Daemon::new(&programs.concat());
    wait_ready(&mut daemon, "p5", 1);
    let (subreaper, daemon_pid) = (daemon.pid(), daemon.daemon_pid());
    kill(Pid::from_raw(subreaper), Signal::SIGKILL).expect("it runs");
    daemon.wait_for_another(daemon_pid);
    for number in 0..PROGRAMS {
        wait_ready(&mut daemon, &format!("p{number}"), 1);
    }
    let name = fs::read_to_string(format!("/proc/{}/comm", gaggled_tests::harness::parent(daemon.daemon_pid())));
    assert_eq!(name.expect("it runs").trim(), "gaggled");
}

/// A program in another network namespace reaches gaggled.
#[test]
fn a_program_without_a_network_says_that_it_is_ready() {
    if !possible(&["unshare", "-n", "true"]) {
        return;
    }
    let mut daemon = Daemon::new(
        "\"a\": (command: \"unshare\", argv: [\"-n\", \"@PUPPET@\", \"notify\", \"10\", \"READY=1\"], ready: Notify),",
    );
    wait_ready(&mut daemon, "a", 1);
}

/// A forking daemon is its program's main process: it gets the signals, its end is reported, and it survives gaggled.
#[test]
fn a_daemon_is_followed() {
    let mut daemon = Daemon::new(&format!(
        "{} {}",
        puppet("plain", "forker @DIR@/plain.pid", "pid_file: Read(\"@DIR@/plain.pid\")"),
        puppet("scrubbed", "forker @DIR@/scrubbed.pid scrubbed", "pid_file: Read(\"scrubbed.pid\"), wd: \"@DIR@\"")
    ));
    for name in ["plain", "scrubbed"] {
        wait_ready(&mut daemon, name, 1);
        let path = daemon.directory.path().join(format!("{name}.pid"));
        let named = fs::read_to_string(&path).expect("a pid file");
        assert_eq!(named.trim(), daemon.pid_of(name).to_string(), "{name}");
        daemon.kill(name, Signal::SIGUSR1);
        daemon.wait_down(name, 1);
        wait_ready(&mut daemon, name, 2);
        assert_ne!(fs::read_to_string(&path).expect("a pid file"), named);
    }
    let (plain, scrubbed) = (daemon.pid_of("plain"), daemon.pid_of("scrubbed"));
    daemon.kill_daemon();
    assert_eq!((daemon.pid_of("plain"), daemon.pid_of("scrubbed")), (plain, scrubbed));
    daemon.kill_all();
    let mut daemon = daemon.again();
    wait_ready(&mut daemon, "plain", 2);
    assert_eq!((daemon.pid_of("plain"), daemon.pid_of("scrubbed")), (plain, scrubbed));
    daemon.kill("plain", Signal::SIGUSR2);
    daemon.wait_down("plain", 2);
    daemon.must(Action::Down(Selection { programs: vec!["scrubbed".to_owned()], wait: true, timeout_ms: None }));
    // Its new parent may not have reaped it yet.
    let stat = fs::read_to_string(format!("/proc/{scrubbed}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "it was stopped: {stat}");
    assert!(!daemon.directory.path().join("scrubbed.pid").exists());
    daemon.end();
    daemon.verify();
}

/// A command may write the pid file before its daemon makes a session of its own, as Debian's nginx does. Processes
/// that the daemon leaves in that session end with it, also without a token in their environment.
#[test]
fn a_daemon_that_moves_after_it_was_found_leaves_nobody_behind() {
    let moves = "exec env -i setsid sh -c 'sleep 1000000 & echo $! > @DIR@/left.new; mv @DIR@/left.new @DIR@/left; exec sleep 1000000'";
    let mut daemon = Daemon::new(&format!(
        "\"late\": (shell: \"(while ! test -e @DIR@/go; do :; done; {moves}) & echo $! > @DIR@/late.pid\", \
         pid_file: Read(\"@DIR@/late.pid\")),"
    ));
    wait_ready(&mut daemon, "late", 1);
    // gaggled knows the daemon; only now the daemon makes its session.
    fs::write(daemon.directory.path().join("go"), "").expect("a file");
    let left = daemon.directory.path().join("left");
    let written = left.clone();
    daemon.wait_outside("what it leaves", move || written.exists());
    let left: i32 = fs::read_to_string(left).expect("a file").trim().parse().expect("a process id");
    daemon.kill("late", Signal::SIGKILL);
    daemon.wait_down("late", 1);
    // The mv that has made the file may be one of them.
    let exited = |event: &ProgramEvent| matches!(event, ProgramEvent::Exited { orphans: 1 | 2, .. });
    let is_counted = daemon.heard.iter().any(|heard| matches!(&heard.event, Event::Program(_, event) if exited(event)));
    assert!(is_counted, "{}", daemon.timeline());
    daemon.wait_outside("its end", move || !exists(left));
    daemon.end();
    daemon.verify();
}

/// Whatever a pid file says, no other process gets a signal.
#[test]
fn a_hostile_pid_file_harms_nobody() {
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().expect("a bystander");
    let table = [
        ("first", "1".to_owned(), "ForeignProcess(1)"),
        ("bystander", bystander.id().to_string(), "ForeignProcess"),
        ("neighbour", "@NEIGHBOUR@".to_owned(), "ForeignProcess"),
        ("zero", "0".to_owned(), "PidFileEmpty"),
        ("negative", "-1".to_owned(), "PidFileEmpty"),
        ("huge", "99999999999999".to_owned(), "PidFileEmpty"),
        ("garbage", "postmaster".to_owned(), "PidFileEmpty"),
        ("nobody", "4194300".to_owned(), "NoSuchProcess"),
    ];
    let mut programs =
        puppet("neighbour-itself", &format!("sleep {FOR_EVER}"), "pid_file: Write(\"@DIR@/neighbour.pid\")");
    for (name, content, _) in &table {
        let write =
            if content == "@NEIGHBOUR@" { "cat @DIR@/neighbour.pid".to_owned() } else { format!("echo {content}") };
        let fields = format!(
            "pid_file: Read(\"@DIR@/{name}\"), start_timeout: \"300ms\", depends: {{\"neighbour-itself\": ()}}"
        );
        programs.push_str(&format!("\"{name}\": (shell: \"{write} > @DIR@/{name}\", {fields}),"));
    }
    // A link leads to a file of another user, and a directory is no file.
    programs.push_str("\"link\": (shell: \"ln -sf @DIR@/neighbour.pid @DIR@/link\", pid_file: Read(\"@DIR@/link\"), start_timeout: \"300ms\", depends: {\"neighbour-itself\": ()}),");
    programs.push_str(
        "\"folder\": (shell: \"mkdir -p @DIR@/folder\", pid_file: Read(\"@DIR@/folder\"), start_timeout: \"300ms\"),",
    );
    let mut daemon = Daemon::new(&programs);
    let neighbour = {
        daemon.wait_up("neighbour-itself", 1);
        daemon.pid_of("neighbour-itself")
    };
    let expected = table
        .iter()
        .map(|(name, _, found)| (*name, *found))
        .chain([("link", "ForeignProcess"), ("folder", "PidFileEmpty")]);
    for (name, found) in expected {
        let unhealthy_reason = format!("{:?}", wait_unhealthy(&mut daemon, name));
        assert!(unhealthy_reason.contains(found), "{name}: {unhealthy_reason}");
    }
    daemon.must(Action::Down(Selection {
        programs: table.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        wait: true,
        timeout_ms: None,
    }));
    assert_eq!(daemon.pid_of("neighbour-itself"), neighbour);
    assert_eq!(daemon.dump()["neighbour-itself"]["instance"], 1);
    assert!(bystander.try_wait().expect("a status").is_none(), "the bystander lives");
    daemon.end();
    assert!(bystander.try_wait().expect("a status").is_none(), "the bystander lives");
    bystander.kill().expect("it lives");
    bystander.wait().expect("its end");
    daemon.verify();
}
