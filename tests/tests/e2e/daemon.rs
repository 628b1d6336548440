//! The real daemon with real processes: the environment of programs, their supervision, and which requests are
//! permitted.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::Arc,
};

use gaggled_core::{
    event::{Event, ProgramEvent},
    protocol::{Action, ErrorCode, Request, Selection},
};
use gaggled_gateways::client::ControlClient;
use gaggled_tests::harness::{Daemon, DaemonOptions, PATIENCE, binary, code, directory, exists, free_port};
use nix::sys::signal::Signal;

const SLEEPER: &str = "(command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"])";

fn sleeper(name: &str) -> String {
    format!("\"{name}\": {SLEEPER},")
}

fn all() -> Selection {
    Selection { programs: Vec::new(), wait: true, timeout_ms: None }
}

/// The report of a puppet: each word with its values.
fn report(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut report: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (word, value) in text.lines().filter_map(|line| line.split_once(":\t")) {
        report.entry(word.to_owned()).or_default().push(value.trim().to_owned());
    }
    report
}

#[test]
fn a_program_gets_a_clean_start() {
    // The daemon has blocked and ignored signals, an open descriptor and a hostile environment; the program gets none.
    let directory = Arc::new(directory());
    let config = "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", env: {\"FOR_ALL\": \"1\", \"BOTH\": \"all\"}),
        programs: {\"a\": (command: \"@PUPPET@\", argv: [\"report\", \"@DIR@/report\"], env: {\"OWN\": \"x y\", \"BOTH\": \"own\"}, wd: \"/\", log: \"@DIR@/a.log\")})";
    let leaked = fs::File::open("/dev/zero").expect("a descriptor");
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("it is inherited");
    let variables = [("GAGGLED_PROGRAM_NAME", "hostile".to_owned()), ("INHERITED", "yes".to_owned())];
    let mut daemon =
        Daemon::with(config, directory.clone(), &DaemonOptions { variables: &variables, ..DaemonOptions::default() });
    daemon.wait_up("a", 1);
    let path = directory.path().join("report");
    daemon.wait_outside("the report", || fs::read_to_string(&path).is_ok_and(|text| text.contains("Env:\tINHERITED")));
    let report = report(&fs::read_to_string(&path).expect("a report"));
    assert_eq!(report["SigBlk"], ["0000000000000000"]);
    assert_eq!(report["SigIgn"], ["0000000000001000"], "only what the runtime of the puppet itself ignores");
    assert_eq!(report["Session"], report["Own"], "a session of its own");
    let descriptors: Vec<&str> = report["Fd"].iter().map(|fd| fd.split(' ').next().expect("a number")).collect();
    assert_eq!(descriptors, ["0", "1", "2"], "{:?}", report["Fd"]);
    assert!(report["Fd"][0].ends_with("/dev/null"));
    assert!(report["Fd"][1].ends_with("/a.log"));
    let variables: BTreeMap<&str, &str> = report["Env"].iter().filter_map(|pair| pair.split_once('=')).collect();
    assert_eq!(variables["GAGGLED_PROGRAM_NAME"], "a");
    assert_eq!(variables["GAGGLED_CONTROL_URL"], daemon.control);
    assert_eq!(variables["GAGGLED_EVENT_URL"], daemon.event);
    assert!(variables.contains_key("GAGGLED_HOST"));
    assert!(variables["GAGGLED_TOKEN"].starts_with("1:a:"));
    assert_eq!((variables["FOR_ALL"], variables["OWN"], variables["BOTH"]), ("1", "x y", "own"));
    assert_eq!(variables["INHERITED"], "yes");
}

#[test]
fn a_program_that_ends_at_once_is_reported_each_time() {
    let mut daemon =
        Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"3\"], backoff: (initial: 0, max: 0)),");
    daemon.wait("300 runs", |_, state| state.programs.values().all(|program| program.restarts >= 300));
    daemon.must(Action::Down(all()));
    daemon.end();
    let events: Vec<&ProgramEvent> = daemon
        .heard
        .iter()
        .filter_map(|envelope| match &envelope.event {
            Event::Program(_, event) => Some(event),
            Event::Remote(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => None,
        })
        .collect();
    let runs = events.iter().filter(|event| matches!(event, ProgramEvent::Starting { .. })).count();
    for wanted in ["Started", "Exited"] {
        let seen = events.iter().filter(|event| format!("{event:?}").starts_with(wanted)).count();
        assert!(seen == runs, "{runs} runs, but {seen} times {wanted}");
    }
}

#[test]
fn what_a_program_leaves_behind_is_killed_and_counted() {
    let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"spawn\"], mode: Once),");
    daemon.wait_up("a", 1);
    let main = daemon.pid_of("a");
    let child = wait_for_child(&mut daemon, main);
    daemon.kill("a", Signal::SIGKILL);
    daemon.wait_down("a", 1);
    let left = daemon.heard.iter().find_map(|envelope| match envelope.event {
        Event::Program(_, ProgramEvent::Exited { orphans, .. }) => Some(orphans),
        _ => None,
    });
    assert_eq!(left, Some(1));
    // Not even a zombie is left: an orphan is gaggled's own child, and is reaped.
    daemon.wait_outside("the end of the orphan", || !exists(child));
}

/// Waits until the child that a puppet makes has become the one that stays.
fn wait_for_child(daemon: &mut Daemon, parent: i32) -> i32 {
    let child = || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let sleeps =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("sleep"));
        children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).find(sleeps)
    };
    daemon.wait_outside("a child", || child().is_some());
    child().expect("it stays")
}

#[test]
fn a_command_with_an_id_acts_once() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let caller = ControlClient::dial(&daemon.control).expect("gaggled answers");
    let request = Request::new("the same", Action::Restart(all()));
    let first = caller.call(&request, PATIENCE).expect("an answer");
    let second = caller.call(&request, PATIENCE).expect("an answer");
    assert!(first.ok && second.ok);
    assert_eq!(first.body.map(|body| body.to_string()), second.body.map(|body| body.to_string()));
    assert_eq!(daemon.dump()["a"]["instance"], 2);
}

#[test]
fn a_second_gaggled_on_the_same_urls_is_refused_and_the_first_untouched() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let config = daemon.directory.path().join("system.ron");
    let second = Command::new(binary("gaggled")).arg("-c").arg(config).output().expect("gaggled");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(100), "{said}");
    assert!(said.contains("is already in use"), "{said}");
    assert_eq!(daemon.dump()["a"]["instance"], 1);
}

#[test]
fn a_socket_left_by_a_kill_is_replaced_and_nothing_else_is() {
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    let pid = daemon.pid_of("a");
    daemon.kill_all();
    assert!(exists(pid), "it lives on");
    let directory = daemon.directory.clone();
    let config = fs::read_to_string(directory.path().join("system.ron")).expect("a configuration");
    let mut again = Daemon::with(&config, directory.clone(), &DaemonOptions::default());
    again.wait_up("a", 1);
    again.end();
    let path = directory.path().join("control.ipc");
    for what in ["a file", "a directory", "a symbolic link"] {
        let _ = fs::remove_file(&path);
        match what {
            "a file" => fs::write(&path, "precious").expect("a file"),
            "a directory" => fs::create_dir(&path).expect("a directory"),
            _ => {
                fs::remove_dir(&path).expect("it is empty");
                std::os::unix::fs::symlink("/etc/passwd", &path).expect("a link");
            }
        }
        let refused = Command::new(binary("gaggled"))
            .arg("-c")
            .arg(directory.path().join("system.ron"))
            .output()
            .expect("gaggled");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(100), "{what}: {said}");
        assert!(said.contains(&format!("is {what}, not a socket")), "{said}");
        assert!(path.symlink_metadata().is_ok(), "{what} is still there");
    }
}

#[test]
fn plain_tcp_is_for_looking_unless_the_configuration_says_otherwise() {
    // B23: any client could stop everything.
    let (event, control) = (free_port(), free_port());
    let urls = (format!("tcp://127.0.0.1:{event}"), format!("tcp://127.0.0.1:{control}"));
    let config =
        format!("(gaggled: (eventurl: \"{}\", controlurl: \"{}\"), programs: {{{}}})", urls.0, urls.1, sleeper("a"));
    let mut daemon =
        Daemon::with(&config, Arc::new(directory()), &DaemonOptions { urls: Some(urls), ..DaemonOptions::default() });
    daemon.wait_up("a", 1);
    for action in [Action::Down(all()), Action::Shutdown { wait: false, timeout_ms: None }] {
        let reply = daemon.ask(action);
        assert_eq!(reply.error.map(|error| error.code), Some(ErrorCode::Forbidden));
    }
    assert_eq!(daemon.dump()["a"]["up"], true);
    daemon.wait("the refusals in the journal", |heard, _| {
        heard.iter().filter(|envelope| envelope.event.name() == "CommandRefused").count() == 2
    });
}

#[test]
fn garbage_on_the_channels_changes_nothing() {
    // B5, B6: no malformed message reads foreign memory or ends gaggled.
    let mut daemon = Daemon::new(&sleeper("a"));
    daemon.wait_up("a", 1);
    for channel in ["control", "events"] {
        let path = daemon.directory.path().join(format!("{channel}.ipc"));
        let hello = [0, b'S', b'P', 0, 0, 0x30, 0, 0];
        let huge: Vec<u8> = hello.into_iter().chain([1]).chain(u64::MAX.to_be_bytes()).collect();
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &huge, &hello[..5], b""] {
            let mut stream = UnixStream::connect(&path).expect("it listens");
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    let too_much = "x".repeat(100_000);
    for (text, expected) in [
        ("", "bad_request"),
        ("{", "bad_request"),
        ("[1,2]", "bad_request"),
        ("{\"request\":\"explode\"}", "bad_request"),
        ("{\"v\":99,\"request\":\"status\"}", "bad_version"),
        ("{\"v\":1,\"request\":\"why\",\"program\":\"nosuch\"}", "no_such_program"),
        ("{\"v\":1,\"request\":\"dump\",\"programs\":[\"[\"]}", "bad_request"),
        ("{\"v\":1,\"request\":\"signal\",\"programs\":[\"a\"],\"signal\":\"SIGNONSENSE\"}", "bad_request"),
        (&too_much, ""),
    ] {
        let answer = raw_request(&daemon.control, text);
        assert!(expected.is_empty() || answer.contains(expected), "{text} -> {answer}");
    }
    assert_eq!(daemon.dump()["a"]["instance"], 1);
    assert_eq!(code(daemon.end()), 0);
}

/// Sends any text as a request; the answer, or nothing if there is none.
fn raw_request(url: &str, text: &str) -> String {
    let script = "import socket,struct,sys\n\
        s=socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(sys.argv[1]); s.sendall(bytes([0,83,80,0,0,48,0,0])); s.recv(8)\n\
        body=struct.pack('>I',0x80000001)+sys.argv[2].encode()\n\
        s.sendall(b'\\x01'+struct.pack('>Q',len(body))+body)\n\
        try:\n  f=s.makefile('rb'); h=f.read(9); print(f.read(struct.unpack('>Q',h[1:])[0])[4:].decode())\n\
        except Exception: pass\n";
    let path = url.trim_start_matches("ipc://");
    let output = Command::new("python3").args(["-c", script, path, text]).output().expect("python3");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    // B16: first the reader of gaggled's output stops reading, then it ends.
    let directory = directory();
    let config = directory.path().join("system.ron");
    let url = |name: &str| format!("ipc://{}/{name}.ipc", directory.path().display());
    let text = format!(
        "(gaggled: (eventurl: \"{}\", controlurl: \"{}\", state_directory: \"{}/state\", backoff: (initial: 0, max: 0)), programs: {{\"a\": (command: \"true\")}})",
        url("events"),
        url("control"),
        directory.path().display(),
    );
    fs::write(&config, text).expect("a configuration");
    let mut child =
        Command::new(binary("gaggled")).arg("-c").arg(&config).stderr(Stdio::piped()).spawn().expect("gaggled");
    let reader = child.stderr.take().expect("a pipe");
    let caller = ControlClient::dial_whenever(&url("control")).expect("a url");
    let restarts = |least: u64| loop {
        let reply = caller
            .call(&Request::new("", Action::Dump { programs: Vec::new(), from: 0, limit: None, at: None }), PATIENCE)
            .expect("an answer");
        let body: serde_json::Value = serde_json::from_str(reply.body.expect("a body").get()).expect("JSON");
        if body["programs"][0]["restarts"].as_u64().expect("a number") >= least {
            return;
        }
    };
    restarts(1000);
    drop(reader);
    restarts(1500);
    let reply =
        caller.call(&Request::new("", Action::Shutdown { wait: true, timeout_ms: None }), PATIENCE).expect("an answer");
    assert!(reply.ok);
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

/// A program with `autostart: false` comes up only if it is requested by name.
#[test]
fn everything_is_not_what_comes_up_only_when_it_is_asked_for() {
    let mut daemon = Daemon::new(&format!(
        "{} \"spare\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], autostart: false),",
        sleeper("a")
    ));
    daemon.wait_up("a", 1);
    let runs = |daemon: &Daemon, arguments: &[&str]| {
        assert!(daemon.tool("gaggled_controller", arguments).status.success(), "{arguments:?}");
        let dump = daemon.dump();
        (dump["a"]["instance"].as_u64(), dump["spare"]["instance"].as_u64())
    };
    assert_eq!(runs(&daemon, &["restart"]), (Some(2), Some(0)));
    assert_eq!(runs(&daemon, &["up"]), (Some(2), Some(0)));
    assert_eq!(runs(&daemon, &["up", "spare"]), (Some(2), Some(1)));
    assert_eq!(runs(&daemon, &["restart"]), (Some(3), Some(2)));
    runs(&daemon, &["down"]);
    assert_eq!(runs(&daemon, &["up"]), (Some(4), Some(2)));
}

#[test]
fn a_restart_of_a_group_brings_back_what_an_operator_has_started() {
    let program = |name: &str, fields: &str| {
        format!("\"{name}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], group: \"g\", {fields}),")
    };
    let mut daemon = Daemon::new(&format!("{} {}", program("a", ""), program("spare", "autostart: false")));
    daemon.wait_up("a", 1);
    for (words, run) in
        [(&["up", "spare"][..], 1), (&["restart", "g"], 2), (&["restart"], 3), (&["tell", "g", "restart"], 4)]
    {
        assert!(daemon.tool("gaggled_controller", words).status.success(), "{words:?}");
        daemon.wait_up("spare", run);
        daemon.wait_up("a", run);
    }
    daemon.must(Action::Down(Selection { programs: vec!["spare".into()], wait: true, timeout_ms: None }));
    assert!(daemon.tool("gaggled_controller", &["restart", "g"]).status.success());
    assert_eq!(daemon.dump()["spare"]["phase"], "down", "{}", daemon.timeline());
    daemon.end();
}

#[test]
fn the_exit_codes_of_the_controller_are_as_documented() {
    let mut daemon = Daemon::new(&format!(
        "{} \"slow\": (command: \"@PUPPET@\", argv: [\"slowterm\", \"3000\", \"0\"]), \"waits\": (command: \"@PUPPET@\", argv: [\"sleep\", \"9\"], depends: {{\"spare\": ()}}), \"spare\": (command: \"@PUPPET@\", argv: [\"sleep\", \"9\"], autostart: false), \"fails\": (command: \"@PUPPET@\", wd: \"/nosuch\", autostart: false),",
        sleeper("a")
    ));
    daemon.wait_up("a", 1);
    daemon.wait_up("slow", 1);
    for (arguments, expected, words) in [
        (&["dump"][..], 0, ""),
        (&["dump", "--tree"], 0, ""),
        (&["dump", "--json"], 0, ""),
        (&["status"], 0, ""),
        (&["why", "a"], 0, ""),
        (&["events"], 0, ""),
        (&["events", "--json", "--program", "a"], 0, ""),
        (&["snapshot", "--json"], 0, ""),
        (&["restart", "a"], 0, ""),
        (&["down", "a", "--no-wait"], 0, ""),
        (&["wait", "a", "--for", "down"], 0, ""),
        (&["up", "a"], 0, ""),
        (&["signal", "HUP", "a"], 0, ""),
        (
            &["up", "fails"],
            1,
            "fails could not be started: changing to the working directory failed: no such file or directory",
        ),
        (&["nonsense"], 2, ""),
        (&["down", "nosuch"], 3, "there is no program \"nosuch\""),
        (&["down", "x*"], 3, "no program matches"),
        (&["down", "slov"], 3, "did you mean \"slow\"?"),
        (&["-u", "ipc:///nosuch/socket", "dump"], 4, "cannot reach gaggled"),
        (&["-u", "nonsense", "dump"], 2, "is not understood"),
        (&["why", "[as]*"], 2, "means several programs"),
        (&["signal", "FOO", "a"], 2, "signal \"FOO\" is not known"),
        (&["wait", "a", "--timeout", "30"], 2, "\"30\" has no unit: write \"30s\""),
        (&["down", "slow", "--timeout", "50ms"], 5, "not down in time: slow"),
        (&["wait", "waits", "--timeout", "50ms"], 5, "not up in time: waits (waiting for spare)"),
        (&["-u", "tcp://127.0.0.1:1", "dump"], 4, "cannot reach gaggled"),
    ] {
        let output = daemon.tool("gaggled_controller", arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    daemon.wait_up("a", 3);
    let output = daemon.tool("gaggled_controller", &["shutdown"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(code(daemon.await_end()), 0);
}

#[test]
fn the_listener_tells_what_happens_and_survives_a_restart_of_gaggled() {
    let mut daemon = Daemon::new(&format!("{} {}", sleeper("a"), sleeper("b")));
    daemon.wait_up("b", 1);
    let mut listener = Command::new(binary("gaggled_listener"))
        .args(["--json", "--program", "a", "--since", "0", "-u", &daemon.event, "--control", &daemon.control])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a listener");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(listener.stdout.take().expect("a pipe")));
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    assert_eq!(next()["event"], "ProgramStarting");
    assert_eq!(next()["event"], "ProgramStarted");
    daemon.kill("b", Signal::SIGKILL);
    daemon.kill("a", Signal::SIGKILL);
    let exited = next();
    assert_eq!((&exited["event"], &exited["status"]["signal"]), (&"ProgramExited".into(), &9.into()));
    let (directory, epoch) = (daemon.directory.clone(), exited["epoch"].as_u64());
    daemon.end();
    let config = fs::read_to_string(directory.path().join("system.ron")).expect("a configuration");
    let mut again = Daemon::with(&config, directory, &DaemonOptions::default());
    again.wait_up("a", 1);
    loop {
        let event = next();
        if event["epoch"].as_u64() > epoch {
            break;
        }
        if event["event"] == "ProgramExited" && event["instance"] == 2 {
            again.kill("a", Signal::SIGKILL);
        }
    }
    listener.kill().expect("it runs");
    listener.wait().expect("its end");
}

#[test]
fn without_a_path_everything_still_works() {
    // B17.
    let directory = directory();
    let config = directory.path().join("system.ron");
    fs::write(&config, "(gaggled: (eventurl: \"ipc:///tmp/x\", controlurl: \"ipc:///tmp/y\"), programs: {\"a\": (command: \"/bin/true\")})").expect("a file");
    let output = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&config).env_clear().output().expect("gaggled");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
