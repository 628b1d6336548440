//! Where committed events go besides the actors whom they concern: the control actor, the bus and the log.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix::Addr;
use crossbeam_channel::Sender;
use gaggled_actors::{
    control::{ControlActor, ProposalRefused},
    journal::{RefusalHandler, Sink},
    messages::Committed,
};
use gaggled_core::{
    event::{Envelope, Event, Handover, SystemEvent},
    process::ExitStatus,
};
use tokio::sync::oneshot;

use crate::daemon::event_log::JournalLog;

/// A slot for the control actor, which can be started only after the journal actor.
#[derive(Clone, Default)]
pub(super) struct ControlSink(Rc<RefCell<Option<Addr<ControlActor>>>>);

impl ControlSink {
    /// Sets the actor, which gets all events from now on. None is committed before.
    pub(super) fn fill(&self, control: Addr<ControlActor>) {
        *self.0.borrow_mut() = Some(control);
    }

    pub(super) fn sink(&self) -> Sink {
        let slot = self.clone();
        Box::new(move |envelope, _| slot.tell(|control| control.do_send(Committed(envelope.clone()))))
    }

    pub(super) fn decline(&self) -> RefusalHandler {
        let slot = self.clone();
        Box::new(move |cause, refusal| {
            slot.tell(|control| control.do_send(ProposalRefused { cause: cause.clone(), refusal: refusal.clone() }));
        })
    }

    fn tell(&self, tell: impl FnOnce(&Addr<ControlActor>)) {
        if let Some(control) = &*self.0.borrow() {
            tell(control);
        }
    }
}

/// The last event of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastEvent {
    /// Everything has stopped except `survivors` programs. `essential_exit` is set if an essential program has caused
    /// that.
    Stopped { survivors: u32, essential_exit: Option<ExitStatus> },
    /// Another daemon follows.
    HandedOver(Handover),
}

/// The threads that get all events.
pub(super) struct ThreadSinks {
    pub events: Sender<Arc<Envelope>>,
    pub log: JournalLog,
    /// Gets the last event.
    pub ended: oneshot::Sender<LastEvent>,
}

impl ThreadSinks {
    pub(super) fn sink(self) -> Sink {
        let Self { events, log, ended } = self;
        let (mut events, mut ended) = (Some(events), Some(ended));
        Box::new(move |envelope, state| {
            let Some(bus) = &events else { return };
            let _ = bus.send(envelope.clone());
            log.event(envelope);
            let end = match envelope.event {
                Event::System(SystemEvent::ShutdownCompleted { unkillable: survivors }) => {
                    // The last event: without the sender the thread of the bus ends.
                    events = None;
                    log.end();
                    LastEvent::Stopped { survivors, essential_exit: state.essential_exit }
                }
                // Reports of the host may still follow.
                Event::System(SystemEvent::HandoverStarted { kind: to }) => LastEvent::HandedOver(to),
                Event::System(_)
                | Event::Program(..)
                | Event::Remote(..)
                | Event::Dependency(..)
                | Event::Group(..) => return,
            };
            if let Some(ended) = ended.take() {
                let _ = ended.send(end);
            }
        })
    }
}
