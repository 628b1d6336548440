//! The processes of a run that are not in the process group of its main process: they have made sessions of their own.
//!
//! They are part of the run all the same: they are asked to end with it, have the same time for that, and are killed when
//! it is over. They are found as descendants of the group, by the token that they carry when their parents have gone, and
//! in the cgroup of the run if it has one.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
    thread,
};

use crossbeam_channel::Receiver;
use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    host::Ending,
    process::StartTime,
};
use nix::unistd::{getpid, getppid};

use crate::host::{
    cgroup::Cgroup,
    messages::Emptied,
    procfs::{self, Stat},
    spawn::token::Token,
    track::{
        process_table::{Process, ProcessTable},
        process_tree::{Held, descendants, kill_tree, wait_for},
        tracker::ProcessTracker,
    },
};

/// Processes that carry tokens and have lost their parents, with everything below them, by program and run.
type ProcessesByToken = BTreeMap<(String, InstanceId), BTreeMap<i32, Stat>>;

/// How many processes of one run are held at once; what is beyond that is found when those have ended.
const HELD_MAX: usize = 512;

impl Process {
    /// Asks processes outside its group to end, those of them that were not asked before.
    fn ask(&mut self, others: &[Held]) {
        // Start times are rounded: one that is as late as the first request may have begun after it.
        let since = self.asked_since.replace(self.asked_since.unwrap_or_else(procfs::now));
        for held in others.iter().filter(|held| since.is_none_or(|since| held.start_time.0 < since.0)) {
            if self.asked.insert(held.pid, held.start_time).is_none() {
                held.terminate();
            }
        }
    }

    /// Kills processes outside its group, and counts each once.
    pub(crate) fn kill_others(&mut self, others: &[Held]) {
        for held in others {
            held.kill();
            self.killed.insert((held.pid, held.start_time));
        }
    }
}

impl ProcessTracker {
    /// Asks everything that a run consists of to end, as far as it has not lost its parents: those are looked for when the
    /// group is gone.
    pub(crate) fn terminate(&self, table: &mut ProcessTable, main: i32) {
        let Some(process) = table.by_pid.get(&main) else { return };
        let others = self.outside(table, process, &[main], &ProcessesByToken::new());
        if let Some(process) = table.by_pid.get_mut(&main) {
            process.terminate(main);
            process.ask(&others);
        }
    }

    /// The processes of a run that are not in its group. `roots` are those of its group, as far as they are known, and
    /// `tagged` what has been found by tokens.
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
        // What was asked may have thrown its token away.
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

    /// Everything in the group of a run is gone: it has ended when the rest is gone, too, which is looked for by the
    /// thread of [`ProcessTracker::sweep_for_ever`].
    pub(crate) fn settle(&self, table: &mut ProcessTable, main: i32) {
        if let Some(process) = table.by_pid.get_mut(&main).filter(|process| !process.awaits_others) {
            process.awaits_others = true;
            let _ = self.emptied.send((main, process.instance));
        }
    }

    /// Looks for what runs have outside their groups, for all of them at once that have ended meanwhile: a look at all
    /// processes costs the same for one as for a thousand.
    pub(crate) fn sweep_for_ever(&self, emptied: &Receiver<Emptied>) {
        for first in emptied {
            let batch: Vec<Emptied> = iter::once(first).chain(emptied.try_iter()).collect();
            let is_orphaned = |(main, _): &Emptied| {
                let table = self.table();
                table.by_pid.get(main).is_some_and(|process| process.may_be_orphaned)
            };
            let tagged = self.tagged(batch.iter().any(is_orphaned));
            for (main, instance) in batch {
                self.conclude_or_wait(&mut self.table(), main, instance, &tagged);
            }
        }
    }

    /// What carries a token and has lost its parent: children of this process or of the subreaper, or, after both were
    /// killed, of any other.
    fn tagged(&self, of_all: bool) -> ProcessesByToken {
        let mut tagged = ProcessesByToken::new();
        if of_all {
            procfs::all().for_each(|pid| self.add_tagged(pid, None, &mut tagged));
            return tagged;
        }
        let mut seen = BTreeSet::new();
        // The children of a process that ends become ours between two looks.
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
                // One that is just ending has no token any more, but those below it have.
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

    /// A run has ended when a look finds nothing of it outside its group. Until then what is found is asked to end, or is
    /// killed when its time is over, and is looked for again when it has ended: it may have started others meanwhile.
    fn conclude_or_wait(&self, table: &mut ProcessTable, main: i32, instance: InstanceId, tagged: &ProcessesByToken) {
        let Some(process) = table.by_pid.get_mut(&main).filter(|process| process.instance == instance) else { return };
        process.awaits_others = false;
        let Some(status) = process.ended else { return };
        let Some(process) = table.by_pid.get(&main) else { return };
        let left = self.outside(table, process, &[], tagged);
        let Some(process) = table.by_pid.get_mut(&main) else { return };
        if left.is_empty() {
            return self.conclude(table, main, status);
        }
        if process.ending == Ending::Asked {
            process.ask(&left);
        } else {
            process.kill_others(&left);
        }
        if let Err(left) = self.await_others(process, main, left) {
            process.kill_others(&left);
            self.conclude(table, main, status);
        }
    }

    /// Kills what a run has left that ended well, when nothing of it is wanted after all.
    pub(crate) fn kill_kept(&self, program: ProgramId, instance: InstanceId) {
        let own = self.own.clone();
        // To find it takes a look at all processes, for which the actors do not wait.
        let kill = move || {
            while let Some(left) = own.upgrade().and_then(|shared| shared.kill_kept_once(program, instance)) {
                wait_for(&left);
            }
        };
        let _ = thread::Builder::new().name("kill-kept".into()).spawn(kill);
    }

    /// Kills what is found of a run that is not in the table. There may be more when that has ended.
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

    /// Counts what a run has left that has ended well, in its group and outside.
    pub(crate) fn count_kept(&self, main: i32, members: &[i32]) -> usize {
        let tagged = self.tagged(false);
        let table = self.table();
        let others = table.by_pid.get(&main).map(|process| self.outside(&table, process, members, &tagged));
        members.len() + others.map_or(0, |others| others.len())
    }

    /// Waits in a thread until these have ended, or gives them back if there is no thread to be had.
    fn await_others(&self, process: &mut Process, main: i32, left: Vec<Held>) -> Result<(), Vec<Held>> {
        let (shared, instance) = (self.own.clone(), process.instance);
        let left = Arc::new(left);
        let held = Arc::clone(&left);
        let wait = move || {
            wait_for(&held);
            if let Some(shared) = shared.upgrade() {
                shared.others_ended(main, instance);
            }
        };
        process.awaits_others = thread::Builder::new().name("others".into()).spawn(wait).is_ok();
        if process.awaits_others { Ok(()) } else { Err(Arc::into_inner(left).unwrap_or_default()) }
    }

    fn others_ended(&self, main: i32, instance: InstanceId) {
        let mut table = self.table();
        let Some(process) = table.by_pid.get_mut(&main).filter(|process| process.instance == instance) else { return };
        process.awaits_others = false;
        if process.ended.is_some() {
            self.settle(&mut table, main);
        }
    }

    /// Kills what a check or a stop command of a program has put into sessions of its own, now that it has ended. When that
    /// has ended, its children are ours, and are looked for in the same way.
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
