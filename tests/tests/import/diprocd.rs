//! The behaviour of diprocd's worker, with its files imported: scenarios D1 to D7, D12 and D13.

use std::{fs, sync::Arc};

use gaggled_core::state::Phase;
use gaggled_tests::{
    harness::{Daemon, binary, exists},
    import_harness::{import, in_directory, lines, must_reload, reload, run, said, with_fixtures},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

fn started(directory: &Arc<TempDir>) -> Daemon {
    let mut daemon = run("diprocd", directory, "worker.json");
    daemon.wait("everything", |_, state| {
        let now = |name: &str| &state.programs[state.graph.names()[name]];
        now("tick.1").is_ready() && now("forker").is_ready() && now("oneshot").outcome.is_some()
    });
    daemon
}

fn pid_in(directory: &Arc<TempDir>, file: &str) -> i32 {
    lines(directory, file).first().and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// D1, D2, D3 and D7.
#[test]
fn d1_processes_run_as_the_worker_ran_them() {
    let directory = with_fixtures("diprocd");
    let mut daemon = started(&directory);
    let tick = daemon.pid_of("tick.1");
    let log_of = directory.clone();
    daemon.wait_outside("both lines", move || lines(&log_of, "tick.log").len() == 2);
    let dir = fs::canonicalize(directory.path()).expect("a path");
    assert_eq!(lines(&directory, "tick.log"), [format!("up {tick} blue in {}", dir.display()), "err".to_owned()]);
    assert_eq!(pid_in(&directory, "tick.pid"), tick);
    assert_eq!(pid_in(&directory, "forker.pid"), daemon.pid_of("forker"));
    assert_eq!(lines(&directory, "oneshot"), ["x"]);
    let oneshot = daemon.dump()["oneshot"].clone();
    assert_eq!((&oneshot["up"], &oneshot["instance"], &oneshot["exit_code"]), (&false.into(), &1.into(), &0.into()));
    // D7: a second gaggled names the one that runs, and touches nothing.
    let config = in_directory(&directory, "system.ron");
    let (code, text) =
        said(&std::process::Command::new(binary("gaggled")).arg("-c").arg(&config).output().expect("gaggled"));
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("already") && text.contains(&daemon.daemon_pid().to_string()), "{text}");
    assert_eq!(daemon.pid_of("tick.1"), tick);
    // D2 and D3.
    daemon.kill("tick.1", Signal::SIGKILL);
    daemon.wait_up("tick.1", 2);
    assert_eq!(pid_in(&directory, "tick.pid"), daemon.pid_of("tick.1"));
    let forker = daemon.pid_of("forker");
    daemon.kill("forker", Signal::SIGKILL);
    daemon.wait("the daemon to be followed again", |_, state| {
        let now = &state.programs[state.graph.names()["forker"]];
        now.instance.0 == 2 && now.is_ready()
    });
    assert_ne!(pid_in(&directory, "forker.pid"), forker);
    assert_eq!(pid_in(&directory, "forker.pid"), daemon.pid_of("forker"));
    daemon.end();
    assert!(!in_directory(&directory, "tick.pid").exists() && !in_directory(&directory, "forker.pid").exists());
    daemon.verify();
}

#[test]
fn d4_a_crash_loop_is_given_up_and_can_be_asked_up() {
    let directory = with_fixtures("diprocd");
    let mut daemon = run("diprocd", &directory, "worker_crashloop.json");
    daemon.wait("the end of it", |_, state| state.programs.values().all(|program| program.start_limit_hit));
    assert_eq!(lines(&directory, "starts").len(), 5);
    let reason = daemon.dump()["crash"]["reason"].as_str().expect("a text").to_owned();
    assert!(reason.contains("start limit reached after 5 starts within 1m"), "{reason}");
    let _ = daemon.tool("gaggled_controller", &["up", "crash", "--no-wait"]);
    daemon.wait("another chance", |_, state| state.programs.values().all(|program| program.instance.0 > 5));
}

#[test]
fn d5_a_changed_list_is_taken_whatever_the_clock_says() {
    let directory = with_fixtures("diprocd");
    let mut daemon = started(&directory);
    let (tick, forker) = (daemon.pid_of("tick.1"), daemon.pid_of("forker"));
    // Twice within the same second; the last one counts.
    for file in ["worker_empty.json", "worker.json", "worker_2.json"] {
        must_reload(&mut daemon, "diprocd", file);
    }
    daemon.wait("what was added", |_, state| {
        let names = state.graph.names();
        let up = |name: &str| names.get(name).is_some_and(|id| state.programs[*id].is_running_and_wanted());
        up("added") && up("tick.1")
    });
    assert!(!exists(tick) || daemon.pid_of("tick.1") != tick);
    let log_of = directory.clone();
    daemon.wait_outside("the new arguments", move || {
        lines(&log_of, "tick.log").iter().any(|line| line.starts_with("up2 "))
    });
    let log_of = directory.clone();
    daemon.wait_outside("the old daemon to go", move || !log_of.path().join("forker.pid").exists());
    assert!(
        !exists(forker) || fs::read_to_string(format!("/proc/{forker}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    );
    daemon.end();
    daemon.verify();
}

#[test]
fn d6_an_empty_list_stops_everything() {
    let directory = with_fixtures("diprocd");
    let mut daemon = started(&directory);
    must_reload(&mut daemon, "diprocd", "worker_empty.json");
    daemon
        .wait("everything to be down", |_, state| state.programs.values().all(|program| program.phase == Phase::Down));
    assert!(daemon.dump().as_object().expect("programs").is_empty());
}

#[test]
fn d12_a_bad_file_is_refused_and_names_process_and_key() {
    let directory = with_fixtures("diprocd");
    let mut daemon = started(&directory);
    let tick = daemon.pid_of("tick.1");
    let table = [
        ("bad_json", "bad_json.json:1:"),
        ("bad_no_run", "process \"x\" has no \"run\""),
        ("bad_duplicate_name", "process \"x\" is there twice"),
        ("bad_daemon_write_pid", "process \"x\" is a daemon and has its pid written"),
    ];
    for (name, why) in table {
        let (code, text) = said(&import("diprocd", &in_directory(&directory, &format!("{name}.json"))));
        assert_eq!((code, text.contains(why)), (1, true), "{name}: {text}");
    }
    // Users and commands are checked by the gaggled that is to run them, not by the importer.
    for (name, why) in
        [("bad_user", "user \"no-such-user-here\", who does not exist"), ("bad_command", "/no/such/command")]
    {
        let file = in_directory(&directory, &format!("{name}.json"));
        let ron = in_directory(&directory, "bad.ron");
        fs::write(&ron, import("diprocd", &file).stdout).expect("a file");
        let (code, text) = said(
            &std::process::Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&ron).output().expect("gaggled"),
        );
        assert_eq!((code, text.contains(why)), (1, true), "{name}: {text}");
        let (code, text) = reload(&daemon, "diprocd", &file);
        assert_eq!((code, text.contains(why)), (1, true), "{name}: {text}");
    }
    assert_eq!(daemon.pid_of("tick.1"), tick);
    daemon.end();
}

/// D13: the start of a command that vanishes after the check fails, and affects no other program.
#[test]
fn d13_a_command_that_is_missing_fails_alone() {
    let directory = with_fixtures("diprocd");
    let command = in_directory(&directory, "vanishes");
    fs::copy("/bin/sleep", &command).expect("a copy");
    let file = in_directory(&directory, "bad_command.json");
    let text = fs::read_to_string(&file).expect("a file").replace("/no/such/command", &command.display().to_string());
    fs::write(&file, text.replace("\"pid_file\": \"x", "\"args\": [\"1221\"], \"pid_file\": \"x")).expect("a file");
    let mut daemon = run("diprocd", &directory, "bad_command.json");
    daemon.wait_up("y", 1);
    fs::remove_file(&command).expect("a file");
    daemon.wait("x to fail", |_, state| {
        matches!(
            state.programs[state.graph.names()["x"]].outcome,
            Some(gaggled_core::process::Outcome::SpawnFailed { errno: 2, .. })
        )
    });
    assert_eq!(daemon.dump()["y"]["up"], true);
}

#[test]
fn the_list_of_one_node_of_a_master_is_imported() {
    let directory = with_fixtures("diprocd");
    let file = in_directory(&directory, "master.json");
    let (code, text) = said(&import("diprocd", &file));
    assert!(code == 0 && text.contains("publish the result with gaggled_clustergate publish"), "{text}");
    assert!(text.contains("All(\"node1\")") && text.contains("All(\"node10\")"), "{text}");
    let of = |node: &str| {
        let output = std::process::Command::new(binary("gaggled"))
            .args(["import", "diprocd", "--node", node])
            .arg(&file)
            .output();
        said(&output.expect("gaggled"))
    };
    let (code, text) = of("node1");
    assert_eq!((code, text.contains("\"p1\"") && !text.contains("\"p10\"")), (0, true), "{text}");
    let (code, text) = of("node2");
    assert!(code == 1 && text.contains("choose one of its nodes with --node: node1, node10"), "{text}");
    assert_eq!(said(&import("diprocd", &in_directory(&directory, "client.json"))).0, 1);
}
