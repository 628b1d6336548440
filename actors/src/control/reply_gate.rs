//! Holds the reply to a command back until its events are written: what an operator sees as done survives a crash.

use std::{convert::Infallible, future::Future, time::Duration};

use tokio::sync::mpsc;

use super::messages::ReplyFn;
use crate::journal::writer_handle::JournalWriterHandle;

/// How long a disk that does not respond may delay a reply. After that the reply is sent all the same, marked as not
/// durable.
const DISK_TIMEOUT: Duration = Duration::from_secs(3);

/// Holds answers back.
pub(super) struct ReplyGate {
    file: JournalWriterHandle,
    /// Every delayed reply holds a clone; when the last one is dropped, `all_sent` is closed.
    held: Option<mpsc::Sender<Infallible>>,
    all_sent: Option<mpsc::Receiver<Infallible>>,
}

impl ReplyGate {
    pub(super) fn new(file: JournalWriterHandle) -> Self {
        let (held, all_sent) = mpsc::channel(1);
        Self { file, held: Some(held), all_sent: Some(all_sent) }
    }

    /// Delays a reply until all events that were committed before it have been written.
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

    /// Completes when all delayed replies have been sent.
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
