//! The answer to a command waits for the journal: what was reported as done to an operator survives the death of gaggled.

use std::{convert::Infallible, future::Future, time::Duration};

use tokio::sync::mpsc;

use super::ReplyFn;
use crate::journal::writer_handle::JournalWriterHandle;

/// How long a disk that does not answer may hold up an answer. It goes out all the same then: the event that says that
/// the journal is not written is there for all to see.
const DISK_TIMEOUT: Duration = Duration::from_secs(3);

/// Holds answers back.
pub(super) struct ReplyGate {
    file: JournalWriterHandle,
    /// Every answer that is held back has a copy of it, and the last of them ends what is received.
    held: Option<mpsc::Sender<Infallible>>,
    all_sent: Option<mpsc::Receiver<Infallible>>,
}

impl ReplyGate {
    pub(super) fn new(file: JournalWriterHandle) -> Self {
        let (held, all_sent) = mpsc::channel(1);
        Self { file, held: Some(held), all_sent: Some(all_sent) }
    }

    /// The same answer, which is sent when everything that is committed by then has been written.
    pub(super) fn hold(&self, answer: ReplyFn) -> ReplyFn {
        let (file, held) = (self.file.clone(), self.held.clone());
        Box::new(move |mut reply| {
            let written = file.when_written();
            actix::spawn(async move {
                let written = tokio::time::timeout(DISK_TIMEOUT, written).await;
                reply.durable = if matches!(written, Ok(Ok(true))) { None } else { Some(false) };
                answer(reply);
                drop(held);
            });
        })
    }

    /// Ends when all that was held back has been sent.
    pub(super) fn end(&mut self) -> impl Future<Output = ()> + 'static {
        self.held = None;
        let all_sent = self.all_sent.take();
        async move {
            if let Some(mut all_sent) = all_sent {
                all_sent.recv().await;
            }
        }
    }
}
