//! What has become of the instances of the previous daemon: looked for once, before anything is started.
//!
//! A process is known by its id together with the time at which it began, as the journal has them. One that the journal
//! has not heard of, because the previous daemon ended between the fork and the record, is known by the flight recorder, or
//! by the token in its environment. The end of one that is gone is in the flight recorder, or reported by the subreaper that
//! has reaped it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use gaggled_core::{
    base::ids::{DenseId, InstanceId, ProgramId},
    graph::Leaves,
    host::{Ending, ExitPolicy, Recovered},
    process::{ExitStatus, StartTime},
    state::{Phase, ProgramState, State},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getppid},
};

use crate::host::{
    cgroup::Cgroup,
    messages::SurvivingProcess,
    procfs::{self, Stat},
    recover::flight_recorder::RunSlot,
    spawn::{
        pid_file, spawner, sys,
        token::{Token, VARIABLE},
    },
};

/// What is seen of an instance.
#[derive(Clone, Copy)]
enum Seen {
    Alive { instance: InstanceId, pid: i32, stat: Stat },
    Gone { instance: InstanceId, pid: Option<i32>, status: Option<ExitStatus> },
}

/// What the previous daemon has left to look by.
pub struct PreviousRun<'a> {
    /// Its last state, to whose programs the recorder refers.
    pub state: &'a State,
    /// The identity of the journal.
    pub identity: &'a str,
    /// What it has recorded, if it has.
    pub recorded: Option<&'a [Vec<RunSlot>]>,
    /// The pid files of programs that make daemons of themselves, by their names.
    pub daemon_files: &'a BTreeMap<String, String>,
    /// The directories in which cgroups are, and were.
    pub cgroups: &'a [PathBuf],
}

/// What is found of each program that had a process, or may have one that the journal has not heard of: of the instance
/// that the journal knows, and then of a later one; those that run, and the
/// cgroups of what runs that have ended well have left.
///
/// `state` is the last state carried over. `reaped` is asked what the subreaper has reaped, when everything has been looked
/// at: it has reported every end until then.
pub fn look(
    before: &PreviousRun<'_>,
    state: &State,
    reaped: impl FnOnce() -> Vec<(i32, ExitStatus)>,
) -> (Vec<(ProgramId, Recovered)>, Vec<SurvivingProcess>, Vec<Cgroup>) {
    let last_seen = procfs::ago(
        Duration::from_micros(state.at.as_micros().saturating_sub(before.state.at.as_micros()))
            .saturating_sub(PID_REUSE),
    );
    end_half_started();
    let Census { tagged, kin } = Census::take(before.identity);
    let ids = before.state.graph.names();
    let recorded = before.recorded;
    let slots = |name: &str| ids.get(name).and_then(|old| recorded?.get(old.index())).map_or(&[][..], Vec::as_slice);
    let mut seen = Vec::new();
    for (id, policy) in state.graph.programs.iter() {
        let tagged = tagged.get(&*policy.name).map_or(&[][..], Vec::as_slice);
        let look = ProgramScan { known: &state.programs[id], slots: slots(&policy.name), tagged };
        seen.extend(look.at_known().into_iter().chain(look.at_later()).map(|seen| (id, seen)));
    }
    // If a PID was reused, the first reaped status is the program's.
    let reaped: BTreeMap<i32, ExitStatus> = reaped().into_iter().rev().collect();
    let mut survivors = Vec::new();
    // What was released survives in the cgroup of its run.
    let lives_on = |id: ProgramId| state.graph.programs[id].leaves == Leaves::Release;
    let done = state.programs.iter().filter(|(id, known)| known.phase == Phase::ActiveExited || lives_on(*id));
    let in_cgroup = |id: ProgramId, instance| Cgroup::find(before.cgroups, &state.graph.programs[id].name, instance);
    let mut kept: Vec<Cgroup> = done.filter_map(|(id, known)| in_cgroup(id, known.instance)).collect();
    let mut find = |(program, seen): (ProgramId, Seen)| {
        let name = &*state.graph.programs[program].name;
        let (known, file) = (&state.programs[program], before.daemon_files.get(name));
        let (seen, found_daemon) = match (seen, file) {
            (Seen::Gone { instance, pid: Some(_), .. }, Some(file)) if !known.daemonized => {
                let token = Token { instance, program: name.to_owned() };
                daemon(file, slots(name), &token, before.identity).map_or((seen, false), |daemon| (daemon, true))
            }
            _ => (seen, known.daemonized),
        };
        let cgroup = |instance| Cgroup::find(before.cgroups, name, instance);
        let found = match seen {
            Seen::Alive { instance, pid, stat } => {
                let Stat { start_time, parent, .. } = stat;
                let is_daemon = found_daemon && (Some(pid) == known.pid || !known.daemonized);
                survivors.push(SurvivingProcess {
                    program,
                    instance,
                    pid,
                    start_time,
                    parent,
                    is_daemon,
                    cgroup: cgroup(instance),
                });
                Recovered::Running { instance, pid, start_time }
            }
            // A child writes itself down before it is anything: what is not written never was.
            Seen::Gone { instance, pid: None, .. } if recorded.is_some() => Recovered::NeverStarted { instance },
            Seen::Gone { instance, pid, status } => {
                let recorded = slots(name).iter().find(|slot| slot.instance == instance).and_then(|slot| slot.ended);
                let told = || pid.and_then(|pid| reaped.get(&pid).copied());
                let status = status.or(recorded).or_else(told).unwrap_or(ExitStatus::Unknown);
                let token = Token { instance, program: name.to_owned() };
                let cgroup = cgroup(instance);
                // What was being stopped may have been killed by gaggled itself.
                let unasked = cgroup.as_ref().filter(|_| known.phase != Phase::Stopping);
                let status = unasked.map_or(status, |cgroup| cgroup.oom_status(status));
                let members = cgroup.as_ref().map_or(0, |cgroup| cgroup.members().len());
                // What carries its token goes with it, wherever it is; and so does what is in its cgroup, a little later.
                let own = tagged.get(name).map_or(&[][..], Vec::as_slice);
                let own = own.iter().filter(|tagged| tagged.instance == instance && !tagged.stat.is_zombie());
                let by_itself =
                    known.instance != instance || known.stop_event.is_none() && known.phase != Phase::Stopping;
                let ending = if by_itself { Ending::No } else { Ending::Asked };
                let exit = ExitPolicy::from(&state.graph.programs[program]);
                if exit.is_kept(status, ending) {
                    let count = if exit.leaves == Leaves::Keep { own.count() } else { 0 };
                    let orphans = u16::try_from(count).unwrap_or(u16::MAX);
                    kept.extend(cgroup);
                    return (program, Recovered::Exited { instance, status, orphans });
                }
                let began = (known.instance == instance).then_some(known.start_time);
                let kin = pid.filter(|pid| *pid > 1).and_then(|pid| Some((pid, kin.get(&pid)?)));
                let mut killed = kin.map_or_else(BTreeSet::new, |(pid, kin)| {
                    DeadMain { pid, alive: began.map(|began| began..=last_seen), token: &token }
                        .sweep(kin, before.identity)
                });
                for TaggedProcess { pid, .. } in own {
                    let gone = Token::of(*pid, before.identity).as_ref() != Some(&token);
                    if !gone && kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok() {
                        killed.insert(*pid);
                    }
                }
                let orphans = u16::try_from(killed.len().max(members)).unwrap_or(u16::MAX);
                Recovered::Exited { instance, status, orphans }
            }
        };
        (program, found)
    };
    let found = seen.into_iter().map(&mut find).collect();
    (found, survivors, kept)
}

/// The processes that carry a token of the gaggled with this journal, with the names of their programs.
pub fn tagged_processes(identity: &str) -> Vec<(String, i32)> {
    procfs::all().filter_map(|pid| Some((Token::of(pid, identity)?.program, pid))).collect()
}

/// The main processes that say they were started by a gaggled at this control url, and run as one of these users: another
/// user could say so to keep gaggled from starting. With the names of their programs.
pub fn strangers(control: &str, users: &BTreeSet<u32>) -> Vec<(String, i32)> {
    let is_main = |pid: i32| procfs::stat(pid).is_some_and(|stat| stat.session == pid && !stat.is_zombie());
    let named = |pid: i32| {
        let value = procfs::variable(pid, VARIABLE)?;
        let program = value.split(':').nth(1)?.to_owned();
        let is_here = procfs::variable(pid, CONTROL_VARIABLE).as_deref() == Some(control);
        (is_here && is_main(pid) && procfs::uid(pid).is_some_and(|uid| users.contains(&uid))).then_some((program, pid))
    };
    procfs::all().filter_map(named).collect()
}

/// The variable with the control url of a program's gaggled.
const CONTROL_VARIABLE: &str = "GAGGLED_CONTROL_URL";

/// The daemon that the command of a run has left, if the previous daemon did not live to write that down: it was recorded, or
/// its pid file names it and it carries the token.
fn daemon(file: &str, slots: &[RunSlot], token: &Token, identity: &str) -> Option<Seen> {
    let alive = |pid: i32| procfs::stat(pid).filter(|stat| !stat.is_zombie());
    let subreaper = getppid().as_raw();
    let recorded = slots.iter().find(|slot| slot.instance == token.instance && slot.ended.is_none());
    let recorded = recorded.and_then(|slot| Some((slot.pid, alive(slot.pid).filter(|stat| stat.parent == subreaper)?)));
    let named = || {
        let pid = pid_file::read(file).ok()?.pid;
        Some((pid, alive(pid).filter(|_| Token::of(pid, identity).as_ref() == Some(token))?))
    };
    let (pid, stat) = recorded.or_else(named)?;
    Some(Seen::Alive { instance: token.instance, pid, stat })
}

/// Ends the children of the previous daemon that had not executed their command when it died: they would do so later, when
/// no result is expected from them. They are still threads of the spawner by name.
fn end_half_started() {
    let subreaper = getppid().as_raw();
    for child in procfs::children(subreaper, subreaper) {
        if procfs::name(child).as_deref() == Some(spawner::THREAD) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
    }
}

/// The processes of the machine that may be of this gaggled.
#[derive(Default)]
struct Census {
    /// Those that carry its tokens, by the names of programs.
    tagged: BTreeMap<String, Vec<TaggedProcess>>,
    /// All, by their session and by their group.
    kin: BTreeMap<i32, BTreeSet<i32>>,
}

impl Census {
    /// Looks at all processes, and kills the checks and stop commands of the previous daemon: their ends are not waited for any more.
    fn take(identity: &str) -> Self {
        let mut census = Self::default();
        for pid in procfs::all() {
            if Token::is_helper(pid, identity) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                continue;
            }
            let Some(stat) = procfs::stat(pid) else { continue };
            for number in [stat.session, stat.group] {
                census.kin.entry(number).or_default().insert(pid);
            }
            if let Some(token) = Token::of(pid, identity) {
                let holder = TaggedProcess { pid, instance: token.instance, stat };
                census.tagged.entry(token.program).or_default().push(holder);
            }
        }
        census
    }
}

/// A process that carries a token of this gaggled.
struct TaggedProcess {
    pid: i32,
    instance: InstanceId,
    stat: Stat,
}

/// One program: what the journal knows of it, what was recorded, and the processes that carry its token.
struct ProgramScan<'a> {
    known: &'a ProgramState,
    slots: &'a [RunSlot],
    tagged: &'a [TaggedProcess],
}

impl ProgramScan<'_> {
    /// The instance that the journal knows, if it has had a process to the end.
    fn at_known(&self) -> Option<Seen> {
        let (instance, start_time) = (self.known.instance, self.known.start_time);
        if !self.known.is_running() {
            return None;
        }
        if self.known.phase == Phase::ActiveExited {
            // What carries the token is part of what the run has done. What undoes that was recorded.
            let slot = self.slots.iter().rfind(|slot| slot.instance == instance && slot.ended.is_none())?;
            let stat = procfs::stat(slot.pid).filter(|stat| !stat.is_zombie() && stat.parent == getppid().as_raw())?;
            return Some(Seen::Alive { instance, pid: slot.pid, stat });
        }
        match self.known.pid {
            Some(pid) => Some(match same(pid, start_time) {
                Some(stat) if stat.is_zombie() => {
                    let status = Some(sys::of_wait_status(stat.exit_code));
                    Seen::Gone { instance, pid: Some(pid), status }
                }
                Some(stat) => Seen::Alive { instance, pid, stat },
                None => Seen::Gone { instance, pid: Some(pid), status: None },
            }),
            None => self.unrecorded(instance..=instance).or(Some(Seen::Gone { instance, pid: None, status: None })),
        }
    }

    /// A later instance, which the previous daemon did not live to write down.
    fn at_later(&self) -> Option<Seen> {
        self.unrecorded(InstanceId(self.known.instance.0 + 1)..=InstanceId(u64::MAX))
    }

    /// Where the journal has no process id the recorder may have one; and where that has none, the first of the main
    /// processes that carry the newest token is the one.
    fn unrecorded(&self, instances: RangeInclusive<InstanceId>) -> Option<Seen> {
        let slot = self.slots.iter().rfind(|slot| instances.contains(&slot.instance));
        if let Some(RunSlot { instance, pid, ended: None }) = slot.copied()
            // Its parent is dead, so it is the subreaper's, which reports an end before it reaps.
            && let Some(stat) = procfs::stat(pid).filter(|stat| !stat.is_zombie() && stat.session == pid && stat.parent == getppid().as_raw())
        {
            return Some(Seen::Alive { instance, pid, stat });
        }
        let child = |tagged: &TaggedProcess| self.tagged.iter().any(|other| other.pid == tagged.stat.parent);
        let main = |tagged: &&TaggedProcess| {
            tagged.pid == tagged.stat.session
                && !tagged.stat.is_zombie()
                && !child(tagged)
                && instances.contains(&tagged.instance)
        };
        let newest =
            self.tagged.iter().filter(main).max_by_key(|tagged| (tagged.instance, Reverse(tagged.stat.start_time.0)));
        match (newest, slot) {
            (Some(tagged), slot) if slot.is_none_or(|slot| slot.instance < tagged.instance || slot.ended.is_none()) => {
                Some(Seen::Alive { instance: tagged.instance, pid: tagged.pid, stat: tagged.stat })
            }
            (_, Some(slot)) => Some(Seen::Gone { instance: slot.instance, pid: Some(slot.pid), status: None }),
            (Some(_) | None, None) => None,
        }
    }
}

/// A process id is hardly given to another process within so long: the kernel gives all others away before that.
const PID_REUSE: Duration = Duration::from_secs(2);

/// What is known of a process, if it is still the one that began then.
fn same(pid: i32, start_time: StartTime) -> Option<Stat> {
    procfs::stat(pid).filter(|stat| stat.start_time == start_time)
}

/// A main process that has ended while gaggled was not there.
struct DeadMain<'a> {
    pid: i32,
    /// When it began, and until when it is known to have lived, if the journal knows it.
    alive: Option<RangeInclusive<StartTime>>,
    token: &'a Token,
}

impl DeadMain<'_> {
    /// Kills what is left of its session and group, which are among these, and returns which processes that was.
    ///
    /// Its number may have been given away and be that of others by now, so one of them must be known: by the token of the
    /// run, as a child of our subreaper, which has none but what our programs leave behind, or because it began while the
    /// main process lived. A number is not given away as long as a session has it, so what was in this session then is of
    /// this run, also when it has thrown its variables away, as the workers of nginx do.
    fn sweep(&self, kin: &BTreeSet<i32>, identity: &str) -> BTreeSet<i32> {
        let seen = kin.iter().filter_map(|other| Some((*other, procfs::stat(*other)?)));
        let left: Vec<(i32, Stat)> = seen
            .filter(|(_, stat)| (stat.group == self.pid || stat.session == self.pid) && !stat.is_zombie())
            .collect();
        // A process that has got the number has it because nothing was left of the session.
        let is_first = |alive: &&RangeInclusive<StartTime>| {
            procfs::stat(self.pid).is_none_or(|main| main.start_time == *alive.start())
        };
        let alive = self.alive.as_ref().filter(is_first);
        if !left.iter().any(|(other, stat)| self.is_known(*other, stat, alive, identity)) {
            return BTreeSet::new();
        }
        let killed = left.iter().map(|(other, _)| *other);
        killed.filter(|other| kill(Pid::from_raw(*other), Signal::SIGKILL).is_ok()).collect()
    }

    /// Whether a process is of this run. `alive` is when the main process lived, if its number was not given away.
    fn is_known(&self, other: i32, stat: &Stat, alive: Option<&RangeInclusive<StartTime>>, identity: &str) -> bool {
        let subreaper = getppid().as_raw();
        let is_in_session = stat.session == self.pid && other != self.pid;
        let is_orphan = subreaper > 1 && stat.parent == subreaper;
        let is_old = alive.is_some_and(|alive| alive.contains(&stat.start_time));
        is_in_session && (is_orphan || is_old) || Token::of(other, identity).as_ref() == Some(self.token)
    }
}
