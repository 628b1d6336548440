//! The server of the control channel: an nng rep socket with as many contexts as there are requests under way.
//!
//! A request may be answered much later, when programs have reached a state, so each has a context of its own, and
//! there is always one more that listens.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use gaggled_core::protocol::{
    ANSWERED_MAX, ErrorCode, REQUEST_MAX, Reply, ReplyError, Request,
    access::{Peer, Role},
};
use nng::{
    Aio, AioResult, Context, Message, Protocol, Socket,
    options::{Options, RecvMaxSize},
};

use crate::{
    access::{Access, Peers, RATE, Verdict},
    client::CallError,
    listen::{ListenError, listen, notice},
    nng_ffi::{self, local_peer},
    url::Url,
};

/// How long a client may take to receive an answer, which occupies a context until then.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How many requests may be under way at once.
const CONTEXTS: usize = 4096;

/// How long a request that exceeds the rate is held before it is refused.
const HOLD_TIME: Duration = Duration::from_secs(1);

/// The connection whose request a context holds, if it holds one.
type Held = Mutex<Option<i32>>;

/// Sends the one answer to a request. If it is dropped without an answer, the client gets the error `busy`.
#[derive(Debug)]
pub struct Responder {
    id: String,
    /// The context that received the request; `None` once it was answered.
    place: Option<(Context, Aio)>,
}

impl Responder {
    /// Answers.
    pub fn send(mut self, reply: &Reply) {
        self.answer(reply);
    }

    fn answer(&mut self, reply: &Reply) {
        if let Some((context, aio)) = self.place.take() {
            // If the client is gone, or does not receive the answer in time, the callback makes the context listen
            // again.
            let _ = aio.set_timeout(Some(ANSWER_TIME));
            let _ = context.send(&aio, reply.encode().as_bytes());
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let reply = Reply::refused(&self.id, ErrorCode::Busy, "gaggled is too busy to answer");
        self.answer(&reply);
    }
}

/// Takes requests. The daemon connects it to the control actor: `handler` in `tools/src/daemon/loaded_config.rs`.
pub type Handler = Arc<dyn Fn(Peer, Request, Responder) + Send + Sync>;

/// The server. It is meant to exist as long as the process.
pub struct Server {
    socket: Socket,
    url: Url,
    access: Access,
    peers: Arc<Peers>,
    handler: Handler,
    idle: AtomicUsize,
    /// All contexts ever made: one that is dropped in its own callback would block the thread of that callback for
    /// ever.
    workers: Mutex<Vec<(Context, Aio)>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The refusal of a request that is too long; the client uses its text for requests that it does not send.
fn too_long(bytes: usize) -> ReplyError {
    ReplyError { code: ErrorCode::BadRequest, message: CallError::TooLong { bytes }.to_string() }
}

impl Server {
    /// Opens the socket, or says why not. Nothing is read before [`Server::serve`].
    pub fn bind(url: &Url, access: Access, handler: Handler) -> Result<Arc<Self>, ListenError> {
        let failed = |error| ListenError::new(url, error);
        let socket = nng_ffi::socket(Protocol::Rep0).map_err(failed)?;
        socket.set_opt::<RecvMaxSize>(ANSWERED_MAX).map_err(failed)?;
        let peers = Arc::new(Peers::default());
        let noticed = peers.clone();
        // Peers without rights may connect, so that each of their requests is answered with an error.
        let noticing = socket.pipe_notify(move |pipe, event| notice(&noticed, pipe, event, |_| true));
        noticing.map_err(failed)?;
        listen(&socket, url, access.is_open())?;
        Ok(Arc::new(Self {
            socket,
            url: url.clone(),
            access,
            peers,
            handler,
            idle: AtomicUsize::new(0),
            workers: Mutex::new(Vec::new()),
        }))
    }

    /// Begins to read requests.
    pub fn serve(self: &Arc<Self>) -> nng::Result<()> {
        (0..8).try_for_each(|_| self.add_worker())
    }

    fn add_worker(self: &Arc<Self>) -> nng::Result<()> {
        let context = Context::new(&self.socket)?;
        let (server, own, held) = (self.clone(), context.clone(), Held::default());
        let aio = Aio::new(move |aio, result| server.advance(&own, &held, &aio, result))?;
        self.listen_again(&context, &aio)?;
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push((context, aio));
        Ok(())
    }

    fn advance(self: &Arc<Self>, context: &Context, held: &Held, aio: &Aio, result: AioResult) {
        match result {
            AioResult::Recv(Ok(message)) => {
                let last = self.idle.fetch_sub(1, Ordering::SeqCst) == 1;
                let known = self.workers.lock().unwrap_or_else(PoisonError::into_inner).len();
                if last && known < CONTEXTS {
                    // If that fails, the next request only has to wait until this one is answered.
                    let _ = self.add_worker();
                }
                self.take(context, held, aio, message);
            }
            AioResult::Recv(Err(nng::Error::Closed | nng::Error::Canceled)) => {}
            AioResult::Recv(Err(_)) => {
                let _ = context.recv(aio);
            }
            AioResult::Sleep(_) => self.refuse_held(context, held, aio),
            AioResult::Send(_) => {
                let _ = self.listen_again(context, aio);
            }
        }
    }

    /// Refuses a request that was held for a while.
    fn refuse_held(&self, context: &Context, held: &Held, aio: &Aio) {
        if let Some(id) = held.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.peers.release(id);
        }
        let why = format!("too many requests: a user may send {RATE} a second");
        let responder = Responder { id: String::new(), place: Some((context.clone(), aio.clone())) };
        responder.send(&Reply::refused("", ErrorCode::Busy, why));
    }

    /// Handles a request, unless its sender exceeds the rate.
    fn take(&self, context: &Context, held: &Held, aio: &Aio, mut message: Message) {
        let pipe = message.pipe().map(|pipe| (nng_ffi::pipe_id(pipe), pipe));
        // Without a pipe the connection has ended, and the answer is lost.
        let verdict = pipe.map_or(Verdict::Answer, |(id, _)| self.peers.count(id));
        match (verdict, pipe) {
            (Verdict::Hold, Some((id, _))) => {
                *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
                // The context is used for nothing else meanwhile.
                if aio.sleep(HOLD_TIME).is_err() {
                    self.refuse_held(context, held, aio);
                }
            }
            (Verdict::Close, Some((_, pipe))) => {
                nng_ffi::close(pipe);
                let _ = self.listen_again(context, aio);
            }
            (Verdict::Answer | Verdict::Hold | Verdict::Close, _) => self.request(context, aio, message),
        }
    }

    /// Waits for the next request. The context is counted as idle before, because a request may arrive at once.
    fn listen_again(&self, context: &Context, aio: &Aio) -> nng::Result<()> {
        self.idle.fetch_add(1, Ordering::SeqCst);
        let _ = aio.set_timeout(None);
        context.recv(aio).inspect_err(|_| {
            self.idle.fetch_sub(1, Ordering::SeqCst);
        })
    }

    fn request(&self, context: &Context, aio: &Aio, mut message: Message) {
        let peer = self.peer(&mut message);
        let mut responder = Responder { id: String::new(), place: Some((context.clone(), aio.clone())) };
        let decoded =
            if message.len() > REQUEST_MAX { Err(too_long(message.len())) } else { Request::decode(&message) };
        match decoded {
            Ok(request) => {
                responder.id.clone_from(&request.id);
                (self.handler)(peer, request, responder);
            }
            Err(error) => responder.send(&Reply::refused("", error.code, error.message)),
        }
    }

    /// The sender of a request and its role: root and the daemon's own user may do everything, others what is
    /// configured.
    fn peer(&self, message: &mut Message) -> Peer {
        match &self.url {
            Url::Ipc(_) => match message.pipe().and_then(local_peer) {
                Some(peer) => {
                    Peer { who: format!("uid {} (pid {})", peer.uid, peer.pid), role: self.access.role(peer) }
                }
                None => Peer { who: "a disconnected peer".to_owned(), role: Role::Nothing },
            },
            Url::Tcp { text, trusted } => {
                Peer { who: format!("a client of {text}"), role: if *trusted { Role::Admin } else { Role::Observe } }
            }
        }
    }
}
