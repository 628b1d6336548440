//! What `gaggled_controller` does: it asks the control channel, and prints the answer.

mod history;
mod renewal;
mod views;

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use gaggled_core::{
    time::Millis,
    wire::{Action, ErrorCode, Reply, ReplyError, Request},
};
use gaggled_gateways::call::{CallError, Caller};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::output;

/// Why a command was not done.
#[derive(Debug)]
pub enum Failure {
    /// There was no answer.
    Call(CallError),
    /// The answer was no.
    Refused(ReplyError),
    /// The answer is not understood.
    Garbled(String),
    /// The answer cannot be printed.
    Output(std::io::Error),
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Refused(error) => f.write_str(&error.message),
            Self::Garbled(why) => write!(f, "the answer of gaggled is not understood: {why}"),
            Self::Output(error) => write!(f, "the answer cannot be printed: {error}"),
        }
    }
}

impl Failure {
    fn refused(code: ErrorCode, message: String) -> Self {
        Self::Refused(ReplyError { code, message })
    }

    /// The exit status that tells of it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Call(CallError::Unreachable { .. }) => 4,
            Self::Call(CallError::Silent { .. }) => 5,
            Self::Call(CallError::TooLong { .. }) => 2,
            Self::Refused(error) => match error.code {
                ErrorCode::BadRequest | ErrorCode::NoSuchGroup | ErrorCode::NoSuchLevel => 2,
                ErrorCode::NoSuchProgram => 3,
                ErrorCode::TimedOut => 5,
                ErrorCode::BadVersion
                | ErrorCode::Forbidden
                | ErrorCode::ShuttingDown
                | ErrorCode::Failed
                | ErrorCode::Busy => 1,
            },
            Self::Call(CallError::Garbled { .. }) | Self::Garbled(_) | Self::Output(_) => 1,
        }
    }
}

/// One use of the control channel.
#[derive(Debug)]
pub struct Controller {
    /// Where gaggled answers.
    pub url: String,
    /// Whether JSON is printed instead of words.
    pub json: bool,
}

impl Controller {
    fn call(&self, action: Action, wait: Millis) -> Result<Value, Failure> {
        let caller = Caller::dial(&self.url).map_err(Failure::Call)?;
        Self::ask(&caller, action, wait)
    }

    /// Asks. The id makes a request that is sent twice act once.
    fn ask(caller: &Caller, action: Action, wait: Millis) -> Result<Value, Failure> {
        let within = Caller::TIMEOUT + Duration::from_millis(wait.0);
        let id = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        match caller.call(&Request::new(id, action), within).map_err(Failure::Call)? {
            Reply { ok: true, body, durable, .. } => {
                if durable == Some(false) {
                    eprintln!(
                        "Warning: done, but the journal cannot be written now: if gaggled dies before it can be, this is \
                         forgotten; see `gaggled_controller events`"
                    );
                }
                match body {
                    Some(body) => serde_json::from_str(body.get()).map_err(|why| Failure::Garbled(why.to_string())),
                    None => Ok(Value::Null),
                }
            }
            Reply { error: Some(error), .. } => Err(Failure::Refused(error)),
            Reply { .. } => Err(Failure::Garbled("neither done nor refused".to_owned())),
        }
    }

    /// A command that has nothing to show but that it was done.
    pub fn change(&self, wait: Millis, action: Action) -> Result<(), Failure> {
        let body = self.call(action, wait)?;
        if self.json { self.show(&body) } else { Ok(()) }
    }

    /// Ends gaggled; waits until that is done, if a time is given.
    pub fn shutdown(&self, wait: Option<Millis>) -> Result<(), Failure> {
        let action = Action::Shutdown { wait: wait.is_some(), timeout_ms: wait };
        self.change(wait.unwrap_or_default(), action)
    }

    fn show(&self, body: &Value) -> Result<(), Failure> {
        let text = if self.json { body.to_string() } else { format!("{body:#}") };
        self.print(&text)
    }

    fn print(&self, text: &str) -> Result<(), Failure> {
        let _ = self;
        output::line(text).map_err(Failure::Output)
    }
}

/// What gaggled has sent, as what it is.
fn understood<T: DeserializeOwned>(body: Value) -> Result<T, Failure> {
    serde_json::from_value(body).map_err(|why| Failure::Garbled(why.to_string()))
}
