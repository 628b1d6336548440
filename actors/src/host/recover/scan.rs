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
    graph::{Leaves, Policy},
    host::{Ending, ExitAction, ExitPolicy, Recovered},
    process::{ExitStatus, StartTime},
    state::{Phase, ProcessInfo, ProgramState, State},
};
use nix::unistd::getppid;

use crate::host::{
    cgroup::Cgroup,
    messages::SurvivingProcess,
    procfs::{self, Stat},
    recover::{
        flight_recorder::RunSlot,
        leftovers::{self, Census, DeadRun, Helpers, TaggedProcess},
    },
    spawn::{
        pid_file, sys,
        token::{Token, VARIABLE},
    },
    track::process_table::MainProcess,
};

/// What the previous daemon has left to look by.
pub struct PreviousRun<'a> {
    /// Its last state, to whose programs the recorder refers.
    pub state: &'a State,
    /// The identity of the journal.
    pub identity: &'a str,
    /// Whether the journal is new: no process can be of it.
    pub is_new: bool,
    /// What it has recorded, if it has.
    pub recorded: Option<&'a [Vec<RunSlot>]>,
    /// The pid files of programs that make daemons of themselves, by their names.
    pub daemon_files: &'a BTreeMap<String, String>,
    /// Whether its subreaper is there, and with that everything that has lost its parent.
    pub is_subreaper_alive: bool,
    /// The directories in which cgroups are, and were.
    pub cgroups: &'a [PathBuf],
}

/// What was found.
#[derive(Debug, Default)]
pub struct ScanResult {
    /// What is found of each program that had a process, or may have one that the journal has not heard of: of the instance
    /// that the journal knows, and then of a later one.
    pub found: Vec<(ProgramId, Recovered)>,
    /// What runs, or may come to.
    pub survivors: Vec<SurvivingProcess>,
    /// The cgroups of what runs that have ended well have left.
    pub kept: Vec<Cgroup>,
}

/// Looks for the instances of all programs, and kills what those have left that have ended.
///
/// `state` is the last state carried over. `reaped` is asked what the subreaper has reaped, when everything has been looked
/// at: it has reported every end until then.
pub fn look(before: &PreviousRun<'_>, state: &State, reaped: impl FnOnce() -> Vec<(i32, ExitStatus)>) -> ScanResult {
    let began = procfs::now();
    let census = if before.is_new {
        Census::default()
    } else {
        leftovers::end_half_started();
        Census::take(before.identity, Helpers::OfAll)
    };
    let scans: Vec<ProgramScan<'_>> = ProgramScan::all(before, state, &census, began);
    let seen =
        scans.iter().flat_map(|scan| scan.at_known().into_iter().chain(scan.at_later()).map(move |seen| (scan, seen)));
    let seen: Vec<(&ProgramScan<'_>, Seen)> = seen.collect();
    // If a PID was reused, the first reaped status is the program's.
    let reaped: BTreeMap<i32, ExitStatus> = reaped().into_iter().rev().collect();
    let kept = scans.iter().filter_map(ProgramScan::cgroup_of_kept).collect();
    let mut result = ScanResult { kept, ..ScanResult::default() };
    let mut dead = Vec::new();
    for (scan, seen) in seen {
        let recovered = match scan.with_daemon(seen) {
            Seen::Alive { instance, pid, stat, stage } => {
                let survivor = scan.survivor(instance, pid, stat.start_time, stage);
                result.survivors.push(SurvivingProcess { parent: stat.parent, ..survivor });
                Recovered::Running { instance, pid, start_time: stat.start_time }
            }
            // A child records its pid before it executes its command, so a run without a record was never started. A stop
            // command that may not have been started is run again.
            Seen::Gone { instance, pid: None, .. } if before.recorded.is_some() || scan.known.is_undoing() => {
                Recovered::NeverStarted { instance }
            }
            Seen::Gone { instance, pid, status } => {
                let cgroup = scan.cgroup(instance);
                let status = scan.status(instance, cgroup.as_ref(), status, || reaped.get(&pid?).copied());
                match (scan.exit.action(status, scan.ending(instance), !scan.is_daemonized(instance)), pid) {
                    (ExitAction::AwaitDaemon, Some(pid)) if scan.daemon_file().is_some() => {
                        let start_time = scan.known_start_time(instance).unwrap_or(scan.last_seen);
                        result.survivors.push(scan.survivor(instance, pid, start_time, MainProcess::AwaitingDaemon));
                        Recovered::Running { instance, pid, start_time }
                    }
                    (ExitAction::Keep | ExitAction::Release, _) => {
                        result.kept.extend(cgroup);
                        Recovered::Exited { instance, status, orphans: scan.count_kept(instance) }
                    }
                    (ExitAction::AwaitDaemon | ExitAction::AwaitRest | ExitAction::KillRest, _) => {
                        dead.push((result.found.len(), scan.dead_run(instance, pid)));
                        // What is in its cgroup is killed with that.
                        let members = cgroup.map_or(0, |cgroup| cgroup.members().len());
                        Recovered::Exited { instance, status, orphans: count(members) }
                    }
                }
            }
        };
        result.found.push((scan.program, recovered));
    }
    leftovers::kill_all(dead.iter_mut().map(|(_, run)| run), &census, before.identity, Helpers::OfAll);
    for (index, run) in dead {
        if let Some((_, Recovered::Exited { orphans, .. })) = result.found.get_mut(index) {
            *orphans = count(run.killed.len()).max(*orphans);
        }
    }
    result
}

fn count(processes: usize) -> u16 {
    u16::try_from(processes).unwrap_or(u16::MAX)
}

/// What is seen of an instance.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Alive { instance: InstanceId, pid: i32, stat: Stat, stage: MainProcess },
    Gone { instance: InstanceId, pid: Option<i32>, status: Option<ExitStatus> },
}

/// One program: what the journal knows of it, what was recorded, and the processes that carry its token.
struct ProgramScan<'a> {
    before: &'a PreviousRun<'a>,
    program: ProgramId,
    name: &'a str,
    known: &'a ProgramState,
    exit: ExitPolicy,
    slots: &'a [RunSlot],
    tagged: &'a [TaggedProcess],
    /// Until when the previous daemon is known to have watched everything.
    last_seen: StartTime,
    /// Since when its instance has been in its phase.
    phase_since: StartTime,
}

impl<'a> ProgramScan<'a> {
    /// `began` is when the state was taken over.
    fn all(before: &'a PreviousRun<'_>, state: &'a State, census: &'a Census, began: StartTime) -> Vec<Self> {
        let since = Duration::from_micros(state.at.as_micros().saturating_sub(before.state.at.as_micros()));
        let last_seen = procfs::ago(since.saturating_sub(PID_REUSE));
        let ids = before.state.graph.names();
        let of = |(program, policy): (ProgramId, &'a Policy)| {
            let name = &*policy.name;
            let known = &state.programs[program];
            let in_phase = Duration::from_micros(state.at.as_micros().saturating_sub(known.phase_since.as_micros()));
            let old = ids.get(name).and_then(|old| before.recorded?.get(old.index()));
            Self {
                before,
                program,
                name,
                known,
                exit: ExitPolicy::from(policy),
                slots: old.map_or(&[], Vec::as_slice),
                tagged: census.tagged.get(name).map_or(&[], Vec::as_slice),
                last_seen,
                phase_since: procfs::before(began, in_phase + CLOCK_MARGIN),
            }
        };
        state.graph.programs.iter().map(of).collect()
    }

    /// The instance that the journal knows, if it has had a process to the end.
    fn at_known(&self) -> Option<Seen> {
        let instance = self.known.instance;
        if !self.known.is_running() {
            return None;
        }
        if self.known.phase == Phase::ActiveExited {
            // The run itself has ended, and its kept processes carry the token. Only its stop command was recorded.
            let slot = self.slots.iter().rfind(|slot| slot.instance == instance && slot.ended.is_none())?;
            let stat = procfs::stat(slot.pid).filter(|stat| !stat.is_zombie() && stat.parent == getppid().as_raw())?;
            return Some(Seen::Alive { instance, pid: slot.pid, stat, stage: MainProcess::Command });
        }
        let Some(ProcessInfo { pid, start_time, daemonized }) = self.known.process else {
            let seen =
                if self.known.is_undoing() { self.unrecorded_undo() } else { self.unrecorded(instance..=instance) };
            return seen.or(Some(Seen::Gone { instance, pid: None, status: None }));
        };
        Some(match same(pid, start_time) {
            Some(stat) if stat.is_zombie() => {
                let status = Some(sys::of_wait_status(stat.exit_code));
                Seen::Gone { instance, pid: Some(pid), status }
            }
            Some(stat) => {
                let stage = if daemonized { MainProcess::Daemon } else { MainProcess::Command };
                Seen::Alive { instance, pid, stat, stage }
            }
            None => Seen::Gone { instance, pid: Some(pid), status: None },
        })
    }

    /// The stop command of a run that has ended, if the previous daemon did not live to write down its process id. The
    /// processes that the run has left carry the same token, but they began before the stop.
    fn unrecorded_undo(&self) -> Option<Seen> {
        let instance = self.known.instance;
        let recorded = || {
            let slot = self.slots.iter().rfind(|slot| slot.instance == instance && slot.ended.is_none())?;
            Some((slot.pid, recorded_child(slot.pid)?))
        };
        let tagged = || {
            let is_command = |tagged: &&TaggedProcess| {
                tagged.instance == instance && tagged.stat.start_time >= self.phase_since && self.is_main(tagged)
            };
            let command = self.tagged.iter().filter(is_command).max_by_key(|tagged| tagged.stat.start_time.0)?;
            Some((command.pid, command.stat))
        };
        let (pid, stat) = recorded().or_else(tagged)?;
        Some(Seen::Alive { instance, pid, stat, stage: MainProcess::Command })
    }

    /// A later instance, which the previous daemon did not live to write down.
    fn at_later(&self) -> Option<Seen> {
        self.unrecorded(InstanceId(self.known.instance.0 + 1)..=InstanceId(u64::MAX))
    }

    /// The process of a run without a process id in the journal: the one in the flight recorder, or else the oldest session
    /// leader that carries the newest token.
    fn unrecorded(&self, instances: RangeInclusive<InstanceId>) -> Option<Seen> {
        let slot = self.slots.iter().rfind(|slot| instances.contains(&slot.instance));
        if let Some(RunSlot { instance, pid, ended: None }) = slot.copied()
            && let Some(stat) = recorded_child(pid)
        {
            return Some(Seen::Alive { instance, pid, stat, stage: MainProcess::Command });
        }
        let is_main = |tagged: &&TaggedProcess| instances.contains(&tagged.instance) && self.is_main(tagged);
        let newest = self
            .tagged
            .iter()
            .filter(is_main)
            .max_by_key(|tagged| (tagged.instance, Reverse(tagged.stat.start_time.0)));
        // The subreaper may not have reaped it yet.
        let zombie = slot.and_then(|slot| procfs::stat(slot.pid)).filter(Stat::is_zombie);
        let status =
            zombie.filter(|stat| stat.parent == getppid().as_raw()).map(|stat| sys::of_wait_status(stat.exit_code));
        let may_run = |slot: &RunSlot| slot.ended.is_none() && status.is_none();
        match (newest, slot) {
            (Some(tagged), slot) if slot.is_none_or(|slot| slot.instance < tagged.instance || may_run(slot)) => {
                let TaggedProcess { pid, instance, stat } = *tagged;
                Some(Seen::Alive { instance, pid, stat, stage: MainProcess::Command })
            }
            (_, Some(slot)) => Some(Seen::Gone { instance: slot.instance, pid: Some(slot.pid), status }),
            (Some(_) | None, None) => None,
        }
    }

    /// Whether a process leads a session and no other process of the program has started it.
    fn is_main(&self, tagged: &TaggedProcess) -> bool {
        let is_child = || self.tagged.iter().any(|other| other.pid == tagged.stat.parent);
        tagged.pid == tagged.stat.session && !tagged.stat.is_zombie() && !is_child()
    }

    /// The same, with the daemon that its command has left as the main process, if the previous daemon did not live to write
    /// that down: it was recorded, or its pid file names it and it carries the token.
    fn with_daemon(&self, seen: Seen) -> Seen {
        let Seen::Gone { instance, pid: Some(_), .. } = seen else { return seen };
        let Some(file) = self.daemon_file().filter(|_| !self.is_daemonized(instance)) else { return seen };
        let alive = |pid: i32| procfs::stat(pid).filter(|stat| !stat.is_zombie());
        let subreaper = getppid().as_raw();
        let recorded = self.slots.iter().find(|slot| slot.instance == instance && slot.ended.is_none());
        let recorded =
            recorded.and_then(|slot| Some((slot.pid, alive(slot.pid).filter(|stat| stat.parent == subreaper)?)));
        let named = || {
            let pid = pid_file::read(file).ok()?.pid;
            let is_own = Token::of(pid, self.before.identity).is_some_and(|token| token == self.token(instance));
            Some((pid, alive(pid).filter(|_| is_own)?))
        };
        let daemon = recorded.or_else(named);
        daemon.map_or(seen, |(pid, stat)| Seen::Alive { instance, pid, stat, stage: MainProcess::Daemon })
    }

    /// How a run has ended, as its zombie says, or else the recorder or the subreaper.
    fn status(
        &self,
        instance: InstanceId,
        cgroup: Option<&Cgroup>,
        zombie: Option<ExitStatus>,
        reaped: impl FnOnce() -> Option<ExitStatus>,
    ) -> ExitStatus {
        let recorded = || self.slots.iter().find(|slot| slot.instance == instance).and_then(|slot| slot.ended);
        let status = zombie.or_else(recorded).or_else(reaped).unwrap_or(ExitStatus::Unknown);
        // What was being stopped may have been killed by gaggled itself.
        let cgroup = cgroup.filter(|_| self.known.phase != Phase::Stopping);
        cgroup.map_or(status, |cgroup| cgroup.oom_status(status))
    }

    /// Whether a run that has ended was asked to.
    fn ending(&self, instance: InstanceId) -> Ending {
        let known = self.known;
        let by_itself = known.instance != instance || known.stop_event.is_none() && known.phase != Phase::Stopping;
        if by_itself { Ending::No } else { Ending::Asked }
    }

    fn survivor(&self, instance: InstanceId, pid: i32, start_time: StartTime, stage: MainProcess) -> SurvivingProcess {
        // The process of a run that had ended is its stop command.
        let is_asked = matches!(self.known.phase, Phase::Stopping | Phase::ActiveExited);
        let ending = if is_asked && instance == self.known.instance { Ending::Asked } else { Ending::No };
        let cgroup = self.cgroup(instance);
        // What loses its parent becomes the subreaper's.
        let parent = if self.before.is_subreaper_alive { getppid().as_raw() } else { 0 };
        SurvivingProcess { program: self.program, instance, pid, start_time, parent, stage, ending, cgroup }
    }

    fn dead_run(&self, instance: InstanceId, pid: Option<i32>) -> DeadRun {
        let alive = self.known_start_time(instance).map(|began| began..=self.last_seen);
        DeadRun { token: self.token(instance), pid, alive, killed: BTreeSet::new() }
    }

    /// How many processes that carry its token a run has left which are kept.
    fn count_kept(&self, instance: InstanceId) -> u16 {
        let is_left = |tagged: &&TaggedProcess| tagged.instance == instance && !tagged.stat.is_zombie();
        if self.exit.leaves == Leaves::Keep { count(self.tagged.iter().filter(is_left).count()) } else { 0 }
    }

    /// The cgroup of the last run that has ended well, if what that has left lives on. What was released survives in it.
    fn cgroup_of_kept(&self) -> Option<Cgroup> {
        let is_kept = self.known.phase == Phase::ActiveExited || self.exit.leaves == Leaves::Release;
        is_kept.then(|| self.cgroup(self.known.instance))?
    }

    fn cgroup(&self, instance: InstanceId) -> Option<Cgroup> {
        Cgroup::find(self.before.cgroups, self.name, instance)
    }

    fn token(&self, instance: InstanceId) -> Token {
        Token { instance, program: self.name.to_owned() }
    }

    fn daemon_file(&self) -> Option<&str> {
        self.before.daemon_files.get(self.name).map(String::as_str)
    }

    /// Whether the daemon of a run was found, as the journal knows.
    fn is_daemonized(&self, instance: InstanceId) -> bool {
        self.known.is_daemonized() && self.known.instance == instance
    }

    fn known_start_time(&self, instance: InstanceId) -> Option<StartTime> {
        self.known.process.filter(|_| self.known.instance == instance).map(|process| process.start_time)
    }
}

/// The start times of processes are rounded, and the state is a little older than the look at them. What a run has left was
/// there long before it is stopped.
const CLOCK_MARGIN: Duration = Duration::from_millis(100);

/// The kernel is not expected to reuse a process id within this time: it assigns all other ids first.
const PID_REUSE: Duration = Duration::from_secs(2);

/// What is known of a child of the previous daemon that leads its session and runs. Its parent is dead, so it is the
/// subreaper's, which reports an end before it reaps.
fn recorded_child(pid: i32) -> Option<Stat> {
    procfs::stat(pid).filter(|stat| !stat.is_zombie() && stat.session == pid && stat.parent == getppid().as_raw())
}

/// What is known of a process, if it is still the one that began then.
fn same(pid: i32, start_time: StartTime) -> Option<Stat> {
    procfs::stat(pid).filter(|stat| stat.start_time == start_time)
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
        let [token, url] = procfs::variables(pid, [VARIABLE, CONTROL_VARIABLE]);
        let program = token?.split(':').nth(1)?.to_owned();
        let is_here = url.as_deref() == Some(control) && procfs::uid(pid).is_some_and(|uid| users.contains(&uid));
        is_here.then_some((program, pid))
    };
    // Session leaders are few, and an environment is large.
    procfs::all().filter(|pid| is_main(*pid)).filter_map(named).collect()
}

/// The variable with the control url of a program's gaggled.
const CONTROL_VARIABLE: &str = "GAGGLED_CONTROL_URL";
