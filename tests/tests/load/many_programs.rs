//! Thousands of programs, and programs that end thousands of times.

use std::fs;

use gaggled_core::{
    process::ExitStatus,
    protocol::{Action, Selection},
    state::ProgramState,
};
use gaggled_tests::harness::{Daemon, code};
use nix::sys::signal::Signal;

/// Test 2.
#[test]
fn ten_thousand_runs_that_end_at_once_are_each_told_once_and_in_order() {
    let programs: String = (0..20)
        .map(|i| {
            format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"3\"], backoff: (initial: 0, max: 0)),")
        })
        .collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("ten thousand runs", |_, state| {
        state.programs.values().map(|program| program.restarts).sum::<u64>() >= 10_000
    });
    daemon.down_all();
    daemon.wait("the last of them", |_, state| state.running.is_empty());
    daemon.verify();
    let otherwise = daemon.exits().iter().filter(|(status, _)| *status != ExitStatus::Code(3)).count();
    assert!(otherwise <= 20, "only the last run of each may have been stopped, not {otherwise}");
    assert_eq!(code(daemon.end()), 0);
}

/// Test 3.
#[test]
fn five_hundred_that_end_at_one_moment_are_all_told_and_leave_no_zombie() {
    let programs: String = (0..500)
        .map(|i| format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], mode: Once),"))
        .collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be up", |_, state| state.programs.values().all(ProgramState::is_running_and_wanted));
    daemon.must(Action::Signal { programs: vec!["*".to_owned()], signal: "KILL".to_owned() });
    daemon.wait("all to have ended", |_, state| state.running.is_empty());
    assert_eq!(daemon.exits().len(), 500);
    let daemon_pid = daemon.daemon_pid();
    let threads = move || -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{daemon_pid}/task")).expect("threads").flatten();
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
    };
    let children = move || -> usize {
        let of =
            |thread: i32| fs::read_to_string(format!("/proc/{daemon_pid}/task/{thread}/children")).unwrap_or_default();
        threads().into_iter().map(|thread| of(thread).split_whitespace().count()).sum()
    };
    daemon.wait_outside("the last zombie", || children() == 0);
}

/// Test 57: many restarts leave nothing behind. `GAGGLED_SOAK=100000` makes it so many.
#[test]
fn a_long_storm_leaves_no_memory_no_descriptor_no_zombie_and_a_bounded_journal() {
    let restarts: u64 = std::env::var("GAGGLED_SOAK").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let programs: String = (0..8)
        .map(|i| {
            format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"exit\", \"0\", \"1\"], backoff: (initial: 0, max: 0)),")
        })
        .collect();
    let config = format!(
        "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", journal: (megabytes: 2)), \
         programs: {{{programs}}})"
    );
    let mut daemon = Daemon::with(
        &config,
        std::sync::Arc::new(gaggled_tests::harness::directory()),
        &gaggled_tests::harness::DaemonOptions::default(),
    );
    let daemon_pid = daemon.daemon_pid();
    let resident = || {
        let text = fs::read_to_string(format!("/proc/{daemon_pid}/status")).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    let descriptors = || fs::read_dir(format!("/proc/{daemon_pid}/fd")).expect("it runs").count();
    let until = |daemon: &mut Daemon, count: u64| {
        daemon.wait("so many restarts", |_, state| {
            state.programs.values().map(|program| program.restarts).sum::<u64>() >= count
        });
        daemon.heard.clear();
        daemon.texts.clear();
    };
    // By then all bounded histories are full.
    until(&mut daemon, 4_000);
    let (memory, open) = (resident(), descriptors());
    until(&mut daemon, 4_000 + restarts);
    let grown = resident().saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more after {restarts} restarts");
    assert!(descriptors() <= open + 1, "a segment may be under way");
    let kept: u64 = fs::read_dir(daemon.journal())
        .expect("a journal")
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| found.len())
        .sum();
    assert!(kept < 3 << 20, "the journal has {kept} bytes");
    daemon.down_all();
    daemon.wait("silence", |_, state| state.running.is_empty());
    daemon.verify();
}

/// Test 31: five hundred programs that wait for one start when it is up, and commands are answered meanwhile.
#[test]
fn a_herd_that_is_let_go_at_once_comes_up_and_starves_nobody() {
    let herd = (0..500).map(|i| {
        format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"gate\": (propagate: true)}}),")
    });
    let gate = "\"gate\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], autostart: false),".to_owned();
    let mut daemon = Daemon::new(&std::iter::once(gate).chain(herd).collect::<String>());
    daemon.must(Action::Up(Selection { programs: vec!["gate".to_owned()], wait: false, timeout_ms: None }));
    let mut answers = 0;
    while daemon.dump().as_object().expect("programs").values().any(|state| state["up"] == false) {
        answers += 1;
    }
    assert!(answers > 0, "they were looked at while they came up");
    // And once more, with all of them going down first.
    daemon.kill("gate", Signal::SIGKILL);
    daemon.wait("all to have come back", |_, state| {
        state.programs.values().all(|program| program.instance.0 == 2 && program.is_running_and_wanted())
    });
    assert_eq!(code(daemon.end()), 0);
    daemon.verify();
}

#[test]
fn many_that_end_at_the_same_moment_are_all_reported() {
    let programs: String =
        (0..200).map(|i| format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),")).collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be up", |_, state| {
        state.programs.values().all(gaggled_core::state::ProgramState::is_running_and_wanted)
    });
    daemon.must(Action::Signal { programs: vec!["*".to_owned()], signal: "KILL".to_owned() });
    daemon.wait("all to be up again", |_, state| {
        state.programs.values().all(|program| program.instance.0 == 2 && program.is_running_and_wanted())
    });
    assert_eq!(code(daemon.end()), 0);
}

#[test]
fn five_thousand_programs_start_dump_and_stop() {
    // B3. With a dependency each, in chains of ten.
    let programs: String = (0..5000)
        .map(|i| {
            let on = if i % 10 > 0 { format!("\"p{}\": ()", i - 1) } else { String::new() };
            format!("\"p{i}\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], killwait: \"1m\", depends: {{{on}}}),")
        })
        .collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("all to be up", |_, state| {
        state.programs.values().all(gaggled_core::state::ProgramState::is_running_and_wanted)
    });
    let output = daemon.tool("gaggled_controller", &["dump", "--json"]);
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let programs = dump["programs"].as_array().expect("programs");
    assert_eq!(programs.len(), 5000);
    assert!(programs.iter().all(|program| program["up"] == true));
    assert_eq!(dump["dependencies"].as_array().map(Vec::len), Some(4500));
    let output = daemon.tool("gaggled_controller", &["shutdown", "--timeout", "1m"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(code(daemon.await_end()), 0);
}
