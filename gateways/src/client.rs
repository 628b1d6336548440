//! The client of the control channel: one request, one answer, with a limit on everything.

use std::time::Duration;

use gaggled_core::protocol::{ANSWERED_MAX, REQUEST_MAX, Reply, Request};
use nng::{
    Protocol, Socket,
    options::{
        Options, ReconnectMaxTime, ReconnectMinTime, RecvMaxSize, RecvTimeout, SendTimeout,
        protocol::reqrep::ResendTime,
    },
};
use thiserror::Error;

use crate::nng_ffi;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// No process listens there.
    #[error("cannot reach gaggled at {url} ({why}): {}", cure(*why))]
    Unreachable {
        /// The url.
        url: String,
        /// Why.
        why: nng::Error,
    },
    /// A process listens, and does not answer in time.
    #[error("gaggled at {url} did not answer within {} s", .within.as_secs_f32())]
    Timeout {
        /// The url.
        url: String,
        /// How long the client waited.
        within: Duration,
    },
    /// The request is longer than the server accepts.
    #[error(
        "the request has {bytes} bytes, and may have {REQUEST_MAX}: name groups or patterns, or ask in several requests"
    )]
    TooLong {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The answer cannot be parsed.
    #[error("answer of gaggled at {url} is not understood: {why}")]
    Malformed {
        /// The url.
        url: String,
        /// Why.
        why: String,
    },
}

/// A connection to the control channel.
#[derive(Debug)]
pub struct ControlClient {
    socket: Socket,
    url: String,
}

fn cure(why: nng::Error) -> &'static str {
    if why == nng::Error::PermissionDenied {
        "ask as the user that runs it, or as root"
    } else {
        "is it running? give its url with -u, or its configuration with -c"
    }
}

impl ControlClient {
    /// The time limit for a request that does not wait for programs.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// Connects; an error if no process listens.
    pub fn dial(url: &str) -> Result<Self, CallError> {
        let unreachable = |why| CallError::Unreachable { url: url.to_owned(), why };
        let socket = Self::socket().map_err(unreachable)?;
        socket.dial(url).map_err(unreachable)?;
        Ok(Self { socket, url: url.to_owned() })
    }

    /// Connects as soon as a process listens, and again whenever the connection is lost.
    pub fn dial_whenever(url: &str) -> Result<Self, CallError> {
        let unreachable = |why| CallError::Unreachable { url: url.to_owned(), why };
        let socket = Self::socket().map_err(unreachable)?;
        socket.dial_async(url).map_err(unreachable)?;
        Ok(Self { socket, url: url.to_owned() })
    }

    /// The url of the control channel.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn socket() -> nng::Result<Socket> {
        let socket = nng_ffi::socket(Protocol::Req0)?;
        socket.set_opt::<RecvMaxSize>(0)?;
        socket.set_opt::<ReconnectMinTime>(Some(Duration::from_millis(10)))?;
        socket.set_opt::<ReconnectMaxTime>(Some(Duration::from_secs(1)))?;
        socket.set_opt::<SendTimeout>(Some(Self::TIMEOUT))?;
        // A request that is lost with its connection is sent again; its id prevents a second execution.
        socket.set_opt::<ResendTime>(Some(Duration::from_secs(60)))?;
        Ok(socket)
    }

    /// Asks, and waits for the answer.
    pub fn call(&self, request: &Request, within: Duration) -> Result<Reply, CallError> {
        let text = serde_json::to_vec(request).map_err(|why| self.garbled(&why))?;
        if text.len() > ANSWERED_MAX {
            return Err(CallError::TooLong { bytes: text.len() });
        }
        let silent = || CallError::Timeout { url: self.url.clone(), within };
        let _ = self.socket.set_opt::<RecvTimeout>(Some(within));
        self.socket.send(text.as_slice()).map_err(|(_, why)| match why {
            nng::Error::TimedOut => silent(),
            why => CallError::Unreachable { url: self.url.clone(), why },
        })?;
        let answer = self.socket.recv().map_err(|why| match why {
            nng::Error::TimedOut => silent(),
            why => CallError::Unreachable { url: self.url.clone(), why },
        })?;
        serde_json::from_slice(&answer).map_err(|why| self.garbled(&why))
    }

    fn garbled(&self, why: &serde_json::Error) -> CallError {
        CallError::Malformed { url: self.url.clone(), why: why.to_string() }
    }
}
