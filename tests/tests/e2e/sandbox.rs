//! The users, rights and limits of programs; a program for which they cannot be set does not run.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use gaggled_core::{
    event::{Event, ProgramEvent},
    process::SpawnStage,
};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, directory};
use nix::sys::signal::Signal;

/// Whether the tests run as root, as these need.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: only root can start programs as others");
    }
    root
}

/// A program that prints its own status, limits and environment, and keeps running.
fn teller(name: &str, fields: &str) -> String {
    let tell = "cat /proc/self/status /proc/self/limits; echo cwd: $(pwd); echo nice: $(nice); echo umask: $(umask); \
                echo oom: $(cat /proc/self/oom_score_adj); echo home: $HOME $USER $LOGNAME; echo end; exec sleep 1000000";
    format!("\"{name}\": (shell: \"{tell}\", log: \"@DIR@/{name}.log\", {fields}),")
}

/// The output of a teller: the first word of each line, and the rest.
fn told(daemon: &mut Daemon, name: &str) -> BTreeMap<String, String> {
    daemon.wait_up(name, 1);
    let path = daemon.directory.path().join(format!("{name}.log"));
    let read = move || fs::read_to_string(&path).unwrap_or_default();
    daemon.wait_outside("everything to be told", || read().ends_with("end\n"));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    read().lines().filter_map(|line| line.split_once(':').map(|(key, rest)| (key.to_owned(), words(rest)))).collect()
}

fn limit(daemon: &Daemon, name: &str, what: &str) -> String {
    let told = fs::read_to_string(daemon.directory.path().join(format!("{name}.log"))).expect("a report");
    let line = told.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("no {what}: {told}"));
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn failed_at(daemon: &mut Daemon, name: &str) -> (SpawnStage, i32) {
    daemon.wait(&format!("{name} to fail"), |heard, state| {
        let id = state.graph.names()[name];
        heard
            .iter()
            .any(|heard| matches!(&heard.event, Event::Program(of, ProgramEvent::SpawnFailed { .. }) if *of == id))
    });
    let id = daemon.state().graph.names()[name];
    let found = daemon.heard.iter().find_map(|heard| match heard.event {
        Event::Program(of, ProgramEvent::SpawnFailed { stage, errno, .. }) if of == id => Some((stage, errno)),
        _ => None,
    });
    found.expect("it failed")
}

/// Test 10.
#[test]
fn what_is_set_is_set_and_what_is_not_is_as_it_was() {
    let nice = if is_root() { -5 } else { 5 };
    let mut daemon = Daemon::new(&format!(
        "{} {}",
        teller("plain", ""),
        teller(
            "set",
            &format!(
                "umask: \"037\", wd: \"/usr\", nice: {nice}, oom_score_adj: 17, rlimits: {{\"nofile\": \"100:200\", \"core\": 0, \"cpu\": \"unlimited\"}}"
            )
        )
    ));
    let (plain, set) = (told(&mut daemon, "plain"), told(&mut daemon, "set"));
    assert_eq!((set["umask"].as_str(), set["cwd"].as_str()), ("0037", "/usr"));
    assert_eq!((set["nice"].clone(), set["oom"].as_str()), (nice.to_string(), "17"));
    assert_eq!(limit(&daemon, "set", "Max open files"), "100 200");
    assert_eq!(limit(&daemon, "set", "Max core file size"), "0 0");
    assert_eq!(limit(&daemon, "set", "Max cpu time"), "unlimited unlimited");
    // The `oom_score_adj` that gaggled sets for itself does not reach its programs.
    let own_score =
        |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score").trim().to_owned();
    let may =
        Command::new("/bin/sh").args(["-c", "echo -900 2>&1 > /proc/self/oom_score_adj"]).output().expect("a shell");
    let spared = if own_score("self") == "0" && may.status.success() { "-900".to_owned() } else { own_score("self") };
    assert_eq!(own_score(&daemon.daemon_pid().to_string()), spared);
    assert_eq!(plain["oom"], own_score("self"));
    let own = Command::new("/bin/sh").args(["-c", "umask; nice; ulimit -n; ulimit -Hn"]).output().expect("a shell");
    let own = String::from_utf8_lossy(&own.stdout);
    let own: Vec<&str> = own.lines().collect();
    assert_eq!((plain["umask"].as_str(), plain["nice"].as_str()), (own[0], own[1]));
    assert_eq!(limit(&daemon, "plain", "Max open files"), format!("{} {}", own[2], own[3]));
}

/// Test 11.
#[test]
fn a_program_runs_as_its_user_and_cannot_go_back() {
    if !is_root() {
        return;
    }
    let mut daemon = Daemon::new(&format!(
        "{} {} {} {}",
        teller("nobody", "user: \"nobody\", no_new_privs: true"),
        teller("numbers", "user: \"4711:4712\", supplementary_groups: [\"4713\", \"daemon\"]"),
        teller("binder", "user: \"nobody\", capabilities: [\"net_bind_service\"]"),
        teller("weak", "capabilities: [\"kill\"]"),
    ));
    let passwd = fs::read_to_string("/etc/passwd").expect("users");
    let nobody: Vec<&str> =
        passwd.lines().find(|line| line.starts_with("nobody:")).expect("nobody").split(':').collect();
    let four = |number: &str| [number; 4].join(" ");
    let found = told(&mut daemon, "nobody");
    assert_eq!((found["Uid"].clone(), found["Gid"].clone()), (four(nobody[2]), four(nobody[3])));
    assert_eq!(found["Groups"], nobody[3], "none of root's are left");
    for field in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(found[field], "0".repeat(16), "{field}");
    }
    assert_eq!(found["NoNewPrivs"], "1");
    assert_eq!(found["home"], format!("{} nobody nobody", nobody[5]));
    let found = told(&mut daemon, "numbers");
    assert_eq!((found["Uid"].clone(), found["Gid"].clone()), (four("4711"), four("4712")));
    assert_eq!(found["Groups"], "1 4713");
    let found = told(&mut daemon, "binder");
    for field in ["CapPrm", "CapEff", "CapAmb", "CapBnd"] {
        assert_eq!(found[field], "0000000000000400", "{field}: exactly CAP_NET_BIND_SERVICE");
    }
    assert_eq!(found["Uid"], four(nobody[2]));
    let found = told(&mut daemon, "weak");
    assert_eq!((found["Uid"].clone(), found["CapEff"].clone()), (four("0"), "0000000000000020".to_owned()));
    daemon.verify();
}

/// Test 11, the other half: whichever step fails, the program does not run, least of all as root.
#[test]
fn nothing_runs_with_more_than_it_was_given() {
    if !is_root() {
        return;
    }
    // In a user namespace with one user the kernel refuses to change to another.
    let directory = std::sync::Arc::new(directory());
    let dir = directory.path().display();
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\"), programs: {{{} {} {}}})",
        teller("other", "user: \"4711:4711\", mode: Once"),
        teller("outside", "chroot: \"@DIR@/nowhere\", mode: Once"),
        teller("free", "mode: Once"),
    );
    let wrapper = ["unshare", "--user", "--map-root-user"];
    let mut daemon =
        Daemon::with(&text, directory.clone(), &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait_up("free", 1);
    assert_eq!(failed_at(&mut daemon, "other").0, SpawnStage::User);
    // The shell is missing in that root as well, but the stage `chroot` comes first.
    assert_eq!(failed_at(&mut daemon, "outside"), (SpawnStage::Chroot, 2));
    for name in ["other", "outside"] {
        let told = fs::read_to_string(directory.path().join(format!("{name}.log"))).unwrap_or_default();
        assert_eq!(told, "", "{name} has run");
    }
    daemon.end();
}

#[test]
fn what_cannot_be_had_here_is_refused_before_anything_starts() {
    let directory = directory();
    let file = directory.path().join("system.ron");
    let table = [
        ("user: \"no-such-user\"", "\"a\" is to run as user \"no-such-user\", who does not exist here", true),
        ("user: \"nobody:no-such-group\"", "group \"no-such-group\", which does not exist", true),
        ("user: \"4711\"", "user 4711, of whom no group is known", true),
        ("supplementary_groups: [\"no-such-group\"]", "group \"no-such-group\"", true),
        ("capabilities: [\"fly\"]", "capability \"fly\", which is not known", true),
        ("user: \"nobody\"", "is to run with another user, which gaggled may not do", false),
        ("supplementary_groups: [\"daemon\"]", "is to run with its groups, which gaggled may not do", false),
        ("capabilities: [\"kill\"]", "capability \"kill\", which gaggled itself does not have", false),
        ("nice: -1", "niceness -1, which is less than gaggled may give", false),
        ("oom_score_adj: -1", "score -1, which is less than gaggled may give", false),
        ("chroot: \"/\"", "asks for another root, which gaggled may not change", false),
    ];
    for (field, expected, as_ourselves) in table {
        fs::write(&file, format!("(programs: {{\"a\": (command: \"/bin/true\", {field})}})")).expect("a file");
        let mut command = Command::new(binary("gaggled"));
        if !as_ourselves && nix::unistd::geteuid().is_root() {
            // The user `nobody` must be able to read the file and to execute gaggled.
            open_to_all(directory.path());
            let copy = directory.path().join("gaggled");
            if !copy.exists() {
                fs::copy(binary("gaggled"), &copy).expect("a copy");
            }
            command = Command::new("setpriv");
            command.args(["--reuid", "4711", "--regid", "4711", "--clear-groups", "--inh-caps=-all"]).arg(copy);
        }
        let output = command.args(["-t", "-c"]).arg(&file).output().expect("gaggled");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{field}: {said}");
        assert!(said.contains(expected), "{field}: {said}");
        assert!(said.contains("system.ron:1:"), "{field}: {said}");
    }
}

fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("rights");
}

#[test]
fn a_pid_file_is_there_while_the_program_runs() {
    let mut daemon = Daemon::new(
        "\"a\": (shell: \"cat @DIR@/a.pid > @DIR@/seen; exec sleep 1000000\", pid_file: Write(\"@DIR@/a.pid\")), \
         \"b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], wd: \"@DIR@\", pid_file: Write(\"b.pid\")), \
         \"c\": (command: \"/bin/true\", mode: Once, pid_file: Write(\"@DIR@/no/c.pid\")),",
    );
    daemon.wait_up("a", 1);
    daemon.wait_up("b", 1);
    let path = daemon.directory.path().to_owned();
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    let seen = || !read("seen").is_empty();
    daemon.wait_outside("the program to look", seen);
    assert_eq!(read("seen"), format!("{}\n", daemon.pid_of("a")), "it finds itself there");
    assert_eq!(read("b.pid"), format!("{}\n", daemon.pid_of("b")));
    assert_eq!(failed_at(&mut daemon, "c"), (SpawnStage::PidFile, 2));
    let before = daemon.pid_of("a");
    daemon.kill("a", Signal::SIGKILL);
    daemon.wait_up("a", 2);
    assert_ne!(daemon.pid_of("a"), before);
    assert_eq!(read("a.pid"), format!("{}\n", daemon.pid_of("a")));
    daemon.end();
    assert!(!path.join("a.pid").exists() && !path.join("b.pid").exists(), "they go with the programs");
}
