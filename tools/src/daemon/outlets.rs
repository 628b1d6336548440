//! Where committed events go besides the actors whom they concern: the control actor, the bus and the log.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix::Addr;
use crossbeam_channel::Sender;
use gaggled_actors::{
    control::{ControlActor, Declined},
    journal::{Decline, Sink},
    shell::Committed,
};
use gaggled_core::event::{Envelope, Event, SystemEvent};
use tokio::sync::oneshot;

use crate::journal_log::JournalLog;

/// The control actor, which can be started only when the journal is there that it speaks to.
#[derive(Clone, Default)]
pub(super) struct ControlSlot(Rc<RefCell<Option<Addr<ControlActor>>>>);

impl ControlSlot {
    /// From now on the actor hears everything. Nothing is committed before.
    pub(super) fn fill(&self, control: Addr<ControlActor>) {
        *self.0.borrow_mut() = Some(control);
    }

    pub(super) fn sink(&self) -> Sink {
        let slot = self.clone();
        Box::new(move |envelope| slot.tell(|control| control.do_send(Committed(envelope.clone()))))
    }

    pub(super) fn decline(&self) -> Decline {
        let slot = self.clone();
        Box::new(move |cause, refusal| {
            slot.tell(|control| control.do_send(Declined { cause: cause.clone(), refusal: refusal.clone() }));
        })
    }

    fn tell(&self, tell: impl FnOnce(&Addr<ControlActor>)) {
        if let Some(control) = &*self.0.borrow() {
            tell(control);
        }
    }
}

/// The threads that end with the last event.
pub(super) struct Threads {
    pub events: Sender<Arc<Envelope>>,
    pub log: JournalLog,
    /// Is told how many programs outlived the shutdown.
    pub completed: oneshot::Sender<u32>,
}

impl Threads {
    pub(super) fn sink(self) -> Sink {
        let mut threads = Some(self);
        Box::new(move |envelope| {
            let Some(Self { events, log, .. }) = &threads else { return };
            let _ = events.send(envelope.clone());
            log.event(envelope);
            if let Event::System(SystemEvent::ShutdownCompleted { survivors }) = envelope.event {
                log.end();
                if let Some(Self { completed, .. }) = threads.take() {
                    let _ = completed.send(survivors);
                }
            }
        })
    }
}
