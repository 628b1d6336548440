//! What `gaggled_controller` does: it asks the control channel, and prints the answer.

pub mod backoff;
mod handover;
mod history;
pub mod state_format;
mod status;
pub mod tail;

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use gaggled_core::{
    base::time::Millis,
    protocol::{Action, ErrorCode, Reply, ReplyError, Request},
};
use gaggled_gateways::client::{CallError, ControlClient};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::common::output;

/// Why a command was not done.
#[derive(Debug)]
pub enum CommandError {
    /// There was no answer.
    Call(CallError),
    /// The request was refused.
    Refused(ReplyError),
    /// The answer is not understood.
    Garbled(String),
    /// The answer cannot be printed.
    Output(std::io::Error),
}

impl Display for CommandError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Refused(error) => f.write_str(&error.message),
            Self::Garbled(why) => write!(f, "the answer of gaggled is not understood: {why}"),
            Self::Output(error) => write!(f, "the answer cannot be printed: {error}"),
        }
    }
}

impl CommandError {
    fn refused(code: ErrorCode, message: String) -> Self {
        Self::Refused(ReplyError { code, message })
    }

    /// Its exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Call(CallError::Unreachable { .. }) => 4,
            Self::Call(CallError::Timeout { .. }) => 5,
            Self::Call(CallError::TooLong { .. }) => 2,
            Self::Refused(error) => match error.code {
                ErrorCode::BadRequest | ErrorCode::NoSuchGroup | ErrorCode::NoSuchLevel => 2,
                ErrorCode::NoSuchProgram => 3,
                ErrorCode::TimedOut => 5,
                ErrorCode::BadVersion
                | ErrorCode::Forbidden
                | ErrorCode::ShuttingDown
                | ErrorCode::Failed
                | ErrorCode::RunsElsewhere
                | ErrorCode::Busy => 1,
            },
            Self::Call(CallError::Malformed { .. }) | Self::Garbled(_) | Self::Output(_) => 1,
        }
    }
}

/// A connection to the control channel, and how to print replies.
#[derive(Debug)]
pub struct Controller {
    /// Where gaggled answers.
    pub url: String,
    /// Whether JSON is printed instead of words.
    pub json: bool,
}

impl Controller {
    /// Asks, and reads the body of the reply.
    fn call<T: DeserializeOwned>(&self, action: Action, wait: Millis) -> Result<T, CommandError> {
        let caller = ControlClient::dial(&self.url).map_err(CommandError::Call)?;
        Self::ask(&caller, action, wait)
    }

    /// Sends a request. Because of its id, a request that is sent twice acts once.
    fn ask<T: DeserializeOwned>(caller: &ControlClient, action: Action, wait: Millis) -> Result<T, CommandError> {
        let within = ControlClient::TIMEOUT + Duration::from_millis(wait.0);
        let id = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        match caller.call(&Request::new(id, action), within).map_err(CommandError::Call)? {
            Reply { ok: true, body, durable, .. } => {
                if durable == Some(false) {
                    eprintln!(
                        "Warning: done, but the journal cannot be written now: if gaggled dies before that, this is \
                         forgotten; see `gaggled_controller events`"
                    );
                }
                let body = body.as_ref().map_or("null", |body| body.get());
                serde_json::from_str(body).map_err(|why| CommandError::Garbled(why.to_string()))
            }
            Reply { error: Some(error), .. } => Err(CommandError::Refused(error)),
            Reply { .. } => Err(CommandError::Garbled("neither done nor refused".to_owned())),
        }
    }

    /// Carries out a command that has no result to show.
    pub fn change(&self, wait: Millis, action: Action) -> Result<(), CommandError> {
        let body: Value = self.call(action, wait)?;
        if self.json { self.show(&body) } else { Ok(()) }
    }

    /// Ends gaggled; waits until that is done, if a time is given.
    pub fn shutdown(&self, wait: Option<Millis>) -> Result<(), CommandError> {
        let action = Action::Shutdown { wait: wait.is_some(), timeout_ms: wait };
        self.change(wait.unwrap_or_default(), action)
    }

    fn show(&self, body: &impl Serialize) -> Result<(), CommandError> {
        let text = if self.json { serde_json::to_string(body) } else { serde_json::to_string_pretty(body) };
        self.print(&text.map_err(|why| CommandError::Garbled(why.to_string()))?)
    }

    fn print(&self, text: &str) -> Result<(), CommandError> {
        let _ = self;
        output::line(text).map_err(CommandError::Output)
    }
}

/// Parses the body of a reply.
fn understood<T: DeserializeOwned>(body: Value) -> Result<T, CommandError> {
    serde_json::from_value(body).map_err(|why| CommandError::Garbled(why.to_string()))
}
