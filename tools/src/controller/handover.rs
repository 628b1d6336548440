//! The commands `plan`, `reload` and `upgrade`.

use std::path::{Path, PathBuf};

use gaggled_core::{
    base::time::Millis,
    protocol::{Action, ErrorCode, InfoBody},
};
use gaggled_gateways::client::ControlClient;
use serde_json::Value;

use super::{CommandError, Controller, understood};
use crate::controller::state_format;

impl Controller {
    /// Prints what another configuration would change.
    pub fn plan(&self, file: Option<PathBuf>) -> Result<(), CommandError> {
        let body = self.call(Action::Plan { file: file.map(|file| absolute(&file)) }, Millis(0))?;
        self.show_plan(body)
    }

    /// Takes another configuration.
    pub fn reload(&self, file: Option<PathBuf>, timeout: Millis) -> Result<(), CommandError> {
        let body = self.renew(Action::Reload { file: file.map(|file| absolute(&file)) }, timeout)?;
        self.show_plan(body)
    }

    /// Hands over to another version.
    pub fn upgrade(&self, binary: Option<PathBuf>, timeout: Millis) -> Result<(), CommandError> {
        let body = self.renew(Action::Upgrade { binary: binary.map(|binary| absolute(&binary)) }, timeout)?;
        let after: InfoBody = self.call(Action::Status, Millis(0))?;
        let (wanted, is) = (body["to"].as_str().unwrap_or_default(), after.version);
        if wanted != is || body["binary"] != after.binary {
            let why = format!("gaggled {wanted} did not come up, so gaggled {is} is still running");
            return Err(CommandError::refused(ErrorCode::Failed, why));
        }
        if self.json { self.show(&body) } else { self.print(&format!("gaggled {is} has taken over")) }
    }

    /// Requests a handover, and waits until the next daemon answers: a request that this one does not answer is sent to
    /// the next.
    fn renew(&self, action: Action, timeout: Millis) -> Result<Value, CommandError> {
        let caller = ControlClient::dial(&self.url).map_err(CommandError::Call)?;
        let body: Value = Self::ask(&caller, action, timeout)?;
        let _: InfoBody = match body["controlurl"].as_str().filter(|url| *url != self.url) {
            Some(url) => {
                Self::ask(&ControlClient::dial_whenever(url).map_err(CommandError::Call)?, Action::Status, timeout)?
            }
            None => Self::ask(&caller, Action::Status, timeout)?,
        };
        Ok(body)
    }

    fn show_plan(&self, body: Value) -> Result<(), CommandError> {
        if self.json {
            return self.show(&body);
        }
        self.print(&state_format::plan(&understood(body)?))
    }
}

/// An absolute path, because gaggled may run in another directory.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
