//! What ended runs have left behind while gaggled was not there, and what the previous daemon has left half done: it is
//! killed before anything is started.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use gaggled_core::{base::ids::InstanceId, process::StartTime};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getppid},
};

use crate::host::{
    procfs::{self, Stat},
    spawn::{spawner, token::Token},
    track::process_tree::{Held, wait_for},
};

/// How long the end of a killed child is waited for, in milliseconds.
const HALF_STARTED_TIMEOUT: u16 = 1000;

/// Ends the children of the previous daemon that had not executed their command when it died: they would do so later, when
/// no result is expected from them. They are still threads of the spawner by name.
pub(super) fn end_half_started() {
    let subreaper = getppid().as_raw();
    let is_half_started = |child: &i32| procfs::name(*child).as_deref() == Some(spawner::THREAD);
    let children = procfs::children(subreaper, subreaper).into_iter().filter(is_half_started);
    let held: Vec<Held> = children.filter_map(|child| Held::new(child, &procfs::stat(child)?)).collect();
    held.iter().for_each(Held::kill);
    // How they end is known when they have; one that hangs in the kernel is not waited for.
    wait_for(&held, HALF_STARTED_TIMEOUT.into());
}

/// Kills what ended runs have left, and looks again after each kill: a process may start others before it ends.
pub(super) fn kill_all<'a>(
    runs: impl Iterator<Item = &'a mut DeadRun>,
    found: &Census,
    identity: &str,
    helpers: Helpers<'_>,
) {
    let mut runs: Vec<&mut DeadRun> = runs.collect();
    let mut kill = |census: &Census| runs.iter_mut().map(|run| run.kill(census, identity)).sum::<usize>();
    let mut killed = kill(found);
    while killed > 0 {
        killed = kill(&Census::take(identity, helpers));
    }
}

/// The processes of the machine that may be of this gaggled.
#[derive(Default)]
pub(super) struct Census {
    /// Those that carry its tokens, by the names of programs.
    pub tagged: BTreeMap<String, Vec<TaggedProcess>>,
    /// All, by their session and by their group.
    kin: BTreeMap<i32, BTreeSet<i32>>,
}

/// A process that carries a token of this gaggled.
pub(super) struct TaggedProcess {
    pub pid: i32,
    pub instance: InstanceId,
    pub stat: Stat,
}

/// Which checks and stop commands are killed when they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helpers<'a> {
    /// All: they are of a daemon that is gone, and their ends are not waited for any more.
    OfAll,
    /// Those of these programs.
    Of(&'a BTreeSet<&'a str>),
}

impl Helpers<'_> {
    fn has(self, program: &str) -> bool {
        match self {
            Self::OfAll => true,
            Self::Of(programs) => programs.contains(program),
        }
    }
}

impl Census {
    /// Looks at all processes.
    pub fn take(identity: &str, helpers: Helpers<'_>) -> Self {
        let mut census = Self::default();
        for pid in procfs::all() {
            let (helper, run) = Token::of_either(pid, identity);
            if helper.is_some_and(|helper| helpers.has(&helper.program)) {
                sigkill(pid);
                continue;
            }
            let Some(stat) = procfs::stat(pid) else { continue };
            for number in [stat.session, stat.group] {
                census.kin.entry(number).or_default().insert(pid);
            }
            if let Some(Token { instance, program }) = run {
                census.tagged.entry(program).or_default().push(TaggedProcess { pid, instance, stat });
            }
        }
        census
    }
}

/// A run whose main process has ended while gaggled was not there.
pub(super) struct DeadRun {
    pub token: Token,
    /// Its main process, if that is known.
    pub pid: Option<i32>,
    /// When the main process began, and until when it is known to have lived, if the journal knows it.
    pub alive: Option<RangeInclusive<StartTime>>,
    /// What it has left and was killed.
    pub killed: BTreeSet<i32>,
}

impl DeadRun {
    /// Kills what is left of it, and returns how many processes that was which were not killed before.
    fn kill(&mut self, census: &Census, identity: &str) -> usize {
        let tagged = census.tagged.get(&self.token.program).into_iter().flatten();
        let tagged = tagged.filter(|tagged| tagged.instance == self.token.instance && !tagged.stat.is_zombie());
        let tagged =
            tagged.map(|tagged| tagged.pid).filter(|pid| Token::of(*pid, identity).as_ref() == Some(&self.token));
        let left: BTreeSet<i32> = self.kin(census, identity).into_iter().chain(tagged).collect();
        let new = left.into_iter().filter(|pid| sigkill(*pid) && self.killed.insert(*pid));
        new.count()
    }

    /// What is left of the session and group of its main process.
    ///
    /// That number may have been given away and be that of others by now, so one of them must be known: by the token of the
    /// run, as a child of our subreaper, which has none but what our programs leave behind, or because it began while the
    /// main process lived. A number is not given away as long as a session has it, so what was in this session then is of
    /// this run, also when it has thrown its variables away, as the workers of nginx do.
    fn kin(&self, census: &Census, identity: &str) -> BTreeSet<i32> {
        let Some((main, kin)) = self.pid.filter(|pid| *pid > 1).and_then(|pid| Some((pid, census.kin.get(&pid)?)))
        else {
            return BTreeSet::new();
        };
        let seen = kin.iter().filter_map(|other| Some((*other, procfs::stat(*other)?)));
        let left: Vec<(i32, Stat)> =
            seen.filter(|(_, stat)| (stat.group == main || stat.session == main) && !stat.is_zombie()).collect();
        // A process that has got the number has it because nothing was left of the session.
        let is_first = |alive: &&RangeInclusive<StartTime>| {
            procfs::stat(main).is_none_or(|stat| stat.start_time == *alive.start())
        };
        let alive = self.alive.as_ref().filter(is_first);
        let subreaper = getppid().as_raw();
        let is_known = |(other, stat): &(i32, Stat)| {
            let is_orphan = subreaper > 1 && stat.parent == subreaper;
            let is_old = alive.is_some_and(|alive| alive.contains(&stat.start_time));
            let is_in_session = stat.session == main && *other != main;
            is_in_session && (is_orphan || is_old)
                || self.killed.contains(other)
                || Token::of(*other, identity).as_ref() == Some(&self.token)
        };
        if left.iter().any(is_known) { left.into_iter().map(|(other, _)| other).collect() } else { BTreeSet::new() }
    }
}

pub(super) fn sigkill(pid: i32) -> bool {
    kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
}
