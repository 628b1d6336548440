//! Followers that stop reading or die, across the death of gaggled: the listener and the mail gate.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use gaggled_core::protocol::{Action, Selection};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, directory};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

fn crash_looper(name: &str) -> String {
    format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"1\"], backoff: (initial: 0, max: 0)),")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a small number"))
}

/// A follower stands still for ten thousand events, while gaggled is killed and started again.
#[test]
fn a_listener_that_stood_still_for_ten_thousand_events_misses_none() {
    let programs: String = (0..6).map(|i| crash_looper(&format!("p{i}"))).collect();
    let mut daemon = Daemon::new(&programs);
    let mut listener = Command::new(binary("gaggled_listener"))
        .args(["--json", "--since", "0", "-u", &daemon.event, "--control", &daemon.control])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a listener");
    let mut lines = BufReader::new(listener.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    let first = next();
    assert_eq!(first["event"], "DaemonStarted");
    kill(pid(&listener), Signal::SIGSTOP).expect("it runs");
    let seen = daemon.state().seq.0;
    daemon.wait("five thousand events", |_, state| state.seq.0 > seen + 5_000);
    daemon.kill_all();
    let mut daemon = daemon.again();
    daemon.wait("ten thousand events", |_, state| state.seq.0 > seen + 10_000);
    let daemon_pid = daemon.daemon_pid();
    kill(Pid::from_raw(daemon_pid), Signal::SIGKILL).expect("it runs");
    daemon.wait_for_another(daemon_pid);
    daemon.must(Action::Down(Selection { programs: Vec::new(), wait: true, timeout_ms: None }));
    daemon.wait("silence", |_, state| state.running.is_empty());
    let last = daemon.state().seq.0;
    kill(pid(&listener), Signal::SIGCONT).expect("it stands");
    let mut position = (first["epoch"].as_u64(), first["seq"].as_u64().expect("a number"));
    while position.1 < last {
        let event = next();
        let here = (event["epoch"].as_u64(), event["seq"].as_u64().expect("a number"));
        assert!(here > position, "{here:?} follows {position:?}");
        // The last events before a kill may have been published and not written; then their numbers are used again.
        assert!(here.1 <= position.1 + 1, "events between {position:?} and {here:?} are missing");
        position = here;
    }
    listener.kill().expect("it runs");
    let output = listener.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("missed"), "{said}");
}

/// What a mail server is to do when it has got a mail.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Take,
    /// The gate is killed before it receives the reply of the server.
    KillGateFirst,
}

/// A mail server that takes one mail at a time, when the test wants it.
struct Server {
    listener: TcpListener,
}

impl Server {
    fn new(port: u16) -> Self {
        Self { listener: TcpListener::bind(("127.0.0.1", port)).expect("the port is free") }
    }

    /// Takes one mail; its subject.
    fn take(&self, after: After, gate: &mut Gate) -> String {
        let (stream, _) = self.listener.accept().expect("a client");
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        let say = |mut stream: &TcpStream, line: &str| write!(stream, "{line}\r\n").expect("it listens");
        say(&stream, "220 here");
        let mut subject = String::new();
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return subject;
            }
            let word = line.trim().to_ascii_uppercase();
            if word == "DATA" {
                say(&stream, "354 go on");
                loop {
                    line.clear();
                    reader.read_line(&mut line).expect("a line");
                    if let Some(rest) = line.strip_prefix("Subject: ") {
                        rest.trim().clone_into(&mut subject);
                    }
                    if line == ".\r\n" {
                        break;
                    }
                }
                if after == After::KillGateFirst {
                    gate.kill();
                    return subject;
                }
                say(&stream, "250 taken");
                return subject;
            } else if word == "QUIT" {
                say(&stream, "221 bye");
            } else {
                say(&stream, "250 yes");
            }
        }
    }
}

/// A mail gate that can be killed and started again.
struct Gate {
    config: std::path::PathBuf,
    child: Child,
}

impl Gate {
    fn new(config: std::path::PathBuf) -> Self {
        let child = Self::start(&config);
        Self { config, child }
    }

    fn start(config: &std::path::Path) -> Child {
        let log =
            fs::OpenOptions::new().append(true).create(true).open(config.with_file_name("gate.log")).expect("a log");
        Command::new(binary("gaggled_smtpgate")).arg("-c").arg(config).stderr(log).spawn().expect("a gate")
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its end");
    }

    fn again(&mut self) {
        self.child = Self::start(&self.config);
    }

    fn spool(&self) -> Value {
        let text = fs::read_to_string(self.config.with_file_name("state").join("smtpgate.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gate is killed with the server down, in the middle of a mail, and after it; gaggled is killed as well. Every
/// statement arrives, and none twice once the gate has received the server's acceptance.
#[test]
fn a_mail_is_neither_lost_nor_sent_twice_when_gaggled_or_the_gate_dies() {
    let directory = Arc::new(directory());
    let port = gaggled_tests::harness::free_port();
    let config = format!(
        "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", killwait: \"2s\", \
         smtpgate: (mx: \"localhost\", port: {port}, from: \"g@example.com\", to: [\"o@example.com\"], period: 50)), \
         programs: {{{}}})",
        (0..4)
            .map(|i| format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], mode: Once),"))
            .collect::<String>()
    );
    let mut daemon = Daemon::with(&config, directory.clone(), &DaemonOptions::default());
    for i in 0..4 {
        daemon.wait_up(&format!("p{i}"), 1);
    }
    let mut gate = Gate::new(directory.path().join("system.ron"));
    daemon.wait_outside("the gate to have heard everything", || !gate.spool()["position"].is_null());

    // The server is down. The mail is written, the gate dies, and gaggled dies too.
    daemon.kill("p0", Signal::SIGKILL);
    daemon.wait_down("p0", 1);
    daemon
        .wait_outside("a mail in the spool", || gate.spool()["mails"].as_array().is_some_and(|mails| mails.len() == 1));
    gate.kill();
    daemon.kill_daemon();
    // Events that happen while no gate runs are mailed as well.
    daemon.kill("p1", Signal::SIGKILL);
    daemon.wait_down("p1", 1);
    let server = Server::new(port);
    gate.again();
    // The gate is killed again while it delivers the first mail.
    let first = server.take(After::KillGateFirst, &mut gate);
    assert!(first.contains("p0 is down"), "{first}");
    gate.again();
    let mut told: Vec<String> = vec![server.take(After::Take, &mut gate), server.take(After::Take, &mut gate)];
    told.sort();
    assert!(told[0].contains("p0 is down") && told[1].contains("p1 is down"), "{told:?}");
    daemon.wait_outside("an empty spool", || gate.spool()["mails"].as_array().is_some_and(Vec::is_empty));
    // Delivered mails are not sent again; mails about later events are sent.
    gate.kill();
    gate.again();
    daemon.kill("p2", Signal::SIGKILL);
    daemon.wait_down("p2", 1);
    let third = server.take(After::Take, &mut gate);
    assert!(third.contains("p2 is down"), "{third}");
    let last = daemon.state().seq.0;
    daemon.wait_outside("the gate to have heard everything", || gate.spool()["position"]["seq"].as_u64() >= Some(last));
    daemon.wait_outside("an empty spool", || gate.spool()["mails"].as_array().is_some_and(Vec::is_empty));
}
