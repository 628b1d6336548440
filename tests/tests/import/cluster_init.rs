//! The behaviour of `Cluster::Init`, with its files imported: scenarios C1 to C13.

use std::{fs, sync::Arc};

use gaggled_core::event::{Event, ProgramEvent};
use gaggled_tests::{
    harness::{Daemon, binary},
    import_harness::{import, in_directory, lines, must_reload, run, said, tell, with_fixtures},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

fn running(directory: &Arc<TempDir>, file: &str) -> Daemon {
    run("cltab", directory, file)
}

fn group(daemon: &Daemon, name: &str) -> String {
    let status =
        daemon.must(gaggled_core::protocol::Action::Dump { programs: Vec::new(), from: 0, limit: None, at: None });
    let groups = status["groups"].as_array().expect("groups");
    let group = groups.iter().find(|group| group["group"] == name).unwrap_or_else(|| panic!("no group {name}"));
    group["state"].as_str().expect("a word").to_owned()
}

fn started_at(daemon: &Daemon, program: &str) -> u64 {
    let id = daemon.state().graph.names()[program];
    let at = daemon.heard.iter().find_map(|heard| match &heard.event {
        Event::Program(of, ProgramEvent::Started { .. }) if *of == id => Some(heard.monotonic.as_millis()),
        _ => None,
    });
    at.unwrap_or_else(|| panic!("{program} was never started"))
}

#[test]
fn c1_nothing_runs_until_it_is_told() {
    let directory = with_fixtures("cluster-init");
    let daemon = running(&directory, "modes.cltab");
    assert_eq!((group(&daemon, "g"), group(&daemon, "other")), ("stopped".into(), "stopped".into()));
    assert!(lines(&directory, "out").is_empty());
}

#[test]
fn c2_modes_hold_back_what_comes_after_them() {
    let directory = with_fixtures("cluster-init");
    let mut daemon = running(&directory, "modes.cltab");
    let (code, text) = tell(&daemon, "g", "1");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("w2") && text.contains("exited with code 7"), "{text}");
    daemon.wait_up("r1", 1);
    daemon.wait_down("o1", 1);
    let out = lines(&directory, "out");
    assert_eq!(out[0], "w1", "{out:?}");
    assert!(started_at(&daemon, "o1") >= started_at(&daemon, "w1") + 1000, "o1 waits for w1");
    assert_eq!(out.iter().filter(|line| *line == "o1").count(), 1);
    assert_eq!(lines(&directory, "out").iter().filter(|line| *line == "o1-end").count(), 1);
    assert_eq!((group(&daemon, "g"), group(&daemon, "other")), ("failed".into(), "stopped".into()));
    daemon.end();
    daemon.verify();
}

/// C3 and C4.
#[test]
fn c3_what_runs_at_both_levels_is_not_touched() {
    let directory = with_fixtures("cluster-init");
    let file = in_directory(&directory, "modes.cltab");
    fs::write(&file, fs::read_to_string(&file).expect("a file").replace("exit 7", "exit 0")).expect("a file");
    let mut daemon = running(&directory, "modes.cltab");
    assert_eq!(tell(&daemon, "g", "1").0, 0);
    let pid = daemon.pid_of("r1");
    assert_eq!(tell(&daemon, "g", "2").0, 0);
    assert_eq!(daemon.pid_of("r1"), pid);
    let count = |line: &str| lines(&directory, "out").iter().filter(|other| *other == line).count();
    assert_eq!((count("w3"), count("w1")), (1, 1));
    assert_eq!(tell(&daemon, "g", "1").0, 0);
    assert_eq!((daemon.pid_of("r1"), count("w1")), (pid, 2));
    // C4: the same level again changes nothing.
    daemon.wait_down("o1", 2);
    let before = lines(&directory, "out");
    assert_eq!(tell(&daemon, "g", "1").0, 0);
    assert_eq!((daemon.pid_of("r1"), lines(&directory, "out")), (pid, before));
    assert_eq!(group(&daemon, "g"), "up");
    daemon.end();
    daemon.verify();
}

#[test]
fn c5_levels_are_numbers_words_and_lists_of_words() {
    let directory = with_fixtures("cluster-init");
    let daemon = running(&directory, "level_names.cltab");
    for (level, expected) in [("3", "a"), ("night", "ab"), ("5", "aba"), ("solo", "abac"), ("whole", "abacd")] {
        assert_eq!(tell(&daemon, "n", level).0, 0, "{level}");
        assert_eq!(lines(&directory, "out").concat(), expected, "{level}");
    }
    let (code, text) = tell(&daemon, "n", "w");
    assert_eq!((code, text.contains("no level \"w\"")), (2, true), "{text}");
    assert_eq!(lines(&directory, "out").concat(), "abacd");
    let notes =
        String::from_utf8_lossy(&import("cltab", &in_directory(&directory, "level_names.cltab")).stderr).into_owned();
    assert!(notes.contains("level_names.cltab:9: \"whole\" is one level here"), "{notes}");
}

#[test]
fn c6_tests_decide_what_comes_after_them() {
    let directory = with_fixtures("cluster-init");
    let daemon = running(&directory, "tests.cltab");
    let codes = ["ok", "bad", "mix"].map(|name| tell(&daemon, name, "go").0);
    assert_eq!(codes, [0, 1, 0]);
    assert_eq!(["ok", "bad", "mix"].map(|name| group(&daemon, name)), ["passed", "failed", "done"]);
    assert_eq!(daemon.dump()["r3"]["instance"], 0, "nothing starts after a test that has failed");
}

#[test]
fn c7_what_ends_again_and_again_pauses() {
    let directory = with_fixtures("cluster-init");
    let mut daemon = running(&directory, "throttle.cltab");
    let control = daemon.control.clone();
    let told = std::process::Command::new(binary("gaggled_controller"))
        .args(["-u", &control, "tell", "q", "1", "--no-wait"])
        .output();
    assert!(told.expect("a tool").status.success());
    daemon.wait("seven runs", |_, state| {
        state
            .programs
            .values()
            .any(|program| program.instance.0 == 7 && program.phase == gaggled_core::state::Phase::Down)
    });
    let state = daemon.dump()["a"].clone();
    assert!(state["wait_ms"].as_u64().is_some_and(|wait| (50_000..=60_000).contains(&wait)), "{state}");
    assert!(state["reason"].as_str().is_some_and(|reason| reason.starts_with("starts again in")), "{state}");
    assert_eq!(lines(&directory, "starts").len(), 7);
    assert_eq!(tell(&daemon, "q", "stop").0, 0);
    assert_eq!(lines(&directory, "starts").len(), 7, "nobody waits until the pause is over");
}

#[test]
fn c8_what_ignores_a_term_is_killed() {
    let directory = with_fixtures("cluster-init");
    let mut daemon = running(&directory, "stubborn.cltab");
    assert_eq!(tell(&daemon, "s", "1").0, 0);
    let sig = directory.clone();
    daemon.wait_outside("the script", move || !lines(&sig, "sig").is_empty());
    assert_eq!(tell(&daemon, "s", "stop").0, 0);
    let sig = lines(&directory, "sig");
    assert!(sig[0].starts_with("up ") && sig[1..] == ["TERM "] || sig[1..] == ["TERM"], "{sig:?}");
    daemon.wait_down("a", 1);
    let killed =
        daemon.heard.iter().any(|heard| matches!(heard.event, Event::Program(_, ProgramEvent::KillRequested { .. })));
    assert!(killed, "{}", daemon.timeline());
}

#[test]
fn c9_the_children_of_a_shell_end_with_it() {
    let directory = with_fixtures("cluster-init");
    let mut daemon = running(&directory, "shell_child.cltab");
    assert_eq!(tell(&daemon, "k", "1").0, 0);
    let pid = daemon.pid_of("a");
    daemon.wait_outside("the child", move || !gaggled_tests::harness::children(pid).is_empty());
    let child = gaggled_tests::harness::children(pid)[0];
    assert_eq!(tell(&daemon, "k", "stop").0, 0);
    assert!(!gaggled_tests::harness::exists(child));
    assert!(lines(&directory, "out").is_empty());
}

#[test]
fn c10_a_changed_file_is_taken_at_once() {
    let directory = with_fixtures("cluster-init");
    let mut daemon = running(&directory, "reload_1.cltab");
    assert_eq!((tell(&daemon, "l", "1").0, tell(&daemon, "m", "1").0), (0, 0));
    let (keep, edit) = (daemon.pid_of("keep"), daemon.pid_of("edit"));
    must_reload(&mut daemon, "cltab", "reload_2.cltab");
    daemon.wait_up("add", 1);
    daemon.wait_up("edit", 2);
    assert_eq!(daemon.pid_of("keep"), keep);
    assert_ne!(daemon.pid_of("edit"), edit);
    // The shell becomes another program, and has no command line for a moment.
    let command = format!("/proc/{}/cmdline", daemon.pid_of("edit"));
    daemon
        .wait_outside("the changed command", move || fs::read_to_string(&command).is_ok_and(|it| it.contains("2005")));
    daemon.wait("drop to be gone", |_, state| {
        !state.graph.programs.values().any(|policy| &*policy.name == "drop") || {
            state.programs[state.graph.names()["drop"]].phase == gaggled_core::state::Phase::Down
        }
    });
    let events = said(&daemon.tool("gaggled_controller", &["events"])).1;
    for name in ["edit", "drop"] {
        let by_term =
            |line: &str| line.contains(&format!("ProgramExited        {name} ")) && line.contains("{\"signal\":15}");
        assert!(events.lines().any(by_term), "{name}, by TERM:\n{events}");
    }
    let status = said(&daemon.tool("gaggled_controller", &["status"])).1;
    assert!(!status.contains(" m "), "{status}");
}

#[test]
fn c11_what_is_off_holds_nobody_back() {
    let directory = with_fixtures("cluster-init");
    let daemon = running(&directory, "off.cltab");
    assert_eq!(tell(&daemon, "f", "1").0, 0);
    assert_eq!(lines(&directory, "out"), ["after-off"]);
    assert_eq!(daemon.dump().get("a"), None, "a program that is off is not there");
    assert_eq!(group(&daemon, "f"), "done");
}

#[test]
fn c12_a_bad_file_is_refused_and_nothing_changes() {
    let directory = with_fixtures("cluster-init");
    let file = in_directory(&directory, "modes.cltab");
    fs::write(&file, fs::read_to_string(&file).expect("a file").replace("exit 7", "exit 0")).expect("a file");
    let mut daemon = running(&directory, "modes.cltab");
    assert_eq!(tell(&daemon, "g", "1").0, 0);
    let pid = daemon.pid_of("r1");
    let table = [
        ("bad_duplicate_tag", 5, "tag \"same\" is there twice"),
        ("bad_empty_tag", 4, "the tag of the entry is empty"),
        ("bad_fields", 4, "3 of an entry has five fields"),
        ("bad_mode", 4, "mode \"reboot\" is not wait"),
        ("bad_setting", 4, "setting \"sokcet\" is not known"),
    ];
    for (name, line, why) in table {
        let (code, text) = said(&import("cltab", &in_directory(&directory, &format!("{name}.cltab"))));
        assert_eq!(code, 1, "{name}: {text}");
        assert!(text.contains(&format!("{name}.cltab:{line}: {why}")), "{name}: {text}");
        // The messages of the importer are no configuration, and a reload refuses them.
        fs::write(in_directory(&directory, "system.ron"), &text).expect("a file");
        let (code, text) = said(&daemon.tool("gaggled_controller", &["reload"]));
        assert_eq!(code, 1, "{name}: {text}");
    }
    assert_eq!(daemon.pid_of("r1"), pid);
    daemon.kill("r1", Signal::SIGKILL);
    daemon.wait_up("r1", 2);
}

#[test]
fn c13_what_is_not_there_is_said() {
    let directory = with_fixtures("cluster-init");
    let daemon = running(&directory, "modes.cltab");
    let (code, text) = tell(&daemon, "nosuch", "1");
    assert_eq!((code, text.contains("no group \"nosuch\"")), (2, true), "{text}");
    let (code, text) = tell(&daemon, "g", "77");
    assert_eq!((code, text.contains("no level \"77\"")), (2, true), "{text}");
    assert!(lines(&directory, "out").is_empty());
}

/// `why` shows that the group fell back, and which program was the cause.
#[test]
fn why_tells_that_a_group_fell_back_and_because_of_which_program() {
    let mut daemon = gaggled_tests::harness::Daemon::new(
        "\"fit\": (group: \"site\", mode: Test, shell: \"exit 3\"), \
         \"db\": (group: \"site\", command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),",
    );
    let config = daemon.directory.path().join("system.ron");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, text.replacen("programs:", "groups: {\"site\": (on_failure: \"stop\")}, programs:", 1))
        .expect("a file");
    assert!(daemon.tool("gaggled_controller", &["reload"]).status.success());
    let fell_back =
        |event: &Event| matches!(event, Event::Group(_, gaggled_core::event::GroupEvent::FallbackStarted { .. }));
    daemon.tool("gaggled_controller", &["tell", "site", "start"]);
    daemon.wait("the group to fall back", |heard, _| heard.iter().any(|heard| fell_back(&heard.event)));
    for program in ["fit", "db"] {
        let output = daemon.tool("gaggled_controller", &["why", program]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("group site is at level stop, because fit did not end well"), "{program}: {said}");
        assert!(said.contains("group site went to level stop"), "{program}: {said}");
    }
}
