//! A thread for requests that block: reading segments, reading a configuration, checking another binary.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use actix::Recipient;
use crossbeam_channel::Sender;
use gaggled_core::protocol::{ErrorCode, Reply};

use super::messages::{Job, JobFinished, JobResult, ReplyFn, RequestContext};
use crate::machine_actor::panic_message;

/// How many jobs may wait for the thread.
const QUEUE_MAX: usize = 64;

struct QueuedJob {
    asked: RequestContext,
    job: Job,
    answer: ReplyFn,
    control: Recipient<JobFinished>,
}

/// The queue of the thread, which is started for the first job and ends with this value.
#[derive(Default)]
pub(super) struct BlockingWorker(Option<Sender<QueuedJob>>);

impl BlockingWorker {
    fn start() -> Option<Sender<QueuedJob>> {
        let (orders, received) = crossbeam_channel::bounded(QUEUE_MAX);
        let work = move || received.into_iter().for_each(QueuedJob::carry_out);
        thread::Builder::new().name("ctl-worker".into()).spawn(work).ok().map(|_| orders)
    }

    pub(super) fn give(&mut self, asked: RequestContext, job: Job, answer: ReplyFn, control: Recipient<JobFinished>) {
        self.0 = self.0.take().or_else(Self::start);
        if let Some(orders) = &self.0 {
            // If the queue is full the job is dropped, and its responder sends the client an error.
            let _ = orders.try_send(QueuedJob { asked, job, answer, control });
        }
    }
}

impl QueuedJob {
    fn carry_out(self) {
        let Self { asked, job, answer, control } = self;
        let concluded = catch_unwind(AssertUnwindSafe(|| job(&asked.id))).unwrap_or_else(|panic| {
            let why = format!("a bug in gaggled: {}", panic_message(panic.as_ref()));
            JobResult::Reply(Reply::refused(&asked.id, ErrorCode::Failed, why))
        });
        control.do_send(JobFinished { asked, concluded, answer });
    }
}
