//! Commands that query the journal.

use gaggled_core::{
    base::{ids::Seq, time::Millis},
    protocol::{Action, ErrorCode, EventsBody, PointInTime, WhyBody},
};
use gaggled_gateways::client::ControlClient;
use serde_json::Value;

use super::{CommandError, Controller, state_format::Row};
use crate::common::event_format;

impl Controller {
    /// Prints why a program is as it is, or was.
    pub fn why(&self, program: String, at: Option<PointInTime>) -> Result<(), CommandError> {
        let body: WhyBody = self.call(Action::Why { program, at }, Millis(0))?;
        if self.json {
            return self.show(&body);
        }
        let state: Row =
            serde_json::from_str(body.state.get()).map_err(|why| CommandError::Garbled(why.to_string()))?;
        let reason = if state.reason.is_empty() { String::new() } else { format!(": {}", state.reason) };
        let is = if at.is_some() { "was" } else { "is" };
        let mut lines = vec![format!("{} {is} {}{reason}", body.program, state.phase)];
        for (number, chain) in body.chains.iter().enumerate() {
            lines.push(if number == 0 { String::new() } else { "\nbefore that".to_owned() });
            for (depth, step) in chain.iter().enumerate() {
                let because = if depth == 0 { "" } else { "because " };
                let time = event_format::date_time(step.time);
                lines.push(format!("  {time} {:>6}  {because}{}", step.seq.0, step.words));
                if let Some(origin) = &step.origin {
                    lines.push(format!("  {:>30}  and {origin}", ""));
                }
            }
        }
        lines.retain(|line| !line.is_empty());
        self.print(&lines.join("\n"))
    }

    /// Prints what has happened.
    pub fn events(
        &self,
        since: PointInTime,
        until: Option<PointInTime>,
        program: Option<String>,
    ) -> Result<(), CommandError> {
        let caller = ControlClient::dial(&self.url).map_err(CommandError::Call)?;
        let (mut after, from) = match since {
            PointInTime::Seq(seq) => (seq, None),
            PointInTime::Time(time) => (Seq(0), Some(time)),
        };
        let (last, until) = match until {
            Some(PointInTime::Seq(seq)) => (seq.0, None),
            Some(PointInTime::Time(time)) => (u64::MAX, Some(time)),
            None => (u64::MAX, None),
        };
        let mut epoch = None;
        loop {
            let action = Action::Events { epoch, since: after, limit: None, program: program.clone(), from, until };
            let body: EventsBody = match Self::ask(&caller, action, Millis(0)) {
                // gaggled has delayed the request because of its rate limit: ask again.
                Err(CommandError::Refused(error)) if error.code == ErrorCode::Busy => continue,
                answer => answer?,
            };
            for event in &body.events {
                let text = event.get();
                let event: Value = serde_json::from_str(text).map_err(|why| CommandError::Garbled(why.to_string()))?;
                if event["seq"].as_u64() > Some(last) {
                    return Ok(());
                }
                self.print(&if self.json { text.to_owned() } else { event_format::raw_line(&event) })?;
            }
            match body.next {
                Some(next) => (after, epoch) = (next, body.next_epoch),
                None => return Ok(()),
            }
        }
    }
}
