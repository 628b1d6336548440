//! Commands that show the current state.

use std::{io::IsTerminal, path::Path};

use gaggled_core::{
    base::time::Millis,
    protocol::{Action, ErrorCode, InfoBody, PointInTime},
    state::State,
};
use gaggled_gateways::client::ControlClient;
use serde_json::Value;

use super::{CommandError, Controller, understood};
use crate::{
    controller::backoff,
    controller::state_format,
    controller::tail::{self, TailOptions},
    logger,
};

impl Controller {
    /// Prints the state of programs.
    pub fn dump(&self, programs: &[String], tree: bool, at: Option<PointInTime>) -> Result<(), CommandError> {
        let caller = ControlClient::dial(&self.url).map_err(CommandError::Call)?;
        let page = |from| Action::Dump { programs: programs.to_vec(), from, limit: None, at };
        let mut body: Value = Self::ask(&caller, page(0), Millis(0))?;
        // A long dump comes in several pages.
        while let Some(from) = body["next"].as_u64() {
            let from = usize::try_from(from).map_err(|why| CommandError::Garbled(why.to_string()))?;
            let mut more: Value = Self::ask(&caller, page(from), Millis(0))?;
            for list in ["programs", "dependencies"] {
                let more = more[list].as_array_mut().map(std::mem::take).unwrap_or_default();
                body[list].as_array_mut().into_iter().for_each(|all| all.extend(more.iter().cloned()));
            }
            body["next"] = more["next"].take();
        }
        if let Some(body) = body.as_object_mut() {
            body.remove("next");
        }
        if self.json {
            return self.show(&body);
        }
        let dump: state_format::Dump = understood(body)?;
        let coloured = std::io::stdout().is_terminal();
        let text = if tree { state_format::tree(&dump, true) } else { state_format::table(&dump, coloured) };
        let groups = state_format::groups(&dump.groups);
        let groups = if groups.is_empty() { groups } else { format!("{groups}\n\n") };
        self.print(&format!("{text}\n\n{groups}{}", state_format::summary(&dump)))
    }

    /// Prints the whole state.
    pub fn snapshot(&self) -> Result<(), CommandError> {
        self.show(&self.call::<Value>(Action::Snapshot, Millis(0))?)
    }

    /// Prints the status of gaggled itself.
    pub fn status(&self) -> Result<(), CommandError> {
        let info: InfoBody = self.call(Action::Status, Millis(0))?;
        if self.json {
            return self.show(&info);
        }
        let uptime = Millis(info.uptime_ms);
        let ending = if info.shutting_down { ", shutting down" } else { "" };
        let groups =
            if info.groups.is_empty() { String::new() } else { format!("{}\n", state_format::groups(&info.groups)) };
        let InfoBody { version, pid, up, programs, seq, epoch, eventurl, controlurl, .. } = &info;
        self.print(&format!(
            "gaggled {version} with pid {pid} has run for {uptime}{ending}\n{up} of {programs} programs are up\n{groups}\
             last event {seq} of epoch {epoch}\nevents  {eventurl}\ncontrol {controlurl}"
        ))
    }

    /// Prints how the starts of a program are spaced.
    pub fn backoff(&self, program: &str) -> Result<(), CommandError> {
        let page = Action::Dump { programs: vec![program.to_owned()], from: 0, limit: None, at: None };
        let now: Value = self.call(page, Millis(0))?;
        let state: State = self.call(Action::Snapshot, Millis(0))?;
        let Some(id) = state.graph.names().get(program).copied() else {
            return Err(no_such(program));
        };
        let wait = now["programs"][0]["wait_ms"].as_u64().filter(|_| state.programs[id].not_before.is_some());
        if self.json {
            return self.show(&backoff::body(&state, id, wait));
        }
        self.print(&backoff::describe(&state, id, wait))
    }

    /// Prints what a program has written.
    pub fn logs(
        &self,
        program: &str,
        lines: usize,
        since: Option<PointInTime>,
        follow: bool,
    ) -> Result<(), CommandError> {
        if self.json {
            let why = "a log is text, and has no JSON: leave --json out".to_owned();
            return Err(CommandError::refused(ErrorCode::BadRequest, why));
        }
        let info: InfoBody = self.call(Action::Status, Millis(0))?;
        let since = match since {
            Some(PointInTime::Seq(_)) => {
                let why = "a log has times and no event numbers".to_owned();
                return Err(CommandError::refused(ErrorCode::BadRequest, why));
            }
            Some(PointInTime::Time(time)) => Some(time),
            None => None,
        };
        let state = Path::new(&info.state_directory);
        let outlets = logger::list(state).map_err(|error| {
            CommandError::refused(
                ErrorCode::Failed,
                format!("{}: the list of logs cannot be read: {error}", state.display()),
            )
        })?;
        if !outlets.iter().any(|outlet| outlet.program == program) {
            return Err(no_such(program));
        }
        tail::show(&outlets, program, TailOptions { lines, since, follow })
            .map_err(|why| CommandError::refused(ErrorCode::Failed, why))
    }
}

fn no_such(program: &str) -> CommandError {
    CommandError::refused(ErrorCode::NoSuchProgram, format!("there is no program \"{program}\""))
}
