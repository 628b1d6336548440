//! The bus: every event on an nng pub socket, and once a second the heartbeat.
//!
//! A separate thread folds, encodes and publishes events, so that the actors spend no time on it. A subscriber that is
//! too slow loses messages, the oldest first, and detects this by their numbers; the publisher does not wait for it.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use gaggled_core::{
    event::Envelope,
    protocol::{Heartbeat, Permits, access::Role, encode_message},
    state::State,
};
use nng::{
    Protocol, Socket,
    options::{Options, SendBufferSize},
};

use crate::{
    access::{Access, Peers},
    listen::{ListenError, listen, notice},
    nng_ffi::{self, LocalPeer},
    url::Url,
};

/// How often the heartbeat comes.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long after the start the first one comes: each of the next ones takes twice as long, up to [`HEARTBEAT`]. Followers of the
/// daemon before connect again in this time, and learn at once that there is another one.
const FIRST_BEAT: Duration = Duration::from_millis(60);

/// How many messages are kept for each subscriber: the most that nng allows.
pub(crate) const BUFFER: i32 = 8192;

/// For how long the socket stays open after the last event: nng does not report when subscribers have received it.
const LINGER: Duration = Duration::from_millis(100);

/// Until when this node may run what it has claimed: what the journal was told last, for the heartbeats.
#[derive(Clone, Debug, Default)]
pub struct PermitSlot(Arc<Mutex<Permits>>);

impl PermitSlot {
    /// The journal was told of these.
    pub fn set(&self, permits: Permits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = permits;
    }

    /// Whether this group may be run at this moment.
    pub fn allows(&self, group: &str, now: gaggled_core::base::time::Instant) -> bool {
        self.get().get(group).is_some_and(|until| *until > now)
    }

    fn get(&self) -> Permits {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The bus, before anything is published.
#[derive(Debug)]
pub struct Publisher {
    socket: Socket,
    subscribers: Arc<AtomicUsize>,
}

impl Publisher {
    /// Opens the socket, or says why not.
    pub fn bind(url: &Url, access: Access) -> Result<Self, ListenError> {
        let socket = nng_ffi::socket(Protocol::Pub0).map_err(|error| ListenError::new(url, error))?;
        socket.set_opt::<SendBufferSize>(BUFFER).map_err(|error| ListenError::new(url, error))?;
        let subscribers = Arc::new(AtomicUsize::new(0));
        let count = subscribers.clone();
        let is_open = access.is_open();
        let peers = Peers::default();
        let counting = socket.pipe_notify(move |pipe, event| {
            let may = |peer: Option<LocalPeer>| peer.is_none_or(|peer| access.role(peer) >= Role::Observe);
            notice(&peers, pipe, event, may);
            // A refused connection is reported as removed, too, although it was never added.
            count.store(peers.len(), Ordering::Relaxed);
        });
        counting.map_err(|error| ListenError::new(url, error))?;
        listen(&socket, url, is_open)?;
        Ok(Self { socket, subscribers })
    }

    /// Publishes what arrives, in a thread that ends after the sender has gone.
    pub fn publish(
        self,
        mut state: State,
        events: Receiver<Arc<Envelope>>,
        permits: PermitSlot,
    ) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("publisher".into()).spawn(move || {
            let mut span = FIRST_BEAT;
            let mut next_beat = deadline(span);
            loop {
                match events.recv_deadline(next_beat) {
                    Ok(envelope) => {
                        state.apply(&envelope);
                        self.send(&encode_message(&envelope, &state));
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        self.send(&Heartbeat::new(&state, permits.get()).encode());
                        span = (span * 2).min(HEARTBEAT);
                        next_beat = deadline(span);
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            self.send(&Heartbeat::new(&state, permits.get()).encode());
            if self.subscribers.load(Ordering::Relaxed) > 0 {
                let _ = crossbeam_channel::never::<()>().recv_timeout(LINGER);
            }
        })
    }

    fn send(&self, message: &str) {
        // Sending fails only if the message cannot be allocated; followers detect the gap by its number.
        let _ = self.socket.send(message.as_bytes());
    }
}

#[expect(clippy::disallowed_methods, reason = "the heartbeat is real time")]
fn deadline(span: Duration) -> Instant {
    Instant::now() + span
}
