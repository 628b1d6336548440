//! The end of runs whose daemon cannot end them itself: it hangs, is stopped, or is dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use gaggled_core::{base::ids::InstanceId, cluster::keeper::KeptRun};

use nix::unistd::getppid;

use crate::host::{
    cgroup::Cgroup,
    procfs,
    recover::leftovers::{self, Census, DeadRun, Helpers},
    spawn::token::Token,
    track::process_tree::{descendants, hold, kill_tree},
};

/// Kills everything of these runs, and looks again until nothing is left that was not killed: main processes and what they have
/// started, what carries their tokens, and what is in their cgroups. Returns how many processes that were.
///
/// A daemon that was stopped between a start and its record may have begun a run that is not known: the next one of each program
/// is looked for, too.
pub fn kill_runs(identity: &str, cgroups: &[PathBuf], runs: &[KeptRun]) -> usize {
    let next = |run: &KeptRun| KeptRun { instance: InstanceId(run.instance.0 + 1), process: None, ..run.clone() };
    let next = runs.iter().map(next);
    let runs: Vec<KeptRun> = runs.iter().cloned().chain(next).collect();
    leftovers::end_half_started();
    let programs: BTreeSet<&str> = runs.iter().map(|run| &*run.program).collect();
    let helpers = Helpers::Of(&programs);
    let mut dead: Vec<DeadRun> = runs.iter().map(|run| kill_main(run, identity, cgroups)).collect();
    leftovers::kill_all(dead.iter_mut(), &Census::take(identity, helpers), identity, helpers);
    dead.iter().map(|run| run.killed.len()).sum()
}

/// Kills the main process of a run with its descendants, and its cgroup. The rest is found by what the run has in common.
fn kill_main(run: &KeptRun, identity: &str, cgroups: &[PathBuf]) -> DeadRun {
    let token = Token { instance: run.instance, program: run.program.to_string() };
    let mut killed = BTreeSet::new();
    if let Some(cgroup) = Cgroup::find(cgroups, &run.program, run.instance) {
        killed.extend(cgroup.members());
        cgroup.kill();
    }
    // What is followed may not be gaggled, if its url is a port that another user has taken.
    let is_ours = |pid: i32| Token::of(pid, identity).as_ref() == Some(&token) || is_of_gaggled(pid);
    let main = run.process.filter(|main| hold(main.pid, main.start_time).is_some() && is_ours(main.pid));
    if let Some(main) = main {
        let mut started = BTreeMap::new();
        descendants(main.pid, &mut started);
        killed.extend(started.into_keys().chain([main.pid]));
        kill_tree(main.pid);
        leftovers::sigkill(main.pid);
    }
    DeadRun {
        token,
        pid: run.process.map(|process| process.pid),
        alive: run.process.map(|process| process.start_time..=procfs::now()),
        killed,
    }
}

/// Whether a process is a child of the daemon or of the subreaper, as this process is.
fn is_of_gaggled(pid: i32) -> bool {
    let parent = getppid().as_raw();
    let parents = [Some(parent), procfs::stat(parent).map(|stat| stat.parent)];
    procfs::stat(pid).is_some_and(|stat| stat.parent > 1 && parents.contains(&Some(stat.parent)))
}
