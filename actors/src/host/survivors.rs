//! What has become of the instances of the life before: looked for once, before anything is started.
//!
//! A process is known by its id together with the time at which it began, as the journal has them. One that the journal
//! has not heard of, because the life before ended between the fork and the record, is known by the token in its
//! environment. How one has ended that is gone is told by the flight recorder, or by the launcher that has reaped it.

use std::{cmp::Reverse, collections::BTreeMap, ops::RangeInclusive};

use gaggled_core::{
    host::{ExitStatus, Found, StartTime},
    ids::{Dense, InstanceId, ProgramId},
    state::{ProgramState, State},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    proc::{self, Stat},
    recorder::Slot,
    token::Token,
};

/// A process that carries a token of this gaggled.
struct Bearer {
    pid: i32,
    instance: InstanceId,
    stat: Stat,
}

/// What is seen of an instance.
#[derive(Clone, Copy)]
enum Seen {
    Alive { instance: InstanceId, pid: i32, birth: StartTime },
    Gone { instance: InstanceId, pid: Option<i32> },
}

/// What is found of each program that had a process, or may have one that the journal has not heard of: of the instance
/// that the journal knows, and then of a later one.
///
/// `before` is the state at the end of the life before, to whose programs the recorder refers; `state` is the same
/// carried over. `reaped` is asked what the launcher has reaped, when everything has been looked at: what has gone by
/// then it has told of.
pub fn look(
    before: &State,
    state: &State,
    journal: &str,
    recorded: Option<&[Vec<Slot>]>,
    reaped: impl FnOnce() -> Vec<(i32, ExitStatus)>,
) -> Vec<(ProgramId, Found)> {
    let mut bearers: BTreeMap<String, Vec<Bearer>> = BTreeMap::new();
    for pid in proc::all() {
        if let (Some(token), Some(stat)) = (Token::of(pid, journal), proc::stat(pid)) {
            bearers.entry(token.program).or_default().push(Bearer { pid, instance: token.instance, stat });
        }
    }
    let ids = before.graph.names();
    let slots = |name: &str| ids.get(name).and_then(|old| recorded?.get(old.index())).map_or(&[][..], Vec::as_slice);
    let mut seen = Vec::new();
    for (id, policy) in state.graph.programs.iter() {
        let bearers = bearers.get(&*policy.name).map_or(&[][..], Vec::as_slice);
        let look = Look { known: &state.programs[id], slots: slots(&policy.name), bearers };
        seen.extend(look.at_known().into_iter().chain(look.at_later()).map(|seen| (id, seen)));
    }
    // Of an id that was given twice the first is meant: it was the program's until it ended.
    let reaped: BTreeMap<i32, ExitStatus> = reaped().into_iter().rev().collect();
    let find = |(id, seen): (ProgramId, Seen)| {
        let found = match seen {
            Seen::Alive { instance, pid, birth } => Found::Alive { instance, pid, birth },
            // A child writes itself down before it is anything: what is not written never was.
            Seen::Gone { instance, pid: None } if recorded.is_some() => Found::NeverRan { instance },
            Seen::Gone { instance, pid } => {
                let slots = slots(&state.graph.programs[id].name);
                let recorded = slots.iter().find(|slot| slot.instance == instance).and_then(|slot| slot.ended);
                let told = || pid.and_then(|pid| reaped.get(&pid).copied());
                let status = recorded.or_else(told).unwrap_or(ExitStatus::Unknown);
                Found::Ended { instance, status, left_behind: pid.map_or(0, sweep) }
            }
        };
        (id, found)
    };
    seen.into_iter().map(find).collect()
}

/// One program: what the journal knows of it, what was recorded, and the processes that carry its token.
struct Look<'a> {
    known: &'a ProgramState,
    slots: &'a [Slot],
    bearers: &'a [Bearer],
}

impl Look<'_> {
    /// The instance that the journal knows, if it has had a process to the end.
    fn at_known(&self) -> Option<Seen> {
        let (instance, birth) = (self.known.instance, self.known.birth);
        if !self.known.is_running() {
            return None;
        }
        match self.known.pid {
            Some(pid) if is_same(pid, birth) => Some(Seen::Alive { instance, pid, birth }),
            Some(pid) => Some(Seen::Gone { instance, pid: Some(pid) }),
            None => self.unrecorded(instance..=instance).or(Some(Seen::Gone { instance, pid: None })),
        }
    }

    /// A later instance, which the life before did not live to write down.
    fn at_later(&self) -> Option<Seen> {
        self.unrecorded(InstanceId(self.known.instance.0 + 1)..=InstanceId(u64::MAX))
    }

    /// Where the journal has no process id, the first of the main processes that carry the newest token is the one; and
    /// where there is none, what the recorder has.
    fn unrecorded(&self, instances: RangeInclusive<InstanceId>) -> Option<Seen> {
        let main = |bearer: &&Bearer| bearer.pid == bearer.stat.session && instances.contains(&bearer.instance);
        let newest =
            self.bearers.iter().filter(main).max_by_key(|bearer| (bearer.instance, Reverse(bearer.stat.birth.0)));
        if let Some(Bearer { pid, instance, stat }) = newest {
            return Some(Seen::Alive { instance: *instance, pid: *pid, birth: stat.birth });
        }
        let slot = self.slots.iter().rfind(|slot| instances.contains(&slot.instance))?;
        Some(Seen::Gone { instance: slot.instance, pid: Some(slot.pid) })
    }
}

/// Whether this is still the process that began then.
fn is_same(pid: i32, birth: StartTime) -> bool {
    proc::stat(pid).is_some_and(|stat| stat.birth == birth)
}

/// Kills what is left of the group of a main process that has gone. As long as there is anything, its number is not
/// given to another process; so one that has that number means that nothing is left.
fn sweep(pid: i32) -> u16 {
    if pid <= 1 || proc::stat(pid).is_some() {
        return 0;
    }
    let left_behind = proc::count_group(pid);
    if left_behind > 0 {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    left_behind
}
