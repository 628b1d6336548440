//! Invariants of groups: which programs are admitted, and when a group has reached its level.

use super::JournalAudit;
use crate::{
    base::ids::{GroupId, ProgramId, Seq},
    event::{Cause, Envelope, ProgramEvent},
    graph::{Policy, RESTART},
    state::LevelSwitch,
};

impl JournalAudit {
    /// I25, I26 and I27.
    pub(super) fn moves(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        if let Some(exists) = event.sets_running() {
            self.seen(id).exists = exists;
        }
        match event {
            ProgramEvent::LevelStartRequested { .. } => self.enters(id, envelope),
            ProgramEvent::LevelStopRequested { .. } => self.seen(id).is_in = false,
            ProgramEvent::StartRequested | ProgramEvent::RestartRequested => self.seen(id).is_in = true,
            ProgramEvent::Starting { .. } => {
                if !self.seen(id).is_in && envelope.cause != Cause::Kernel {
                    let found = format!("I25: event {}: {id:?} starts, not admitted by its group", envelope.seq);
                    self.violations.push(found);
                }
            }
            ProgramEvent::Started { .. }
            | ProgramEvent::Adopted { .. }
            | ProgramEvent::Daemonized { .. }
            | ProgramEvent::Ready { .. }
            | ProgramEvent::Unhealthy { .. }
            | ProgramEvent::SpawnFailed { .. }
            | ProgramEvent::Stopping { .. }
            | ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::KillRequested { .. }
            | ProgramEvent::Exited { .. }
            | ProgramEvent::Signalled { .. }
            | ProgramEvent::StopRequested => {}
        }
    }

    /// I28.
    pub(super) fn arrives(&mut self, group: GroupId, seq: Seq) {
        let missing = |id: &&ProgramId| {
            let (policy, seen) = (&self.graph.programs[**id], &self.programs[**id]);
            policy.autostart && self.groups[group].runs(policy) && !seen.operator_down && !seen.is_in
        };
        if let Some(id) = self.graph.groups[group].members.iter().find(missing) {
            self.violations.push(format!("I28: event {seq}: {group:?} has reached its level without {id:?}"));
        }
    }

    fn enters(&mut self, id: ProgramId, envelope: &Envelope) {
        let graph = self.graph.clone();
        let policy = &graph.programs[id];
        self.seen(id).is_in = true;
        let Some(group) = policy.group else { return };
        let members = &graph.groups[group].members;
        let restarts = self.groups[group].level_switch == LevelSwitch::Restarting;
        let requested_by = self.groups[group].clone();
        let level = requested_by.level.clone();
        let runs = |policy: &Policy| requested_by.runs(policy) || restarts && policy.names(RESTART);
        let mut wrong = Vec::new();
        if !runs(policy) {
            wrong.push(format!("I25: event {}: {id:?} is admitted at level {level}", envelope.seq));
        }
        for member in members {
            let seen = &self.programs[*member];
            if !seen.is_in && seen.exists {
                wrong.push(format!("I26: event {}: {id:?} is admitted before {member:?} has stopped", envelope.seq));
            }
            let other = &graph.programs[*member];
            let holds_back = *member < id && other.mode.is_gate() && runs(other) && seen.is_in;
            if holds_back && seen.completed.is_none() {
                wrong.push(format!("I27: event {}: {id:?} is admitted before {member:?} has ended well", envelope.seq));
            }
        }
        self.violations.append(&mut wrong);
    }
}
