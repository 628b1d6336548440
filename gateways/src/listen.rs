//! Listening on a url, and counting its connections.

use nng::{
    Pipe, PipeEvent, Socket,
    options::{Options, transport::ipc::Permissions},
};
use thiserror::Error;

use crate::{
    access::Peers,
    nng_ffi::{self, LocalPeer, local_peer},
    url::Url,
};

/// Why a url cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process does.
    #[error("{0} is in use: another gaggled, or another program, listens there; stop it, or use another url")]
    InUse(String),
    /// Anything else.
    #[error("cannot listen on {url}: {error}")]
    Other {
        /// The url.
        url: String,
        /// Why.
        error: nng::Error,
    },
}

impl ListenError {
    pub(crate) fn new(url: &Url, error: nng::Error) -> Self {
        match error {
            nng::Error::AddressInUse => Self::InUse(url.text()),
            error => Self::Other { url: url.text(), error },
        }
    }
}

/// Listens on a url. A local socket is for its owner alone, unless each peer is looked at.
pub(crate) fn listen(socket: &Socket, url: &Url, is_open: bool) -> Result<(), ListenError> {
    let failed = |error| ListenError::new(url, error);
    let builder = nng::ListenerBuilder::new(socket, &url.text()).map_err(failed)?;
    if matches!(url, Url::Ipc(_)) {
        builder.set_opt::<Permissions>(if is_open { 0o666 } else { 0o600 }).map_err(failed)?;
    }
    builder.start().map(|_| ()).map_err(|(_, error)| failed(error))
}

/// Keeps count of the connections of a socket, and ends those that are too many or not allowed.
pub(crate) fn notice(peers: &Peers, pipe: Pipe, event: PipeEvent, may: impl Fn(Option<LocalPeer>) -> bool) {
    let id = nng_ffi::pipe_id(pipe);
    match event {
        PipeEvent::AddPre if !may(local_peer(pipe)) || !peers.admit(pipe, id) => pipe.close(),
        PipeEvent::RemovePost => peers.forget(id),
        _ => {}
    }
}
