//! What was.

use gaggled_core::{
    base::{
        ids::{EpochId, Seq},
        time::{Millis, WallTime},
    },
    protocol::{Action, PointInTime},
};
use gaggled_gateways::client::ControlClient;
use serde_json::Value;

use super::{CommandError, Controller};
use crate::common::event_format;

impl Controller {
    /// Prints why a program is as it is, or was.
    pub fn why(&self, program: String, at: Option<PointInTime>) -> Result<(), CommandError> {
        let body = self.call(Action::Why { program, at }, Millis(0))?;
        if self.json {
            return self.show(&body);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (phase, reason) = (text(&body["state"]["phase"]), text(&body["state"]["reason"]));
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        let is = if at.is_some() { "was" } else { "is" };
        let mut lines = vec![format!("{} {is} {phase}{reason}", text(&body["program"]))];
        for (number, chain) in body["chains"].as_array().into_iter().flatten().enumerate() {
            lines.push(if number == 0 { String::new() } else { "\nbefore that".to_owned() });
            for (depth, link) in chain.as_array().into_iter().flatten().enumerate() {
                let because = if depth == 0 { "" } else { "because " };
                let time: Option<jiff::Timestamp> = link["time"].as_str().and_then(|time| time.parse().ok());
                let wall = WallTime(time.map_or(0, jiff::Timestamp::as_microsecond));
                let time = event_format::date_time(wall);
                lines.push(format!(
                    "  {time} {:>6}  {because}{}",
                    link["seq"].as_u64().unwrap_or_default(),
                    text(&link["words"])
                ));
                if let Some(origin) = link["origin"].as_str() {
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
            let body = Self::ask(&caller, action, Millis(0))?;
            for event in body["events"].as_array().into_iter().flatten() {
                if event["seq"].as_u64() > Some(last) {
                    return Ok(());
                }
                self.print(&if self.json { event.to_string() } else { event_format::raw_line(event) })?;
            }
            match body["next"].as_u64() {
                Some(next) => (after, epoch) = (Seq(next), body["next_epoch"].as_u64().map(EpochId)),
                None => return Ok(()),
            }
        }
    }
}
