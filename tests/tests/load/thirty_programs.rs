//! A system of thirty real programs of different kinds: it comes up in order, survives the death of each, and is changed
//! without touching what has not changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    event::{Event, ProgramEvent},
    graph::Mode,
    state::State,
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, directory, free_port},
    import_harness::said,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The system, with placeholders for the ports and users.
const SYSTEM: &str = r#"(
    gaggled: (
        eventurl: "ipc://@DIR@/events.ipc", controlurl: "ipc://@DIR@/control.ipc", killwait: "5s", path: "/usr/sbin:/sbin",
        // What is killed on purpose comes back at once.
        backoff: (initial: 50, max: 500),
    ),
    programs: {
        // A database under its own user, which answers when it is ready.
        "postgresql": (command: "@BIN@/postgres", argv: ["-D", "@DIR@/db/data", "-p", "@DB@", "-h", "127.0.0.1", "-k", "@DIR@/db"],
            @POSTGRES@ ready: Command("@BIN@/pg_isready -q -h 127.0.0.1 -p @DB@"), log: "@DIR@/postgresql.log"),
        // A migration before the application.
        "migrate": (command: "psql", argv: ["-q", "-h", "127.0.0.1", "-p", "@DB@", "-U", "@USER@", "postgres", "-c", "CREATE TABLE IF NOT EXISTS visits (count bigint)"],
            mode: Once, depends: {"postgresql": ()}),
        // A service that says when it is ready, and one that makes a daemon of itself.
        "redis": (command: "redis-server", argv: ["--port", "@CACHE@", "--bind", "127.0.0.1", "--save", "", "--supervised", "systemd", "--dir", "@DIR@/open"],
            @REDIS@ ready: Notify, log: "@DIR@/redis.log"),
        "redis-daemon": (command: "redis-server", argv: ["--port", "@CACHE2@", "--bind", "127.0.0.1", "--save", "", "--daemonize", "yes", "--pidfile", "@DIR@/open/redis.pid", "--dir", "@DIR@/open", "--logfile", "@DIR@/open/redis.log"],
            @REDIS@ pid_file: Read("@DIR@/open/redis.pid")),
        "app": (command: "/usr/bin/python3", argv: ["-u", "@SITE@/app.py", "@APP@", "@DB@", "@USER@", "@CACHE@"],
            ready: Http("http://127.0.0.1:@APP@/"), health: (probe: Http("http://127.0.0.1:@APP@/"), interval: "1s", timeout: "5s"),
            depends: {"postgresql": (propagate: true), "migrate": (condition: Completed), "redis": ()}, log: "@DIR@/app.log"),
        // It writes over its own environment when it makes a daemon of itself.
        "nginx": (command: "nginx", argv: ["-c", "@DIR@/nginx.conf", "-p", "@DIR@/web", "-e", "@DIR@/web/error.log"], pid_file: Read("@DIR@/web/nginx.pid"),
            health: (probe: Tcp("127.0.0.1:@WEB@"), interval: "1s"), depends: {"app": ()}),
        "static": (command: "/usr/bin/python3", argv: ["-u", "-m", "http.server", "--bind", "127.0.0.1", "@STATIC@"], wd: "@DIR@/open",
            @NOBODY@ ready: LogLine("Serving HTTP"), log: "@DIR@/static.log"),
        "s6": (shell: "sleep 0.1; echo >&3; exec sleep 100000", @DAEMON@ ready: Fd(3)),
        "dog": (command: "@PUPPET@", argv: ["notify", "100", "READY=1"], ready: Notify),
        "hourly": (shell: "date >> @DIR@/hourly", mode: Once, depends: {"app": ()}),
        "noted": (command: "sleep", argv: ["100000"], pid_file: Write("@DIR@/noted.pid")),
        "fit": (group: "disk", mode: Test, shell: "test -d @DIR@"),
        "mount": (group: "disk", mode: Wait, shell: "touch @DIR@/mounted", stop_command: "rm @DIR@/mounted"),
        "disk-user": (group: "disk", shell: "test -e @DIR@/mounted && exec sleep 100000"),
        @WORKERS@
    },
)"#;

/// Sixteen workers in four chains, of three users, some of which follow their dependencies down.
fn workers(root: bool) -> String {
    let worker = |i: usize| {
        let user = ["user: \"nobody\",", "user: \"daemon\",", "user: \"www-data\",", ""][i % 4];
        let user = if root { user } else { "" };
        let on = if i < 4 { "redis".to_owned() } else { format!("worker-{}", i - 4) };
        let depends = format!("depends: {{\"{on}\": (propagate: {})}}", i.is_multiple_of(3));
        format!(
            "\"worker-{i}\": (command: \"sleep\", argv: [\"100000\"], env: {{\"NUMBER\": \"{i}\"}}, {user} {depends}),\n"
        )
    };
    (0..16).map(worker).collect()
}

fn prepare(directory: &Path) -> String {
    let root = nix::unistd::geteuid().is_root();
    let ports: Vec<u16> = (0..7).map(|_| free_port()).collect();
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/site");
    let words = [ports[0], ports[1], ports[2], ports[3], ports[4]].map(|port| port.to_string());
    let prepared = Command::new(site.join("prepare")).arg(directory).args(words).output().expect("sh");
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    // For programs of other users.
    let open = directory.join("open");
    fs::create_dir(&open).expect("a directory");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("rights");
    let conf = directory.join("nginx.conf");
    let text = fs::read_to_string(&conf).expect("a configuration");
    fs::write(&conf, text.replace("daemon off;", "").replace("error_log stderr;", "")).expect("a configuration");
    let mut bins: Vec<_> =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL").flatten().map(|entry| entry.path()).collect();
    bins.sort();
    let bin = bins.pop().expect("a version").join("bin").display().to_string();
    let user = |name: &str| if root { format!("user: \"{name}\",") } else { String::new() };
    let own =
        nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map_or("root".into(), |user| user.name);
    [
        ("@WORKERS@", workers(root)),
        ("@BIN@", bin),
        ("@SITE@", site.display().to_string()),
        ("@USER@", if root { "postgres".to_owned() } else { own }),
        ("@POSTGRES@", user("postgres")),
        ("@REDIS@", user("redis")),
        ("@NOBODY@", user("nobody")),
        ("@DAEMON@", user("daemon")),
        ("@DB@", ports[0].to_string()),
        ("@CACHE@", ports[1].to_string()),
        ("@APP@", ports[2].to_string()),
        ("@WEB@", ports[3].to_string()),
        ("@CACHE2@", ports[5].to_string()),
        ("@STATIC@", ports[6].to_string()),
    ]
    .iter()
    .fold(SYSTEM.to_owned(), |text, (word, value)| text.replace(word, value))
}

/// Whether all programs are ready, or completed if they run once.
fn is_well(state: &State) -> bool {
    state.graph.programs.iter().all(|(id, policy)| match policy.mode {
        Mode::Respawn => state.programs[id].is_ready(),
        Mode::Once | Mode::Wait | Mode::Test => state.programs[id].is_completed(),
    })
}

fn instances(state: &State) -> BTreeMap<String, InstanceId> {
    state.graph.programs.iter().map(|(id, policy)| (policy.name.to_string(), state.programs[id].instance)).collect()
}

/// A program, and all programs that follow it down.
fn followers(state: &State, id: ProgramId) -> BTreeSet<String> {
    let mut found = BTreeSet::from([id]);
    let mut look = vec![id];
    while let Some(on) = look.pop() {
        for dependency in
            state.graph.dependencies_on(on).iter().map(|dependency| &state.graph.dependencies[*dependency])
        {
            if dependency.propagate && found.insert(dependency.dependent) {
                look.push(dependency.dependent);
            }
        }
    }
    found.into_iter().map(|id| state.graph.programs[id].name.to_string()).collect()
}

fn wait_well(daemon: &mut Daemon, when: &str) {
    daemon.wait(&format!("everything to be well {when}"), |_, state| is_well(state));
}

fn started(directory: &Arc<TempDir>) -> Daemon {
    let text = prepare(directory.path());
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    wait_well(&mut daemon, "at first");
    assert_eq!(daemon.state().graph.programs.len(), 30);
    daemon
}

#[test]
fn thirty_programs_of_every_kind_come_up_survive_and_are_changed() {
    let directory = Arc::new(directory());
    let mut daemon = started(&directory);
    // In order: the journal's audit looks at every start and what it waited for.
    daemon.verify();
    let seq = |daemon: &Daemon, name: &str, is: fn(&ProgramEvent) -> bool| {
        let id = daemon.state().graph.names()[name];
        let found = daemon
            .heard
            .iter()
            .find(|heard| matches!(&heard.event, Event::Program(of, event) if *of == id && is(event)));
        found.unwrap_or_else(|| panic!("nothing of {name}")).seq
    };
    let starting = |event: &ProgramEvent| matches!(event, ProgramEvent::Starting { .. });
    assert!(
        seq(&daemon, "postgresql", |event| matches!(event, ProgramEvent::Ready { .. }))
            < seq(&daemon, "migrate", starting)
    );
    assert!(
        seq(&daemon, "migrate", |event| matches!(event, ProgramEvent::Exited { .. })) < seq(&daemon, "app", starting)
    );
    assert!(seq(&daemon, "app", |event| matches!(event, ProgramEvent::Ready { .. })) < seq(&daemon, "nginx", starting));
    users_are_right(&daemon);

    // Each is killed in turn; it comes back, with the programs that follow it, and no other is touched.
    let names: Vec<String> = daemon
        .state()
        .graph
        .programs
        .values()
        .filter(|policy| policy.mode == Mode::Respawn)
        .map(|policy| policy.name.to_string())
        .collect();
    for name in &names {
        let before = instances(daemon.state());
        let id = daemon.state().graph.names()[name.as_str()];
        daemon.kill(name, Signal::SIGKILL);
        daemon.wait(&format!("{name} to come back"), |_, state| {
            state.programs[id].instance > before[name.as_str()] && is_well(state)
        });
        let expected = followers(daemon.state(), id);
        let after = instances(daemon.state());
        let noticed: BTreeSet<String> =
            after.iter().filter(|(name, now)| before[*name] != **now).map(|(name, _)| name.clone()).collect();
        assert_eq!(noticed, expected, "{name} was killed\n{}", daemon.timeline());
    }

    // A changed file: one worker is different, one is new, and no other program is touched.
    let before = daemon.dump();
    let file = directory.path().join("system.ron");
    let text = fs::read_to_string(&file).expect("a configuration");
    let changed = text.replace("\"NUMBER\": \"15\"", "\"NUMBER\": \"fifteen\"");
    assert_ne!(changed, text);
    let at = changed.find("\"programs\"").or_else(|| changed.find("programs:")).expect("programs");
    let at = at + changed[at..].find('{').expect("a brace") + 1;
    let changed = format!("{}\n\"added\": (command: \"sleep\", argv: [\"100000\"]),{}", &changed[..at], &changed[at..]);
    fs::write(&file, changed).expect("a configuration");
    let plan = said(&daemon.tool("gaggled_controller", &["plan"])).1;
    assert!(
        plan.contains("restart") && plan.contains("worker-15") && plan.contains("29 programs stay as they are"),
        "{plan}"
    );
    let daemon_pid = daemon.daemon_pid();
    assert_eq!(said(&daemon.tool("gaggled_controller", &["reload"])).0, 0);
    daemon.wait_for_another(daemon_pid);
    daemon.wait_up("added", 1);
    let fifteen = before["worker-15"]["instance"].as_u64().expect("a number");
    daemon.wait_up("worker-15", fifteen + 1);
    let after = daemon.dump();
    for (name, program) in before.as_object().expect("programs").iter().filter(|(name, _)| *name != "worker-15") {
        assert_eq!((&after[name]["pid"], &after[name]["instance"]), (&program["pid"], &program["instance"]), "{name}");
    }
    assert_eq!(gaggled_tests::harness::code(daemon.end()), 0);
    assert!(!directory.path().join("mounted").exists() && !directory.path().join("noted.pid").exists());
    daemon.verify();
}

fn users_are_right(daemon: &Daemon) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can start programs as others");
        return;
    }
    for (name, user) in [
        ("postgresql", "postgres"),
        ("redis", "redis"),
        ("redis-daemon", "redis"),
        ("static", "nobody"),
        ("worker-1", "daemon"),
    ] {
        let uid = nix::unistd::User::from_name(user).expect("users").expect("a user").uid;
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid_of(name))).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a line");
        let uids: Vec<&str> = line.split_whitespace().collect();
        assert!(uids.iter().all(|found| *found == uid.to_string()), "{name}: {line}");
    }
}
