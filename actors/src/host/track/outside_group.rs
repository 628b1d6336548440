//! The processes of a run that are not in the process group of its main process: they have made sessions of their own.
//!
//! They are still part of the run: they are asked to end with it, and killed after the same time. They are found as
//! descendants of the group, by the token that they carry when they are orphans, and in the cgroup of the run if it has
//! one.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    process::StartTime,
};
use nix::{
    poll::PollTimeout,
    unistd::{getpid, getppid},
};

use crate::host::{
    cgroup::Cgroup,
    procfs::{self, Stat},
    spawn::token::Token,
    track::{
        process_table::{Process, ProcessTable},
        process_tree::{Held, ProcessesByToken, descendants, kill_tree, wait_for},
        tracker::ProcessTracker,
    },
};

/// How many processes of one run are held at once; more are found when those have ended.
const HELD_MAX: usize = 512;

impl ProcessTracker {
    /// The processes of a run that are not in its group. `roots` are the known processes of the group, and `tagged`
    /// those found by their tokens.
    pub(crate) fn outside(
        &self,
        table: &ProcessTable,
        process: &Process,
        roots: &[i32],
        tagged: &ProcessesByToken,
    ) -> Vec<Held> {
        let mut found = BTreeMap::new();
        for root in roots {
            descendants(*root, &mut found);
        }
        let seen = |pid: i32| Some((pid, procfs::stat(pid)?));
        let name = self.programs[process.program].name.clone();
        found.extend(tagged.get(&(name, process.instance)).into_iter().flatten());
        let cgroup = process.cgroup.iter().flat_map(Cgroup::members);
        found.extend(cgroup.filter_map(seen));
        // A process that was asked to end may have removed its token.
        let asked = process
            .asked
            .iter()
            .filter_map(|(pid, start_time)| seen(*pid).filter(|(_, stat)| stat.start_time == *start_time));
        found.extend(asked);
        let is_other = |pid: i32, stat: &Stat| {
            let known = table.by_pid.contains_key(&pid) || table.helpers.contains_key(&stat.group);
            !known && stat.group != process.group && !stat.is_zombie()
        };
        let others = found.into_iter().filter(|(pid, stat)| is_other(*pid, stat)).take(HELD_MAX);
        others.filter_map(|(pid, stat)| Held::new(pid, &stat)).collect()
    }

    /// The orphans that carry a token: children of this process or of the subreaper, or, after both were killed, of any
    /// process.
    pub(crate) fn tagged(&self, of_all: bool) -> ProcessesByToken {
        let mut tagged = ProcessesByToken::new();
        if of_all {
            procfs::all().for_each(|pid| self.add_tagged(pid, None, &mut tagged));
            return tagged;
        }
        let mut seen = BTreeSet::new();
        // The children of a process that ends become ours between two scans.
        loop {
            let new: Vec<i32> = self.foreign_children().into_iter().filter(|child| seen.insert(*child)).collect();
            if new.is_empty() {
                return tagged;
            }
            for child in new {
                let token = Token::of(child, &self.journal);
                let mut below = BTreeMap::new();
                descendants(child, &mut below);
                self.add_tagged(child, token.clone(), &mut tagged);
                // The token of a process that is just ending cannot be read, but those of its descendants can.
                for pid in below.into_keys() {
                    self.add_tagged(pid, token.clone(), &mut tagged);
                }
            }
        }
    }

    /// The children of this process and of the subreaper that are not main processes of runs.
    fn foreign_children(&self) -> Vec<i32> {
        let (own, subreaper) = (getpid().as_raw(), getppid().as_raw());
        let parents = [own, subreaper].into_iter().filter(|parent| *parent > 1);
        let children: Vec<i32> = parents.flat_map(|parent| procfs::children(parent, parent)).collect();
        let table = self.table();
        // This process is a child of the subreaper; below it is every program.
        children.into_iter().filter(|child| *child != own && !table.by_pid.contains_key(child)).collect()
    }

    /// Adds a process under this token, or under its own.
    fn add_tagged(&self, pid: i32, token: Option<Token>, tagged: &mut ProcessesByToken) {
        let Some(token) = token.or_else(|| Token::of(pid, &self.journal)) else { return };
        if let Some(stat) = procfs::stat(pid) {
            tagged.entry((token.program, token.instance)).or_default().insert(pid, stat);
        }
    }

    /// Kills the kept processes of a run that has ended.
    pub(crate) fn kill_kept(&self, program: ProgramId, instance: InstanceId) {
        let own = self.own.clone();
        // Finding them takes a scan of all processes, for which the actors must not wait.
        let kill = move || {
            while let Some(left) = own.upgrade().and_then(|shared| shared.kill_kept_once(program, instance)) {
                wait_for(&left, PollTimeout::NONE);
            }
        };
        let _ = thread::Builder::new().name("kill-kept".into()).spawn(kill);
    }

    /// Kills the processes of a run that is not in the table. There may be more of them when these have ended.
    fn kill_kept_once(&self, program: ProgramId, instance: InstanceId) -> Option<Vec<Held>> {
        let tagged = self.tagged(true);
        let table = self.table();
        if table.by_pid.values().any(|process| process.program == program && process.instance == instance) {
            return None;
        }
        let gone = Process::new(program, instance, 0, StartTime::default(), false);
        let left = self.outside(&table, &gone, &[], &tagged);
        left.iter().for_each(Held::kill);
        (!left.is_empty()).then_some(left)
    }

    /// Counts the kept processes of a run that has ended, in its group and outside.
    pub(crate) fn count_kept(&self, main: i32, members: &[i32]) -> usize {
        let tagged = self.tagged(false);
        let table = self.table();
        let others = table.by_pid.get(&main).map(|process| self.outside(&table, process, members, &tagged));
        members.len() + others.map_or(0, |others| others.len())
    }

    /// Kills the processes that an ended check or stop command of a program has put into other sessions. When these
    /// have ended their children become ours, and are looked for in the same way.
    pub(crate) fn kill_helper_strays(&self, table: &mut ProcessTable, program: ProgramId) {
        let own = getpid().as_raw();
        let name = &self.programs[program].name;
        let is_stray = |child: &i32| {
            let known = table.by_pid.contains_key(child) || table.helpers.contains_key(child);
            let of_other = || procfs::stat(*child).is_none_or(|stat| table.helpers.contains_key(&stat.group));
            !known && Token::of_helper(*child, &self.journal).is_some_and(|token| token.program == *name) && !of_other()
        };
        let strays: Vec<i32> = procfs::children(own, own).into_iter().filter(is_stray).collect();
        for stray in strays {
            kill_tree(stray);
            table.strays.insert(stray, program);
        }
    }
}
