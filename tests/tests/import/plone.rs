//! What plone.recipe.cluster did, its sections imported: scenarios P1 to P10. Its control script is `gaggled_controller`:
//! start, stop and restart are `tell cluster start`, `tell cluster stop` and `restart cluster`.

use std::{fs, sync::Arc};

use gaggled_core::event::{Event, ProgramEvent};
use gaggled_tests::{
    harness::{Daemon, binary, exists},
    import_harness::{import, in_directory, lines, run, said, tell, with_fixtures},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

fn started(directory: &Arc<TempDir>) -> Daemon {
    let mut daemon = run("plone", directory, "basic.cfg");
    let (code, text) = tell(&daemon, "cluster", "start");
    assert_eq!(code, 0, "{text}");
    daemon.wait("the daemon", |_, state| state.programs[state.graph.names()["cluster.start.3"]].is_ready());
    daemon
}

/// The lines that the commands have written. gaggled's own log goes to the same file.
fn noted(directory: &Arc<TempDir>) -> Vec<String> {
    let words = ["db ", "worker up", "forker left", "stubborn up", "fail ran", "never ", "all "];
    lines(directory, "log").into_iter().filter(|line| words.iter().any(|word| line.starts_with(word))).collect()
}

fn worker(directory: &Arc<TempDir>) -> Vec<String> {
    noted(directory).into_iter().filter(|line| line.starts_with("worker up")).collect()
}

fn is_alive(pid: i32) -> bool {
    exists(pid) && !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// P1, P2, P3 and P4.
#[test]
fn p1_a_cluster_is_started_watched_and_stopped() {
    let directory = with_fixtures("plone");
    let mut daemon = started(&directory);
    let log_of = directory.clone();
    daemon.wait_outside("the worker's line", move || noted(&log_of).len() == 3);
    let log = noted(&directory);
    let place =
        |what: &str| log.iter().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {log:?}"));
    assert!(place("db start") < place("forker left"), "{log:?}");
    let (worker_pid, forker_pid) = (daemon.pid_of("cluster.start.2"), daemon.pid_of("cluster.start.3"));
    assert_eq!(log[place("worker up")], format!("worker up {worker_pid} args="));
    assert_eq!(log[place("forker left")], format!("forker left {forker_pid}"));
    // P2: a second gaggled is refused.
    let config = in_directory(&directory, "system.ron");
    let again = std::process::Command::new(binary("gaggled")).arg("-c").arg(&config).output().expect("gaggled");
    let (code, text) = said(&again);
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("already"), "{text}");
    assert_eq!(tell(&daemon, "cluster", "start").0, 0);
    assert_eq!(noted(&directory), log, "nothing was run again");
    // P4: a process that dies is started again.
    daemon.kill("cluster.start.2", Signal::SIGKILL);
    daemon.wait_up("cluster.start.2", 2);
    let second = daemon.pid_of("cluster.start.2");
    let log_of = directory.clone();
    daemon.wait_outside("the second worker", move || worker(&log_of).len() == 2);
    assert_eq!(daemon.dump()["cluster.start.2"]["restarts"], 1);
    // P3: the children first, then what stops the rest.
    assert_eq!(tell(&daemon, "cluster", "stop").0, 0);
    assert!(!is_alive(second) && !is_alive(forker_pid));
    assert_eq!(noted(&directory).last().map(String::as_str), Some("db stop"));
    assert!(!in_directory(&directory, "forker.pid").exists());
    let up = daemon.dump().as_object().expect("programs").values().filter(|state| state["up"] == true).count();
    assert_eq!(up, 0);
    daemon.end();
    daemon.verify();
}

#[test]
fn p5_a_restart_leaves_exactly_one_worker() {
    let directory = with_fixtures("plone");
    let mut daemon = started(&directory);
    let before = daemon.pid_of("cluster.start.2");
    let (code, text) = said(&daemon.tool("gaggled_controller", &["restart", "cluster"]));
    assert_eq!(code, 0, "{text}");
    let log_of = directory.clone();
    daemon.wait_outside("the new worker", move || worker(&log_of).len() == 2);
    assert!(noted(&directory).contains(&"db restart".to_owned()));
    let after = daemon.pid_of("cluster.start.2");
    assert!(after != before && !is_alive(before) && is_alive(after));
    daemon.end();
}

#[test]
fn p6_a_start_that_fails_is_undone_and_says_why() {
    let directory = with_fixtures("plone");
    let mut daemon = run("plone", &directory, "failing.cfg");
    for round in 1..=2 {
        let (code, text) = tell(&daemon, "cluster", "start");
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("cluster.start.2") && text.contains("exited with code 3"), "{text}");
        daemon.wait("everything to be down again", |_, state| state.running.is_empty());
        let log = noted(&directory);
        assert!(!log.iter().any(|line| line == "never start"), "{log:?}");
        assert_eq!(log.iter().filter(|line| *line == "fail ran").count(), round, "it can be tried again");
    }
    assert!(daemon.log().contains("why it failed"), "{}", daemon.log());
}

#[test]
fn p7_a_background_command_has_arguments() {
    let directory = with_fixtures("plone");
    let mut daemon = run("plone", &directory, "background_args.cfg");
    assert_eq!(tell(&daemon, "cluster", "start").0, 0);
    let log_of = directory.clone();
    daemon.wait_outside("the worker", move || !worker(&log_of).is_empty());
    let pid = daemon.pid_of("cluster.start.1");
    assert_eq!(worker(&directory), [format!("worker up {pid} args=--port 8080 two words")]);
}

#[test]
fn p8_what_ignores_a_term_is_killed() {
    let directory = with_fixtures("plone");
    let mut daemon = run("plone", &directory, "stubborn.cfg");
    assert_eq!(tell(&daemon, "cluster", "start").0, 0);
    let log_of = directory.clone();
    daemon.wait_outside("the stubborn one", move || noted(&log_of).iter().any(|line| line.starts_with("stubborn up")));
    assert_eq!(tell(&daemon, "cluster", "stop").0, 0);
    daemon.wait_down("cluster.start.1", 1);
    let at = |is: fn(&ProgramEvent) -> bool| {
        let found = daemon.heard.iter().find(|heard| matches!(&heard.event, Event::Program(_, event) if is(event)));
        found.unwrap_or_else(|| panic!("{}", daemon.timeline())).monotonic.as_millis()
    };
    let told = at(|event| matches!(event, ProgramEvent::Stopping { .. }));
    let killed = at(|event| matches!(event, ProgramEvent::KillRequested { .. }));
    // The killwait is 2 s here.
    assert!((2000..3000).contains(&(killed - told)), "{}", daemon.timeline());
}

/// A gaggled that was killed finds the running programs, and starts no second copy of them.
#[test]
fn p9_what_survives_is_found_again() {
    let directory = with_fixtures("plone");
    let mut daemon = started(&directory);
    let before = [daemon.pid_of("cluster.start.2"), daemon.pid_of("cluster.start.3")];
    let log = noted(&directory);
    daemon.kill_all();
    let mut again = daemon.again();
    again.wait_up("cluster.start.2", 1);
    assert_eq!([again.pid_of("cluster.start.2"), again.pid_of("cluster.start.3")], before);
    assert_eq!(noted(&directory), log);
    again.end();
}

#[test]
fn p10_a_bad_section_is_refused_with_its_place() {
    let directory = with_fixtures("plone");
    let table = [
        ("bad_no_stop", 3, "section [cluster] has no option \"stop\""),
        (
            "bad_pid_word",
            8,
            "option stop of section [cluster]: pid:not-a-number-and-not-an-absolute-path is no absolute path",
        ),
        ("bad_unknown_ref", 6, "section [nosuch] has no option \"option\""),
    ];
    for (name, line, why) in table {
        let (code, text) = said(&import("plone", &in_directory(&directory, &format!("{name}.cfg"))));
        assert_eq!(code, 1, "{name}: {text}");
        assert!(text.contains(&format!("{name}.cfg:{line}: ")) && text.contains(why), "{name}: {text}");
    }
}
