//! A site of Debian's own daemons, of every kind: in the foreground and in the background, with `sd_notify`, with sessions of
//! their own, with stop commands, with process titles written over their environment. What is not installed is left out;
//! `contrib/site/daemons/packages` names all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    graph::Mode,
    state::{Phase, ProgramState, State},
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, directory},
    import_harness::said,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// How many ports the site has.
const PORTS: u16 = 40;

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/site/daemons").join(name))
}

/// The first of `PORTS` consecutive ports that are free now.
fn base_port() -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..200)
        .map(|number| 12_000 + number * PORTS)
        .find(|base| (*base..base + PORTS).all(is_free))
        .expect("ports in a row")
}

/// Whether all programs are ready, and all control scripts have completed.
fn is_well(state: &State) -> bool {
    state.programs.iter().all(|(id, program)| match state.graph.programs[id].mode {
        Mode::Wait => program.phase == Phase::ActiveExited,
        Mode::Respawn | Mode::Once | Mode::Test => program.is_ready(),
    })
}

/// The programs that run, with their runs and main processes.
fn mains(state: &State) -> BTreeMap<ProgramId, (InstanceId, i32)> {
    let main = |(id, program): (ProgramId, &ProgramState)| Some((id, (program.instance, program.pid()?)));
    state.programs.iter().filter(|(_, program)| program.phase == Phase::Up).filter_map(main).collect()
}

/// Asserts that each daemon gives the answer that identifies it.
fn must_answer(daemon: &Daemon, base: u16) {
    let names = daemon.state().graph.names();
    let names = names.keys().map(|name| &**name).filter(|name| *name != "logger");
    let output = script("check").arg(daemon.directory.path().join("site")).arg(base.to_string()).args(names).output();
    let output = output.expect("python3");
    assert!(output.status.success(), "{}\n{}\n{}", said(&output).1, daemon.timeline(), daemon.log());
}

/// Kills these main processes, and waits until each has come up again.
fn kill_and_wait(daemon: &mut Daemon, killed: &BTreeMap<ProgramId, (InstanceId, i32)>) {
    for (_, pid) in killed.values() {
        // It may have been replaced already, because a program that it depends on was killed before it.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    wait_again(daemon, killed);
}

fn wait_again(daemon: &mut Daemon, killed: &BTreeMap<ProgramId, (InstanceId, i32)>) {
    daemon.wait("all to be up again", |_, state| {
        let again = killed.iter().all(|(id, (instance, _))| state.programs[*id].instance > *instance);
        again && is_well(state)
    });
}

/// Ends what is left of a site when its test has failed.
struct Site(PathBuf);

impl Drop for Site {
    fn drop(&mut self) {
        for (pid, _) in users_of(&self.0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The processes that have a file of the site open, and their names.
fn users_of(directory: &Path) -> Vec<(i32, String)> {
    let is_inside = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|file| file.starts_with(directory));
    let uses = |process: &fs::DirEntry| {
        fs::read_dir(process.path().join("fd")).is_ok_and(|mut files| files.any(|file| file.is_ok_and(is_inside)))
    };
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let named = |process: fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok().filter(|pid| *pid != std::process::id().cast_signed())?;
        uses(&process).then(|| (pid, fs::read_to_string(process.path().join("comm")).unwrap_or_default()))
    };
    processes.filter_map(named).collect()
}

#[test]
fn daemons_of_debian_survive_their_own_death_and_that_of_gaggled() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can run daemons as their users");
        return;
    }
    let directory = Arc::new(directory());
    let path = directory.path().join("site");
    let base = base_port();
    let prepared = script("prepare").arg(&path).arg(base.to_string()).output().expect("sh");
    eprintln!("{}", said(&prepared).1);
    let _site = Site(path.clone());
    assert!(prepared.status.success());
    let config = fs::read_to_string(path.join("system.ron")).expect("a configuration");
    // The harness expects the sockets and the journal in the test's directory, not in that of the site.
    let own = ["events.ipc", "control.ipc", "state\""];
    let config = own
        .iter()
        .fold(config, |config, name| config.replace(&format!("{}/{name}", path.display()), &format!("@DIR@/{name}")));
    let mut daemon = Daemon::with(&config, directory, &DaemonOptions::default());
    daemon.wait("all to be well", |_, state| is_well(state));
    must_answer(&daemon, base);
    let first = mains(daemon.state());
    assert!(!first.is_empty());

    kill_and_wait(&mut daemon, &first);
    must_answer(&daemon, base);

    let before = mains(daemon.state());
    daemon.kill_daemon();
    daemon.kill_all();
    let mut daemon = daemon.again();
    daemon.wait("all to be found", |_, state| is_well(state));
    assert_eq!(mains(daemon.state()), before, "{}", daemon.timeline());
    must_answer(&daemon, base);

    // Every other daemon ends while gaggled is not running.
    let killed: BTreeMap<_, _> = before.into_iter().step_by(2).collect();
    daemon.kill_all();
    for (_, pid) in killed.values() {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it runs");
    }
    let mut daemon = daemon.again();
    wait_again(&mut daemon, &killed);
    must_answer(&daemon, base);

    daemon.end();
    assert_eq!(users_of(&path), [], "they have ended with gaggled");
    daemon.verify();
}
