//! A real site: PostgreSQL, Redis, nginx and an application that needs them, broken and watched, with mail about it.

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
};

use gaggled_core::{
    base::ids::InstanceId,
    event::{Event, ProgramEvent},
};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, code, directory, free_port};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A mail server that prints the mails that it takes.
struct Mail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Mail {
    fn new(directory: &Path, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/mailserver.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(port.to_string())
            .args([directory.join("mail.pem"), directory.join("mail.key")])
            .arg("correct horse")
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut mail = Self { child, lines };
        assert_eq!(mail.next(), "ready");
        mail
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("a line").expect("text")).expect("JSON")
    }

    /// The next mail about this, passing over others.
    fn about(&mut self, words: &str) -> Value {
        loop {
            let mail = self.next();
            if mail["headers"]["Subject"].as_str().is_some_and(|subject| subject.replace("\r\n", "").contains(words)) {
                return mail;
            }
        }
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prepares the site in a directory, and returns its ports: database, cache, application, web, mail.
fn prepare(directory: &Path) -> [u16; 5] {
    let ports = std::array::from_fn(|_| free_port());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/site/prepare");
    let prepared = Command::new(script).arg(directory).args(ports.map(|port| port.to_string())).output().expect("sh");
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    ports
}

fn fetch(port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("curl")
        .args([
            "--silent",
            "--fail",
            "--retry",
            "40",
            "--retry-delay",
            "1",
            "--retry-all-errors",
            "--max-time",
            "5",
            &url,
        ])
        .output()
        .expect("curl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_site_of_real_programs_breaks_heals_and_tells_so_by_mail() {
    let directory = Arc::new(directory());
    let path = directory.path();
    let ports = prepare(path);
    let (web, mail_port) = (ports[3], ports[4]);
    let mut mail = Mail::new(path, mail_port);
    let config = fs::read_to_string(path.join("system.ron")).expect("a configuration");
    let mut daemon = Daemon::with(&config, directory.clone(), &DaemonOptions::default());
    for program in ["postgresql", "redis", "app", "nginx", "smtpgate"] {
        daemon.wait_up(program, 1);
    }
    assert!(fetch(web).starts_with("visits: 1 stored"), "the site does not answer");
    let nginx = daemon.pid_of("nginx");
    let first_app = daemon.state().programs[daemon.state().graph.names()["app"]].instance;

    // The gate sends no mail about a program in the first period after it has learned of it.
    daemon.listen_until(gaggled_tests::harness::now() + std::time::Duration::from_millis(3500));
    daemon.kill("postgresql", Signal::SIGKILL);
    let app = daemon.state().graph.names()["app"];
    daemon.wait("the application to come back", |heard, state| {
        let fallen = heard.iter().any(|envelope| {
            matches!(&envelope.event, Event::Program(id, ProgramEvent::Exited { instance, .. }) if *id == app && *instance == first_app)
        });
        fallen && state.programs[app].is_running_and_wanted() && state.programs[app].instance > first_app
    });
    follows_its_database(&daemon, first_app);
    assert_eq!(daemon.pid_of("nginx"), nginx, "nginx does not propagate");
    assert!(fetch(web).starts_with("visits: 2 stored"), "the database has lost something");

    // On a busy machine the application may come back several times before its database answers; the first time counts.
    let again = daemon.heard.iter().find(|envelope| {
        matches!(envelope.event, Event::Program(id, ProgramEvent::Started { instance, .. }) if id == app && instance > first_app)
    });
    let seq = again.expect("it came back").seq.to_string();
    let why = daemon.tool("gaggled_controller", &["why", "app", "--at", &seq]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    for words in [
        "app was up",
        "postgresql had been up for 500 ms, as app needs",
        "postgresql was killed by SIGKILL",
        "the operating system reported it",
    ] {
        assert!(why.contains(words), "{words}\n{why}");
    }

    let down = mail.about("process postgresql is down, due to KILL");
    assert_eq!((&down["tls"], &down["login"]), (&true.into(), &"gaggled".into()));
    assert_eq!(down["to"], serde_json::json!(["ops@example.com"]), "each recipient has a delivery of its own");
    assert_eq!(mail.about("process postgresql is down")["to"], serde_json::json!(["boss@example.com"]));
    let headers = &down["headers"];
    assert_eq!(headers["To"], "ops@example.com, boss@example.com");
    for header in ["From", "To", "Date", "Subject", "Message-ID", "MIME-Version"] {
        assert!(headers[header].is_string(), "no {header}: {headers}");
    }
    let epoch = daemon.state().epoch.to_string();
    assert!(
        headers["Message-ID"].as_str().is_some_and(|id| id.contains(&epoch) && id.contains("postgresql")),
        "{headers}"
    );
    mail.about("process postgresql is up, was down, current pid:");
    assert_eq!(code(daemon.end()), 0, "{}", daemon.log());
}

/// The application was stopped after its database went down, and came back no earlier than the delay after it.
fn follows_its_database(daemon: &Daemon, first_app: InstanceId) {
    let names = daemon.state().graph.names();
    let (database, app) = (names["postgresql"], names["app"]);
    let at = |found: &dyn Fn(&Event) -> bool| {
        daemon
            .heard
            .iter()
            .filter(|envelope| found(&envelope.event))
            .map(|envelope| envelope.monotonic)
            .collect::<Vec<_>>()
    };
    let fell = at(&|event| matches!(event, Event::Program(id, ProgramEvent::Exited { .. }) if *id == database))[0];
    let stopped = at(
        &|event| matches!(event, Event::Program(id, ProgramEvent::Stopping { instance, .. }) if *id == app && *instance == first_app),
    )[0];
    assert!(fell <= stopped);
    let back = at(&|event| matches!(event, Event::Program(id, ProgramEvent::Started { .. }) if *id == database));
    for started in at(
        &|event| matches!(event, Event::Program(id, ProgramEvent::Started { instance, .. }) if *id == app && *instance > first_app),
    ) {
        let last = back.iter().filter(|back| **back <= started).max().expect("the database was up");
        assert!(last.until(started).0 >= 500, "the application came back {} after its database", last.until(started));
    }
}

#[test]
fn a_mail_server_that_comes_late_gets_the_mail_all_the_same() {
    let directory = Arc::new(directory());
    let path = directory.path();
    let ports = prepare(path);
    let url = |name: &str| format!("ipc://{}/{name}.ipc", path.display());
    let config = format!(
        "(gaggled: (eventurl: \"{}\", controlurl: \"{}\", smtpgate: (mx: \"localhost\", port: {}, from: \"g@example.com\", to: [\"o@example.com\"], \
         period: 50, tls: StartTls, ca: \"@DIR@/ca.pem\", user: \"gaggled\", password_file: \"@DIR@/password\")), \
         programs: {{\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], mode: Once)}})",
        url("events"),
        url("control"),
        ports[4],
    );
    let mut daemon = Daemon::with(&config, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("a", 1);
    let mut gate = Command::new(binary("gaggled_smtpgate"))
        .arg("-c")
        .arg(path.join("system.ron"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the gate");
    let mut said = BufReader::new(gate.stderr.take().expect("a pipe")).lines();
    let mut until = |words: &str| while !said.next().expect("a line").expect("text").contains(words) {};
    until("synchronised with gaggled");
    daemon.kill("a", Signal::SIGKILL);
    until("not delivered, will be tried again");
    let mut mail = Mail::new(path, ports[4]);
    mail.about("process a is down");
    until("delivered: process a is down");
    gate.kill().expect("it runs");
    gate.wait().expect("its end");
}
