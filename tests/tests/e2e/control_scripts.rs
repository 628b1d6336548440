//! Control scripts that put daemons into the background and return: scenarios P11, P12 and P14, and others. The
//! processes that they leave survive until they are undone, whichever process of gaggled is killed meanwhile.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use gaggled_core::protocol::{Action, Selection};
use gaggled_tests::{
    harness::{Daemon, directory, exists},
    import_harness::{imported, lines, run, tell},
};
use tempfile::TempDir;

/// Three scripts as they are written: one whose daemon forks twice and has a session and a pid file of its own, one that
/// puts its daemon into the background from a shell of its own, and one that uses `nohup`.
const SCRIPTS: [(&str, &str); 3] = [
    ("zeo", "setsid sh -c 'setsid sleep 100000 & echo $! > @DIR@/zeo.pid' >/dev/null 2>&1; sleep 0.1"),
    ("init", "setsid sleep 100000 >/dev/null 2>&1 & echo $! > @DIR@/init.pid"),
    ("hup", "nohup sleep 100000 >/dev/null 2>&1 & echo $! > @DIR@/hup.pid"),
];

fn site() -> Arc<TempDir> {
    let site = directory();
    let dir = site.path().display().to_string();
    for (name, start) in SCRIPTS {
        let start = start.replace("@DIR@", &dir);
        let text = format!(
            "#!/bin/sh\ncase $1 in\nstart) echo {name} start >> {dir}/log; {start} ;;\nstop) if kill $(cat {dir}/{name}.pid); \
             then echo {name} stopped >> {dir}/log; else echo {name} not found >> {dir}/log; exit 1; fi ;;\nrestart) $0 \
             stop; $0 start ;;\nesac\n"
        );
        let path = site.path().join(name);
        fs::write(&path, text).expect("a script");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let list = |word: &str, names: [&str; 3]| {
        names.iter().map(|name| format!("    {dir}/{name} {word}\n")).collect::<String>()
    };
    let buildout = format!(
        "[buildout]\nparts = cluster\n\n[cluster]\nrecipe = plone.recipe.cluster\nstart =\n{}stop =\n{}restart =\n{}",
        list("start", ["zeo", "init", "hup"]),
        list("stop", ["hup", "init", "zeo"]),
        list("restart", ["zeo", "init", "hup"]),
    );
    fs::write(site.path().join("buildout.cfg"), buildout).expect("a file");
    Arc::new(site)
}

fn pids(site: &Path) -> Vec<i32> {
    let pid = |name: &str| fs::read_to_string(site.join(format!("{name}.pid"))).unwrap_or_default();
    SCRIPTS.iter().filter_map(|(name, _)| pid(name).trim().parse().ok()).collect()
}

fn noted(site: &Arc<TempDir>) -> Vec<String> {
    let all = lines(site, "log").into_iter();
    all.filter(|line| SCRIPTS.iter().any(|(name, _)| line.starts_with(&format!("{name} ")))).collect()
}

fn must_live(pids: &[i32]) {
    assert_eq!(pids.len(), 3);
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(exists(*pid) && !stat.contains(") Z "), "{pid} is dead");
    }
}

/// P11, P12 and P14.
#[test]
fn p11_what_control_scripts_start_lives_until_they_stop_it() {
    let site = site();
    let mut daemon = run("plone", &site, "buildout.cfg");
    assert_eq!(tell(&daemon, "cluster", "start").0, 0);
    let started = pids(site.path());
    must_live(&started);
    let reason = daemon.dump()["cluster.start.1"]["reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(reason, "exited, still active, has left 1 process");
    // P12: whichever process of gaggled is killed.
    daemon.kill_daemon();
    must_live(&started);
    daemon.kill_all();
    let mut daemon = daemon.again();
    must_live(&started);
    assert_eq!(noted(&site), ["zeo start", "init start", "hup start"], "nothing was run again");
    // P14.
    let before = noted(&site).len();
    let restarted = daemon.tool("gaggled_controller", &["restart", "cluster"]);
    assert!(restarted.status.success(), "{}", String::from_utf8_lossy(&restarted.stderr));
    let again = pids(site.path());
    must_live(&again);
    let expected = ["zeo stopped", "zeo start", "init stopped", "init start", "hup stopped", "hup start"];
    assert_eq!(noted(&site)[before..], expected, "the scripts of the list replace the daemons themselves");
    daemon.wait_outside("the end of the daemons before", move || started.iter().all(|pid| !exists(*pid)));
    fs::write(site.path().join("log"), "").expect("a file");
    assert_eq!(tell(&daemon, "cluster", "stop").0, 0);
    assert_eq!(noted(&site), ["hup stopped", "init stopped", "zeo stopped"]);
    daemon.wait_outside("the end of the daemons", move || again.iter().all(|pid| !exists(*pid)));
}

/// The importers pair each script that starts with the one that stops.
#[test]
fn scripts_are_paired_by_the_importers() {
    let site = site();
    let text = imported("plone", &site.path().join("buildout.cfg"));
    assert_eq!(text.matches("mode: Wait").count(), 6, "{text}");
    assert_eq!(text.matches("leaves: Release").count(), 3, "{text}");
    assert!(text.contains("/zeo stop\""), "{text}");
    let cltab = site.path().join("cltab");
    let dir = site.path().display();
    fs::write(&cltab, format!("web:up:1:wait:{dir}/init start\nweb:down:2:wait:{dir}/init stop\n")).expect("a file");
    let text = imported("cltab", &cltab);
    assert!(text.contains("stop_command: ") && text.contains("levels: [\n                \"2\""), "{text}");
}

/// Without a stop command the processes that are left get a TERM and the killwait; `leaves` says whether they are kept.
#[test]
fn what_is_left_goes_with_its_program() {
    let line = "setsid sleep 100000 & echo $! > @DIR@/@NAME@.pid";
    let program =
        |name: &str, fields: &str| format!("\"{name}\": (shell: \"{}\", {fields}),", line.replace("@NAME@", name));
    let mut daemon = Daemon::new(&format!(
        "{}{}{}",
        program("wait", "mode: Wait"),
        program("once", "mode: Once, leaves: Keep"),
        program("kills", "mode: Once"),
    ));
    daemon.wait("all to have ended", |_, state| {
        state.programs.values().all(gaggled_core::state::ProgramState::is_completed)
    });
    let directory = daemon.directory.path().to_owned();
    let pid = |name: &str| -> i32 {
        fs::read_to_string(directory.join(format!("{name}.pid"))).expect("a file").trim().parse().expect("a number")
    };
    let (wait, once, kills) = (pid("wait"), pid("once"), pid("kills"));
    daemon.wait_outside("the end of what is not kept", move || !exists(kills));
    assert!(exists(wait) && exists(once));
    daemon.must(Action::Down(Selection { programs: vec!["wait".into()], wait: true, timeout_ms: None }));
    assert!(!exists(wait) && exists(once));
    daemon.end();
    assert!(!exists(once));
    daemon.verify();
}

/// Kept processes end with their program, also under a later run of the daemon than the one that has started them.
#[test]
fn what_is_kept_goes_with_its_program_after_a_reload_a_crash_and_both_deaths() {
    for how in ["reload", "crash", "both"] {
        let mut daemon = Daemon::new(
            "\"kept\": (shell: \"setsid sleep 100000 & echo $! > @DIR@/kept.pid\", mode: Wait), \
             \"other\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),",
        );
        daemon.wait("it to have ended", |_, state| {
            state.programs[state.graph.names()["kept"]].phase == gaggled_core::state::Phase::ActiveExited
        });
        let path = daemon.directory.path().join("kept.pid");
        let kept: i32 = fs::read_to_string(path).expect("a file").trim().parse().expect("a number");
        match how {
            "reload" => {
                let config = daemon.directory.path().join("system.ron");
                let text = fs::read_to_string(&config).expect("a configuration");
                fs::write(&config, format!("{text}\n// Changed.\n")).expect("a configuration");
                assert!(daemon.tool("gaggled_controller", &["reload"]).status.success());
            }
            "crash" => daemon.kill_daemon(),
            _ => {
                daemon.kill_all();
                daemon = daemon.again();
            }
        }
        assert!(exists(kept), "{how}");
        daemon.must(Action::Down(Selection { programs: vec!["kept".into()], wait: true, timeout_ms: None }));
        // Its parent may take its time to reap it.
        daemon.wait_gone(kept);
        daemon.end();
    }
}

/// After a stop command that gaggled's death has interrupted, the processes that the run has left get a TERM and time.
#[test]
fn what_is_left_is_asked_to_end_after_a_stop_command_that_another_gaggled_has_begun() {
    for how in ["crash", "both", "both, before the start is written"] {
        let mut daemon = Daemon::new(
            r#""kept": (
                shell: "setsid sh -c 'trap \"echo > @DIR@/asked; exit\" TERM; echo $$ > @DIR@/kept.pid; while :; do sleep 0.02; done' &",
                mode: Wait, killwait: "20s",
                stop_command: "echo > @DIR@/undoing; while ! [ -e @DIR@/go ]; do sleep 0.02; done",
            ),"#,
        );
        let directory = daemon.directory.path().to_owned();
        let pid = directory.join("kept.pid");
        let kept = move || fs::read_to_string(&pid).ok()?.trim().parse::<i32>().ok();
        let written = kept.clone();
        daemon.wait_outside("what it leaves", move || written().is_some());
        daemon.wait("it to have ended", |_, state| {
            state.programs.values().all(|program| program.phase == gaggled_core::state::Phase::ActiveExited)
        });
        daemon.must(Action::Down(Selection { programs: vec!["kept".into()], wait: false, timeout_ms: None }));
        let undoing = directory.join("undoing");
        daemon.wait_outside("its stop command", move || undoing.exists());
        if how != "both, before the start is written" {
            daemon.wait("its start to be committed", |_, state| {
                state.programs.values().all(|program| program.process.is_some())
            });
            // The reply to a command waits until all events before it are written.
            daemon.must(Action::Down(Selection { programs: vec!["kept".into()], wait: false, timeout_ms: None }));
        }
        if how == "crash" {
            daemon.kill_daemon();
        } else {
            daemon.kill_all();
            daemon = daemon.again();
        }
        fs::write(directory.join("go"), "").expect("a file");
        daemon.must(Action::Down(Selection { programs: vec!["kept".into()], wait: true, timeout_ms: None }));
        daemon.wait_gone(kept().expect("its process id"));
        assert!(directory.join("asked").exists(), "{how}\n{}", daemon.timeline());
        daemon.end();
    }
}
