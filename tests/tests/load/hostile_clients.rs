//! Which users may change a configuration and reach the sockets, what a flood of requests or connections does, and
//! which variables and limits of a root gaggled reach programs.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use gaggled_core::{
    event::{Event, SystemEvent},
    protocol::{Action, Selection},
};
use gaggled_gateways::client::ControlClient;
use gaggled_tests::harness::{Daemon, DaemonOptions, PATIENCE, binary, directory, substitute};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: only root can become others");
    }
    root
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    if !is_root() {
        return;
    }
    let site = directory();
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let config = site.path().join("system.ron");
    fs::write(&config, "(programs: {\"a\": (command: \"/bin/true\", mode: Once)})").expect("a file");
    let check = |path: &Path| {
        let output = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(path).output().expect("gaggled");
        (output.status.code(), said(&output))
    };
    assert_eq!(check(&config).0, Some(0));
    let mode = |mode| fs::set_permissions(&config, fs::Permissions::from_mode(mode)).expect("a mode");
    let refused = |path: &Path, words: &str| {
        let (code, said) = check(path);
        assert!(code == Some(1) && said.contains(words) && said.contains("chown root:root"), "{code:?} {said}");
    };
    mode(0o666);
    refused(&config, "can be written by users other than root");
    mode(0o644);
    chown(&config, Some(NOBODY), None).expect("root may do that");
    refused(&config, "belongs to user 65534");
    chown(&config, Some(0), None).expect("root may do that");
    let home = site.path().join("home");
    fs::create_dir(&home).expect("a directory");
    fs::copy(&config, home.join("system.ron")).expect("a copy");
    symlink(&config, home.join("link.ron")).expect("a link");
    chown(&home, Some(NOBODY), None).expect("root may do that");
    refused(&home.join("system.ron"), "is in a directory that a user other than root can change");
    refused(&home.join("link.ron"), "is reached by a symbolic link that a user other than root can replace");
}

#[test]
fn a_request_that_is_too_long_is_answered() {
    let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),");
    daemon.wait_up("a", 1);
    for count in [20_000, 400_000] {
        let programs = vec!["a".repeat(4); count];
        let caller = ControlClient::dial(&daemon.control).expect("gaggled answers");
        let action = Action::Up(Selection { programs, wait: false, timeout_ms: None });
        let why = match caller.call(&gaggled_core::protocol::Request::new("", action), PATIENCE) {
            Ok(reply) => reply.error.expect("it is refused").message,
            Err(error) => error.to_string(),
        };
        assert!(why.contains("name groups or patterns"), "{why}");
    }
    let names = vec!["a"; 20_000];
    let output = daemon.tool("gaggled_controller", &[&["up"][..], &names].concat());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[test]
fn small_limits_degrade_and_do_not_kill() {
    let site = Arc::new(directory());
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/e.ipc\", controlurl: \"ipc://@DIR@/c.ipc\"), programs: {\"a\": (command: \
                \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], backoff: (initial: 0, max: 0))})";
    let local = |name: &str| format!("ipc://{}/{name}.ipc", site.path().display());
    let urls = || Some((local("e"), local("c")));
    let wrapper = ["sh", "-c", "ulimit -f 8; ulimit -n 128; exec \"$0\" \"$@\""];
    let start = DaemonOptions { urls: urls(), wrapper: &wrapper, ..DaemonOptions::default() };
    let mut daemon = Daemon::with(text, site.clone(), &start);
    daemon.wait_up("a", 1);
    let daemon_pid = daemon.daemon_pid();
    for run in 2..60 {
        daemon.kill("a", nix::sys::signal::Signal::SIGKILL);
        daemon.wait_up("a", run);
    }
    assert_eq!(daemon.daemon_pid(), daemon_pid, "it was not killed by a limit");
    let degraded =
        daemon.heard.iter().any(|heard| matches!(heard.event, Event::System(SystemEvent::JournalDegraded { .. })));
    assert!(degraded, "{}", daemon.timeline());
    daemon.end();
    let config = site.path().join("system.ron").display().to_string();
    let few = format!("ulimit -n 32; exec {} -c {config}", binary("gaggled").display());
    let output = Command::new("sh").args(["-c", &few]).output().expect("sh");
    assert_eq!(output.status.code(), Some(100), "{}", said(&output));
    assert!(said(&output).contains("needs at least 64 descriptors, and may have 32"), "{}", said(&output));
}

/// Programs have the limit of descriptors that gaggled was started with, not the one that it has set for itself.
#[test]
fn what_changes_any_program_does_not_reach_programs_of_other_users() {
    if !is_root() {
        return;
    }
    let site = Arc::new(directory());
    let out = site.path().join("out");
    fs::create_dir(&out).expect("a directory");
    for (directory, mode) in [(site.path(), 0o755), (&out, 0o777)] {
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/e.ipc\", controlurl: \"ipc://@DIR@/c.ipc\", env: {\"PYTHONPATH\": \
                \"/srv\"}), programs: {\"other\": (command: \"@PUPPET@\", argv: [\"report\", \"@DIR@/out/other\"], user: \
                \"nobody\"), \"own\": (command: \"@PUPPET@\", argv: [\"report\", \"@DIR@/out/own\"])})";
    let local = |name: &str| format!("ipc://{}/{name}.ipc", site.path().display());
    let variables = [("LD_LIBRARY_PATH", "/nowhere"), ("PERL5LIB", "/nowhere"), ("PYTHONPATH", "/nowhere")];
    let variables = variables.map(|(name, value)| (name, value.to_owned()));
    let wrapper = ["sh", "-c", "ulimit -Sn 512; exec \"$0\" \"$@\""];
    let start = DaemonOptions {
        urls: Some((local("e"), local("c"))),
        variables: &variables,
        wrapper: &wrapper,
        ..DaemonOptions::default()
    };
    let mut daemon = Daemon::with(text, site.clone(), &start);
    daemon.wait_up("other", 1);
    daemon.wait_up("own", 1);
    let report = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    daemon.wait_outside("both reports", || {
        report("other").contains("Env:\tPATH") && report("own").contains("Env:\tPATH")
    });
    for name in ["LD_LIBRARY_PATH", "PERL5LIB"] {
        let line = format!("Env:\t{name}=");
        assert!(!report("other").contains(&line) && report("own").contains(&line), "{name}");
    }
    assert!(report("other").contains("Env:\tPYTHONPATH=/srv"), "what the configuration says is meant");
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid_of("other"))).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(files.split_whitespace().nth(3), Some("512"));
}

/// Test 51: each role, and each refusal is an event.
#[test]
fn users_and_groups_may_do_what_access_says() {
    if !is_root() {
        return;
    }
    let group = |name: &str| nix::unistd::Group::from_name(name).expect("groups").map(|group| group.gid.as_raw());
    let (Some(operators), Some(observers)) = (group("games"), group("users")) else {
        println!("skipped: this machine lacks the groups games and users");
        return;
    };
    let site = open_site();
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/e.ipc\", controlurl: \"ipc://@DIR@/c.ipc\", access: (operate: \
                [\"@games\"], observe: [\"@users\"])), programs: {\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \
                \"1000000\"])})";
    let local = |name: &str| format!("ipc://{}/{name}.ipc", site.path().display());
    let start = DaemonOptions { urls: Some((local("e"), local("c"))), ..DaemonOptions::default() };
    let mut daemon = Daemon::with(text, site.clone(), &start);
    daemon.wait_up("a", 1);
    let controller = binary("gaggled_controller").display().to_string();
    let ask = |gid: u32, word: &[&str]| {
        let (id, gid) = (NOBODY.to_string(), gid.to_string());
        let command = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &gid, "--clear-groups", &controller, "-u", &local("c")])
            .args(word)
            .output()
            .expect("setpriv");
        (command.status.code(), said(&command))
    };
    for (gid, allowed) in [(operators, 2), (observers, 1), (NOBODY, 0)] {
        for (word, role) in [(&["status"][..], 1), (&["restart", "a"], 2), (&["shutdown"], 3)] {
            let (code, said) = ask(gid, word);
            let expected = i32::from(role > allowed);
            assert_eq!(code, Some(expected), "group {gid}, {word:?}: {said}");
            assert!(expected == 0 || said.contains("may not ask for this"), "{said}");
        }
    }
    let refusals = |heard: &[gaggled_core::event::Envelope]| {
        heard.iter().filter(|heard| matches!(heard.event, Event::System(SystemEvent::CommandRefused { .. }))).count()
    };
    daemon.wait("each refusal to be an event", |heard, _| refusals(heard) == 6);
    let config = site.path().join("unknown.ron");
    let unknown = substitute("(gaggled: (access: (operate: [\"@nosuchgroup\"])), programs: {})", site.path());
    fs::write(&config, unknown).expect("a file");
    let output = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&config).output().expect("gaggled");
    assert!(
        said(&output).contains("group \"nosuchgroup\" may use the sockets, and does not exist here"),
        "{}",
        said(&output)
    );
    assert_eq!(output.status.code(), Some(1));
}

/// A directory that another user can enter.
fn open_site() -> Arc<tempfile::TempDir> {
    let site = Arc::new(directory());
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    site
}

/// One user cannot take the connections of others, and starts go on.
#[test]
fn one_user_cannot_take_all_connections() {
    if !is_root() {
        return;
    }
    let site = open_site();
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/e.ipc\", controlurl: \"ipc://@DIR@/c.ipc\", access: (observe: \
                [\"nobody\"])), programs: {\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], log: \
                \"@DIR@/a.log\", backoff: (initial: 0, max: 0))})";
    let local = |name: &str| format!("ipc://{}/{name}.ipc", site.path().display());
    let wrapper = ["sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\""];
    let start = DaemonOptions { urls: Some((local("e"), local("c"))), wrapper: &wrapper, ..DaemonOptions::default() };
    let mut daemon = Daemon::with(text, site.clone(), &start);
    daemon.wait_up("a", 1);
    let daemon_pid = daemon.daemon_pid();
    let flood = format!(
        "import socket, time, sys\nsockets = []\nfor name in ('e', 'c') * 400:\n    s = socket.socket(socket.AF_UNIX)\n    try:\n        \
         s.connect('{0}/' + name + '.ipc')\n        s.sendall(b'\\0SP\\0' + (b'\\0\\x21' if name == 'e' else b'\\0\\x30') + \
         b'\\0\\0')\n        sockets.append(s)\n    except OSError:\n        pass\nprint('there', flush=True)\nsys.stdin.read()\n",
        site.path().display()
    );
    let script = site.path().join("flood.py");
    fs::write(&script, flood).expect("a file");
    let id = NOBODY.to_string();
    let mut attacker = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/python3"])
        .arg(&script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(attacker.stdout.take().expect("a pipe")), &mut line)
        .expect("a line");
    for run in 2..12 {
        daemon.kill("a", nix::sys::signal::Signal::SIGKILL);
        daemon.wait_up("a", run);
    }
    assert_eq!(daemon.daemon_pid(), daemon_pid, "operators are served");
    let failed = daemon.timeline().matches("could not be started").count();
    assert_eq!(failed, 0, "{}", daemon.timeline());
    assert!(daemon.log().contains("uid 65534 has too many connections"), "{}", daemon.log());
    drop(attacker.stdin.take());
    let _ = attacker.wait();
}

/// The connection of a client that does not wait for answers is closed, again and again, and gaggled goes on.
#[test]
fn a_client_that_does_not_wait_for_answers_is_ended() {
    if !is_root() {
        return;
    }
    let site = open_site();
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", access: (observe: \
                [\"nobody\"])), programs: {\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"])})";
    let mut daemon = Daemon::with(text, site.clone(), &DaemonOptions::default());
    daemon.wait_up("a", 1);
    let daemon_pid = daemon.daemon_pid();
    let flood = format!(
        r#"
import socket, struct
body = struct.pack(">I", 0x80000001) + b'{{"v":1,"id":"x","request":"status"}}'
for _ in range(20):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("{}/control.ipc")
        client.settimeout(30)
        client.sendall(b"\0SP\0\0\x30\0\0")
        try:
            client.sendall((b"\x01" + struct.pack(">Q", len(body)) + body) * 1000)
            while client.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
print("ended")
"#,
        site.path().display()
    );
    let id = NOBODY.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/python3", "-c", &flood])
        .output()
        .expect("python3");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ended", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.daemon_pid(), daemon_pid, "{}", daemon.log());
    daemon.end();
}

/// The answer to a command says so if the journal cannot be written.
#[test]
fn a_wish_that_cannot_be_written_is_not_promised() {
    let mut daemon = Daemon::new("\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),");
    daemon.wait_up("a", 1);
    let output = daemon.tool("gaggled_controller", &["restart", "a"]);
    assert!(output.status.success() && !said(&output).contains("Warning"), "{}", said(&output));
    // A file takes the place of the state directory, so that gaggled cannot make it anew.
    let journal = daemon.journal();
    let aside = journal.with_extension("aside");
    fs::write(&aside, "").expect("a file");
    let exchange = || {
        renameat2(AT_FDCWD, &aside, AT_FDCWD, &journal, RenameFlags::RENAME_EXCHANGE).expect("they are there");
    };
    exchange();
    daemon.wait("the journal to fail", |heard, _| {
        heard.iter().any(|heard| matches!(heard.event, Event::System(SystemEvent::JournalDegraded { .. })))
    });
    let output = daemon.tool("gaggled_controller", &["down", "a"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("the journal cannot be written now"), "{}", said(&output));
    exchange();
    daemon.wait("the journal to be written again", |heard, _| {
        heard.iter().any(|heard| matches!(heard.event, Event::System(SystemEvent::JournalRestored { .. })))
    });
    daemon.kill_daemon();
    assert_eq!(daemon.dump()["a"]["operator_down"], true);
}
