//! The questions that change nothing, and their answers.

use gaggled_core::{
    event::Envelope,
    history::{Link, origin_in_words},
    ids::{EpochId, Seq},
    state::Phase,
    wire::{ErrorCode, Reply, ReplyError, View, encode_event},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::ControlActor;

/// The most programs on one page of a dump.
const DUMP_PAGE: usize = 10_000;
/// The most events in one answer.
const EVENTS_PAGE: usize = 5_000;

#[derive(Serialize)]
struct Why<'a> {
    program: &'a str,
    state: gaggled_core::wire::ProgramView<'a>,
    chains: Vec<Vec<WhyLink<'a>>>,
}

#[derive(Serialize)]
struct WhyLink<'a> {
    seq: Seq,
    time: gaggled_core::time::WallTime,
    event: &'static str,
    words: &'a str,
    /// Where the chain ends, at its last link.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

#[derive(Serialize)]
struct Events {
    epoch: EpochId,
    /// Whether some of what was asked for is no longer kept, so that only a snapshot helps.
    gap: bool,
    /// The first event that is kept.
    first: Seq,
    /// The last event there is.
    last: Seq,
    #[serde(rename = "events")]
    found: Vec<Box<RawValue>>,
    /// What to ask for next, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Seq>,
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'a str,
    pid: u32,
    epoch: EpochId,
    seq: Seq,
    uptime_ms: u64,
    programs: usize,
    up: usize,
    shutting_down: bool,
    eventurl: &'a str,
    controlurl: &'a str,
}

impl ControlActor {
    pub(super) fn dump(
        &self,
        id: &str,
        programs: &[String],
        from: usize,
        limit: Option<usize>,
    ) -> Result<Reply, ReplyError> {
        let limit = limit.unwrap_or(DUMP_PAGE).min(DUMP_PAGE);
        let view = View::at(&self.state, self.clock.now());
        let mut dump = view.dump(self.clock.wall(), from, limit);
        if !programs.is_empty() {
            let chosen = self.select(programs)?;
            dump.programs = chosen.iter().map(|id| view.program(*id)).collect();
            dump.dependencies = chosen.iter().flat_map(|id| view.dependencies(*id)).collect();
            dump.next = None;
        }
        Ok(Reply::done(id, &dump))
    }

    pub(super) fn why(&self, id: &str, program: &str) -> Result<Reply, ReplyError> {
        let &[program] = self.select(&[program.to_owned()])?.as_slice() else {
            let message = format!("{program:?} means several programs: ask for one");
            return Err(ReplyError { code: ErrorCode::BadRequest, message });
        };
        let chains = self.history.why(&self.state, program);
        let why = Why {
            program: &self.state.graph.programs[program].name,
            state: View::at(&self.state, self.clock.now()).program(program),
            chains: chains.iter().map(|chain| links(chain)).collect(),
        };
        Ok(Reply::done(id, &why))
    }

    pub(super) fn events(
        &self,
        id: &str,
        epoch: Option<EpochId>,
        since: Seq,
        limit: Option<usize>,
        program: Option<&str>,
    ) -> Result<Reply, ReplyError> {
        let program = program.map(|name| self.select(&[name.to_owned()])).transpose()?;
        let limit = limit.unwrap_or(EVENTS_PAGE).min(EVENTS_PAGE);
        let this_epoch = epoch.is_none_or(|epoch| epoch == self.state.epoch);
        let first = self.history.first().unwrap_or(Seq(1));
        // Without an epoch the question is for what there is, and what there is not is no gap.
        let since = if epoch.is_none() { since.max(Seq(first.0 - 1)) } else { since };
        let mut answer =
            Events { epoch: self.state.epoch, gap: true, first, last: self.state.seq, found: Vec::new(), next: None };
        if let Some(entries) = self.history.since(since).filter(|_| this_epoch && since <= self.state.seq) {
            answer.gap = false;
            for entry in entries {
                let subject = self.state.graph.subject(&entry.envelope.event);
                if program.as_ref().is_some_and(|wanted| !subject.is_some_and(|id| wanted.contains(&id))) {
                    continue;
                }
                if answer.found.len() == limit {
                    answer.next = answer_next(&entry.envelope);
                    break;
                }
                let view = View::at(&self.state, entry.envelope.at);
                let after = subject.zip(entry.after.as_ref()).map(|(id, after)| view.program_as(id, after));
                let text = encode_event(&entry.envelope, &self.state, after);
                answer.found.extend(RawValue::from_string(text).ok());
            }
        }
        Ok(Reply::done(id, &answer))
    }

    pub(super) fn status(&self, id: &str) -> Reply {
        let up = self.state.running.iter().filter(|id| self.state.programs[**id].phase == Phase::Up).count();
        let status = Status {
            version: self.about.version,
            pid: self.about.pid,
            epoch: self.state.epoch,
            seq: self.state.seq,
            uptime_ms: self.clock.now().as_millis(),
            programs: self.state.programs.len(),
            up,
            shutting_down: self.state.shutdown.is_some(),
            eventurl: &self.about.eventurl,
            controlurl: &self.about.controlurl,
        };
        Reply::done(id, &status)
    }
}

fn answer_next(envelope: &Envelope) -> Option<Seq> {
    envelope.seq.0.checked_sub(1).map(Seq)
}

fn links(chain: &[Link]) -> Vec<WhyLink<'_>> {
    let last = chain.len().saturating_sub(1);
    let link = |(at, link): (usize, &'_ Link)| (at == last).then(|| origin_in_words(&link.envelope.cause));
    chain
        .iter()
        .enumerate()
        .map(|(at, this)| WhyLink {
            seq: this.envelope.seq,
            time: this.envelope.wall,
            event: this.envelope.event.name(),
            words: &this.words,
            origin: link((at, this)),
        })
        .collect()
}
