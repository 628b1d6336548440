//! A real gaggled with a directory of its own, and a follower that receives its events.

mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use gaggled_actors::journal::directory::segments;
use gaggled_core::{
    base::ids::{Position, Seq},
    config::Config,
    event::{Envelope, Event, ProgramEvent, SystemEvent},
    journal::segment::Replay,
    protocol::{Action, Reply, Request, Selection, encode_applied},
    state::State,
};
use gaggled_gateways::{
    client::ControlClient,
    follow::{FollowEvent, Follower, StartPosition},
};
use serde_json::Value;
use tempfile::TempDir;

use self::machine::is_gaggled;
pub use self::machine::{children, code, exists, free_port, now, parent, possible};

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary of this name, which the test command has built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let directory = test.ancestors().nth(2).expect("the target folder");
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build` first, and for a cluster `cargo build --package gaggled_cluster`",
        path.display()
    );
    path
}

/// A directory for one test, removed at its end.
pub fn directory() -> TempDir {
    tempfile::Builder::new().prefix("gaggled-test-").tempdir().expect("a directory")
}

/// A running gaggled.
pub struct Daemon {
    child: Child,
    /// Its directory.
    pub directory: Arc<TempDir>,
    /// The url of its control channel.
    pub control: String,
    /// The url of its event channel.
    pub event: String,
    follower: Follower,
    /// Every event that was received.
    pub heard: Vec<Envelope>,
    /// The state of its program after each, as it stood in the message.
    pub texts: Vec<String>,
    ended: Option<ExitStatus>,
    /// Whether another gaggled was started in its place, with the same journal.
    followed: bool,
}

/// How a gaggled is started.
#[derive(Default)]
pub struct DaemonOptions<'a> {
    /// Further arguments.
    pub arguments: &'a [&'a str],
    /// Further variables.
    pub variables: &'a [(&'a str, String)],
    /// The urls, if they are not sockets in the directory.
    pub urls: Option<(String, String)>,
    /// A command that runs gaggled.
    pub wrapper: &'a [&'a str],
}

impl Daemon {
    /// Starts gaggled with these programs, in which `@DIR@` and `@PUPPET@` are replaced; its urls are added.
    pub fn new(programs: &str) -> Self {
        let directory = Arc::new(directory());
        let dir = directory.path().display();
        let text = format!(
            "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\", killwait: \"2s\"), programs: {{{programs}}})"
        );
        Self::with(&text, directory, &DaemonOptions::default())
    }

    /// Starts gaggled with a whole configuration.
    pub fn with(text: &str, directory: Arc<TempDir>, start: &DaemonOptions<'_>) -> Self {
        let path = directory.path();
        let text = with_state(&substitute(text, path), path);
        let config = path.join("system.ron");
        fs::write(&config, &text).expect("a configuration");
        let log = fs::OpenOptions::new().append(true).create(true).open(path.join("log")).expect("a log");
        let local = |name: &str| format!("ipc://{}/{name}.ipc", path.display());
        let (event, control) = start.urls.clone().unwrap_or_else(|| (local("events"), local("control")));
        let check = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&config).current_dir(path).output();
        let check = check.expect("gaggled");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        let gaggled = binary("gaggled").display().to_string();
        let mut words = start.wrapper.iter().copied().chain([gaggled.as_str()]);
        let child = Command::new(words.next().expect("a command"))
            .args(words)
            .arg("-c")
            .arg(&config)
            .args(start.arguments)
            .envs(start.variables.iter().map(|(name, value)| (*name, value)))
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("gaggled");
        // A request that is sent before gaggled listens is answered as soon as it does.
        let caller = ControlClient::dial_whenever(&control).expect("a url");
        let answer = caller.call(&Request::new("", Action::Status), PATIENCE);
        let log = || fs::read_to_string(path.join("log")).unwrap_or_default();
        assert!(answer.is_ok(), "gaggled does not answer: {answer:?}\n{}", log());
        let follower = Follower::new(&event, &control, Some(StartPosition { epoch: None, seq: Seq(0) })).expect("urls");
        Self {
            child,
            directory,
            control,
            event,
            follower,
            heard: Vec::new(),
            texts: Vec::new(),
            ended: None,
            followed: false,
        }
    }

    /// The file that it was started with.
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("system.ron")
    }

    /// Its own log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The process id of its subreaper.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a small number")
    }

    /// The process id of the daemon itself.
    pub fn daemon_pid(&self) -> i32 {
        let pid = self.must(Action::Status)["pid"].as_i64().expect("a number");
        i32::try_from(pid).expect("a small number")
    }

    /// Kills the daemon, and waits for the one that follows it.
    pub fn kill_daemon(&mut self) {
        let daemon_pid = self.daemon_pid();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon_pid), nix::sys::signal::Signal::SIGKILL)
            .expect("it runs");
        self.wait_for_another(daemon_pid);
    }

    /// The process id, as seen outside, of the first process in the namespace that its wrapper has made.
    pub fn init(&self) -> i32 {
        children(self.pid()).into_iter().next().expect("unshare has a child")
    }

    /// Kills a daemon that is in a namespace of its own, and waits for the one that follows it.
    pub fn kill_daemon_inside(&mut self) {
        let daemon_pid = self.daemon_pid();
        let inside = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            line.split_whitespace().last() == Some(&daemon_pid.to_string())
        };
        let outside = children(self.init()).into_iter().find(inside).expect("the daemon is a child of its subreaper");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(outside), nix::sys::signal::Signal::SIGKILL)
            .expect("it runs");
        self.wait_for_another(daemon_pid);
    }

    /// Waits until another daemon than this one answers.
    pub fn wait_for_another(&mut self, daemon_pid: i32) {
        let control = self.control.clone();
        let another = move || {
            let caller = ControlClient::dial_whenever(&control).expect("a url");
            let reply = caller.call(&Request::new("", Action::Status), Duration::from_millis(500)).ok();
            let body = reply.and_then(|reply| reply.body);
            let status: Option<Value> = body.and_then(|body| serde_json::from_str(body.get()).ok());
            status.is_some_and(|status| status["pid"] != daemon_pid)
        };
        self.wait_outside("another daemon", another);
    }

    /// Where its journal is.
    pub fn journal(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Checks its journal with `gaggled journal verify`; returns the output.
    pub fn verify(&self) -> String {
        let output =
            Command::new(binary("gaggled")).args(["journal", "verify"]).arg(self.journal()).output().expect("gaggled");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Starts gaggled again, after it has ended or was killed, with the same configuration file.
    #[must_use]
    pub fn again(mut self) -> Self {
        let directory = self.directory.clone();
        let _ = self.await_end();
        self.followed = true;
        let config = fs::read_to_string(directory.path().join("system.ron")).expect("a configuration");
        Self::with(&config, directory, &DaemonOptions::default())
    }

    /// Kills the subreaper and the daemon, and leaves the programs.
    pub fn kill_all(&mut self) {
        use nix::sys::signal::Signal;
        let daemon_pid = self.daemon_pid();
        let subreaper = parent(daemon_pid);
        // The subreaper first, or it would start another daemon; the daemon is stopped before that, or it would take the
        // place of the subreaper.
        self.freeze(daemon_pid);
        for pid in [subreaper, daemon_pid] {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        }
        self.await_end();
        self.wait_gone(subreaper);
        self.wait_gone(daemon_pid);
    }

    /// Stops a process of gaggled until it gets a SIGCONT. A thread may still run for a while after the signal was
    /// sent, so this waits until all threads have stopped.
    pub fn freeze(&mut self, pid: i32) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).expect("it runs");
        let stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat"));
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T')))
        };
        let tasks = format!("/proc/{pid}/task");
        self.wait_outside("a process to be stopped", || {
            fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(stopped)))
        });
    }

    /// Waits until these programs are deaf to SIGTERM, or wait for it themselves: before that it would end them at once.
    pub fn wait_deaf(&mut self, programs: &[&str]) {
        let pids: Vec<i32> = programs.iter().map(|program| self.pid_of(program)).collect();
        // A process in `sigtimedwait` has the signals unblocked that it waits for.
        let is_deaf = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let waits = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            waits.contains("sigtimedwait")
                || status.lines().any(|line| line.starts_with("SigBlk:") && line.contains('4'))
        };
        self.wait_outside("programs to be deaf to TERM", || pids.iter().all(is_deaf));
    }

    /// Waits until a process that is not a child of the test has ended.
    pub fn wait_gone(&mut self, pid: i32) {
        let gone =
            || !exists(pid) || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        self.wait_outside("the end of a process", gone);
    }

    /// The state that the received events fold to.
    pub fn state(&self) -> &State {
        self.follower.state().expect("gaggled was heard")
    }

    /// Waits until this is true of the received events and the state. On a busy machine it waits longer, as long as
    /// events arrive.
    pub fn wait(&mut self, what: &str, done: impl Fn(&[Envelope], &State) -> bool) {
        let (mut deadline, last) = (now() + PATIENCE, now() + 5 * PATIENCE);
        loop {
            if self.follower.state().is_some_and(|state| done(&self.heard, state)) {
                return;
            }
            let heard = self.heard.len();
            assert!(!self.hear(deadline), "waited in vain for {what}\n{}\n{}", self.timeline(), self.log());
            if self.heard.len() > heard {
                deadline = last.min(now() + PATIENCE);
            }
        }
    }

    /// Waits until a condition outside gaggled is true. There is no notification of that, so the condition is polled.
    pub fn wait_outside(&mut self, what: &str, done: impl Fn() -> bool) {
        let deadline = now() + PATIENCE;
        while !done() {
            assert!(now() < deadline, "waited in vain for {what}\n{}\n{}", self.timeline(), self.log());
            self.listen_until(now() + Duration::from_millis(20));
        }
    }

    /// Waits until a program has come up in this run.
    pub fn wait_up(&mut self, program: &str, run: u64) {
        self.wait(&format!("{program} to be up in run {run}"), |_, state| {
            let known = state.graph.names().get(program).map(|id| &state.programs[*id]);
            known.is_some_and(|now| now.instance.0 >= run && now.is_running_and_wanted())
        });
    }

    /// Waits until a program has ended this run.
    pub fn wait_down(&mut self, program: &str, run: u64) {
        self.wait(&format!("{program} to end run {run}"), |heard, state| {
            let Some(id) = state.graph.names().get(program).copied() else { return false };
            heard.iter().any(|envelope| {
                matches!(&envelope.event, Event::Program(of, ProgramEvent::Exited { instance, .. }) if *of == id && instance.0 == run)
            })
        });
    }

    /// Receives events for a while.
    pub fn listen_for(&mut self, span: Duration) {
        self.listen_until(now() + span);
    }

    /// Receives events until a moment.
    pub fn listen_until(&mut self, moment: Instant) {
        while !self.hear(moment) {}
    }

    /// Receives the next message; true when the moment has come.
    fn hear(&mut self, until: Instant) -> bool {
        match self.follower.next(Some(until)) {
            FollowEvent::Event(envelope, text) => {
                self.heard.push(*envelope);
                self.texts.push(text);
                false
            }
            FollowEvent::Nothing => true,
            FollowEvent::Synchronised { missed } => {
                assert!(!missed, "events were lost for good");
                false
            }
            FollowEvent::Past(_)
            | FollowEvent::Silent
            | FollowEvent::Back
            | FollowEvent::Permits(_)
            | FollowEvent::Garbled(_) => now() >= until,
        }
    }

    /// Sends a request, and returns the reply.
    pub fn ask(&self, action: Action) -> Reply {
        let caller = ControlClient::dial(&self.control).expect("gaggled answers");
        caller.call(&Request::new("", action), PATIENCE).expect("an answer")
    }

    /// Sends a request that must succeed, and returns the body of the reply.
    pub fn must(&self, action: Action) -> Value {
        let reply = self.ask(action);
        assert!(reply.ok, "refused: {:?}", reply.error);
        reply.body.map_or(Value::Null, |body| serde_json::from_str(body.get()).expect("JSON"))
    }

    /// Stops everything, and waits until it has stopped.
    pub fn down_all(&self) {
        self.must(Action::Down(Selection { programs: Vec::new(), wait: true, timeout_ms: None }));
    }

    /// How runs have ended so far, and how many processes each has left.
    pub fn exits(&self) -> Vec<(gaggled_core::process::ExitStatus, u16)> {
        let exit = |envelope: &Envelope| match envelope.event {
            Event::Program(_, ProgramEvent::Exited { status, orphans, .. }) => Some((status, orphans)),
            _ => None,
        };
        self.heard.iter().filter_map(exit).collect()
    }

    /// The state of every program, by name.
    pub fn dump(&self) -> Value {
        let body = self.must(Action::Dump { programs: Vec::new(), from: 0, limit: None, at: None });
        body["programs"]
            .as_array()
            .expect("programs")
            .iter()
            .map(|state| (state["program"].as_str().expect("a name").to_owned(), state.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// The process id of a program that is up.
    pub fn pid_of(&self, program: &str) -> i32 {
        let pid = self.dump()[program]["pid"].as_i64().expect("a number");
        assert!(pid > 0, "{program} has no process");
        i32::try_from(pid).expect("a small number")
    }

    /// Sends a signal to a program's main process.
    pub fn kill(&self, program: &str, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid_of(program)), signal).expect("a process");
    }

    /// Sends a signal to gaggled itself.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("gaggled runs");
    }

    /// Runs a tool with its urls.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> std::process::Output {
        Command::new(binary(name))
            .args(arguments)
            .env("GAGGLED_CONTROL_URL", &self.control)
            .env("GAGGLED_EVENT_URL", &self.event)
            .stdin(Stdio::null())
            .output()
            .expect("a tool")
    }

    /// Ends gaggled with a SIGTERM, and returns its exit status.
    pub fn end(&mut self) -> ExitStatus {
        if self.ended.is_none() {
            self.signal(nix::sys::signal::Signal::SIGTERM);
        }
        self.await_end()
    }

    /// Waits until gaggled has ended, and its last events are received.
    pub fn await_end(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let status = self.child.wait().expect("gaggled was started");
        self.ended = Some(status);
        let settled = now() + Duration::from_millis(50);
        self.listen_until(settled);
        self.read_the_rest();
        status
    }

    /// Reads the events that the follower did not receive before gaggled ended from the journal.
    fn read_the_rest(&mut self) {
        let position = |envelope: &Envelope| Position { epoch: envelope.epoch, seq: envelope.seq };
        let heard = self.heard.last().map(position);
        for segment in segments(&self.journal()) {
            let bytes = fs::read(&segment.path).unwrap_or_default();
            let Ok(mut replay) = Replay::open(&bytes) else { continue };
            while let Some(Ok((envelope, _))) = replay.next_event() {
                if heard.is_none_or(|heard| position(&envelope) > heard) {
                    self.texts.push(encode_applied(&envelope, &replay.state));
                    self.heard.push(envelope);
                }
            }
        }
    }

    /// Whether its shutdown is complete, so that it has ended or is about to.
    pub fn must_have_ended(&self) -> bool {
        self.heard.iter().any(|envelope| matches!(envelope.event, Event::System(SystemEvent::ShutdownCompleted { .. })))
    }

    /// All received events, one per line.
    pub fn timeline(&self) -> String {
        let Some(state) = self.follower.state() else { return "nothing was heard".to_owned() };
        self.heard
            .iter()
            .map(|envelope| gaggled_tools::common::event_format::line(envelope, &state.graph, false) + "\n")
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its programs must not outlive the test. After the subreaper was killed, the daemon has another process id,
        // which is in the lock file.
        let locked = fs::read_to_string(self.journal().join("lock")).ok().and_then(|pid| pid.trim().parse().ok());
        let daemon_pid = locked.filter(|daemon_pid| !self.followed && is_gaggled(*daemon_pid));
        for pid in daemon_pid.into_iter().chain(self.ended.is_none().then(|| self.pid())) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if self.ended.is_none() {
            let _ = self.child.wait();
        }
    }
}

/// The same configuration, with a state directory in the test's directory if it names none.
fn with_state(text: &str, directory: &Path) -> String {
    let Ok(mut parsed) = Config::parse(text) else { return text.to_owned() };
    if parsed.config.gaggled.state_directory.is_some() {
        return text.to_owned();
    }
    parsed.config.gaggled.state_directory = Some(directory.join("state").display().to_string());
    parsed.config.print().expect("it can be printed")
}

/// Replaces `@DIR@` and `@PUPPET@` by the directory of a test and the path of the puppet.
pub fn substitute(text: &str, directory: &Path) -> String {
    text.replace("@DIR@", &directory.display().to_string()).replace("@PUPPET@", &binary("puppet").display().to_string())
}
