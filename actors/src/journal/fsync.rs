//! Synchronises files in a separate thread, so that events are written meanwhile and survive a crash of gaggled.

use std::{fs::File, io, sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender};

/// A file that has been synchronised, and whether that has worked.
type Done = (Arc<File>, io::Result<()>);

/// A handle of the thread, which ends with this value.
pub(super) struct FsyncThread {
    orders: Sender<Arc<File>>,
    done: Receiver<Done>,
    busy: bool,
}

impl FsyncThread {
    pub(super) fn start() -> io::Result<Self> {
        let (orders, files) = crossbeam_channel::bounded::<Arc<File>>(1);
        let (tell, done) = crossbeam_channel::bounded(1);
        let work = move || {
            for file in files {
                let result = file.sync_data();
                if tell.send((file, result)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("fsync".into()).spawn(work)?;
        Ok(Self { orders, done, busy: false })
    }

    /// Begins to synchronise a file, unless another synchronisation is under way.
    pub(super) fn begin(&mut self, file: &Arc<File>) -> bool {
        let begun = !self.busy && self.orders.try_send(file.clone()).is_ok();
        self.busy |= begun;
        begun
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Where files are returned when they are synchronised.
    pub(super) fn done(&self) -> &Receiver<Done> {
        &self.done
    }

    pub(super) fn free(&mut self) {
        self.busy = false;
    }
}
