//! Listening on a url, and counting its connections.

use std::{
    io::{self, Read},
    net::TcpStream,
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
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
    /// Another process listens on it.
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

/// How long to wait for another process to close its listening socket.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// Listens on a url. A local socket is for its owner alone, unless `is_open`: each peer is checked then.
///
/// If gaggled dies, or executes itself again, just after it has forked a child, the child has its sockets until it
/// executes its own program. Until then they seem to be in use.
pub(crate) fn listen(socket: &Socket, url: &Url, is_open: bool) -> Result<(), ListenError> {
    let until = now() + CLOSED_WITHIN;
    loop {
        match try_listen(socket, url, is_open) {
            Err(ListenError::InUse(_)) if is_closed(url, until) => {}
            done => return done,
        }
    }
}

/// Waits until no process listens on a url any more; false if one accepts a connection, or still listens at `until`.
fn is_closed(url: &Url, until: Instant) -> bool {
    let left = until.saturating_duration_since(now());
    // A time of zero would wait for ever.
    if left.is_zero() {
        return false;
    }
    let mut stream = match connect(url, left) {
        Ok(stream) => stream,
        // The file of a local socket that no process listens on is replaced.
        Err(error) => return matches!(url, Url::Ipc(_)) && error.kind() == io::ErrorKind::ConnectionRefused,
    };
    // A live gaggled accepts the connection and sends a greeting; a closed listener ends connections it has not
    // accepted.
    match stream.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Connects to a url; reading takes at most this long.
fn connect(url: &Url, within: Duration) -> io::Result<Box<dyn Read>> {
    Ok(match url {
        Url::Ipc(path) => {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            // A listener that does not accept would block `connect` as soon as its backlog is full.
            socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(within))?;
            Box::new(stream)
        }
        Url::Tcp { text, .. } => {
            let address = text.trim_start_matches("tcp://").parse().map_err(io::Error::other)?;
            let stream = TcpStream::connect_timeout(&address, within)?;
            stream.set_read_timeout(Some(within))?;
            Box::new(stream)
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "the wait for a socket is real time")]
fn now() -> Instant {
    Instant::now()
}

fn try_listen(socket: &Socket, url: &Url, is_open: bool) -> Result<(), ListenError> {
    let failed = |error| ListenError::new(url, error);
    let builder = nng::ListenerBuilder::new(socket, &url.text()).map_err(failed)?;
    if matches!(url, Url::Ipc(_)) {
        builder.set_opt::<Permissions>(if is_open { 0o666 } else { 0o600 }).map_err(failed)?;
    }
    builder.start().map(|_| ()).map_err(|(_, error)| failed(error))
}

/// Counts the connections of a socket, and closes those that exceed a limit or are not allowed.
pub(crate) fn notice(peers: &Peers, pipe: Pipe, event: PipeEvent, may: impl Fn(Option<LocalPeer>) -> bool) {
    let id = nng_ffi::pipe_id(pipe);
    match event {
        PipeEvent::AddPre if !may(local_peer(pipe)) || !peers.admit(pipe, id) => nng_ffi::close(pipe),
        PipeEvent::RemovePost => peers.forget(id),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    fn url(directory: &tempfile::TempDir) -> Url {
        Url::Ipc(directory.path().join("socket"))
    }

    #[test]
    fn a_listener_that_closes_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let Url::Ipc(path) = url(&directory) else { unreachable!("it is local") };
        let listener = UnixListener::bind(&path).expect("it is free");
        // It is closed as soon as anything has connected.
        let closing = thread::spawn(move || drop(listener.accept()));
        let socket = Socket::new(nng::Protocol::Pub0).expect("a socket");
        listen(&socket, &url(&directory), false).expect("it is closed");
        closing.join().expect("no panic");
    }

    #[test]
    fn a_listener_that_answers_is_in_use_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let [first, second] =
            [nng::Protocol::Pub0, nng::Protocol::Pub0].map(|kind| Socket::new(kind).expect("a socket"));
        listen(&first, &url(&directory), false).expect("it is free");
        let begun = now();
        assert!(matches!(listen(&second, &url(&directory), false), Err(ListenError::InUse(_))));
        assert!(begun.elapsed() < CLOSED_WITHIN);
    }
}
