//! How events change the state of a program of another node.

use super::{Phase, ProgramState};
use crate::{
    base::{
        ids::{InstanceId, Seq},
        time::Instant,
    },
    cluster::{RemoteRun, RemoteSource},
    event::RemoteEvent,
    process::Outcome,
};

impl ProgramState {
    /// Folds an event of a program of another node. Its runs are counted here, too, because one that is seen again after its
    /// node was lost is another run for its dependents.
    pub fn apply_remote(&mut self, seq: Seq, at: Instant, event: &RemoteEvent) {
        let before = self.phase;
        match event {
            RemoteEvent::Up { source, remote_instance } => {
                self.comes_up(source, *remote_instance);
                self.phase = Phase::Up;
                self.up_since = Some(at);
                self.succeeded = false;
            }
            RemoteEvent::Ready { source } => {
                self.remote_run().source = (**source).clone();
                self.ready_since = Some(at);
            }
            RemoteEvent::Down { source, outcome, .. } => {
                self.remote_run().source = (**source).clone();
                self.remote_down(seq, *outcome);
            }
            RemoteEvent::Completed { source, remote_instance, outcome } => {
                if self.phase == Phase::Up {
                    self.remote_run().source = (**source).clone();
                    self.remote_down(seq, *outcome);
                } else {
                    self.comes_up(source, *remote_instance);
                    self.outcome = *outcome;
                }
                self.succeeded = true;
                // It may have been seen only now that it has ended: a delay counts from here.
                (self.phase_since, self.phase_event) = (at, seq);
            }
            RemoteEvent::Unseen { reason, assumed_down } => {
                self.remote_run().unseen = Some(*reason);
                if *assumed_down {
                    self.remote_down(seq, None);
                }
            }
            RemoteEvent::Seen => self.remote_run().unseen = None,
        }
        if self.phase != before {
            (self.phase_since, self.phase_event) = (at, seq);
        }
        self.last_seq = seq;
    }

    fn comes_up(&mut self, source: &RemoteSource, instance: InstanceId) {
        self.instance.0 += 1;
        self.restarts += u64::from(self.instance > InstanceId(1));
        self.revision += 1;
        *self.remote_run() = RemoteRun { source: source.clone(), instance, unseen: None };
    }

    fn remote_down(&mut self, seq: Seq, outcome: Option<Outcome>) {
        if self.phase == Phase::Up {
            self.goes_down(seq);
            self.revision += 1;
        }
        self.succeeded = false;
        self.outcome = outcome;
        self.phase = Phase::Down;
        self.up_since = None;
        self.ready_since = None;
    }

    fn remote_run(&mut self) -> &mut RemoteRun {
        self.remote.get_or_insert_default()
    }
}
