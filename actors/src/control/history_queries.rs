//! Queries about past events and states: recent ones are answered from memory, older ones from the disk.

use gaggled_core::{
    base::{
        ids::{EpochId, Position, Seq},
        time::WallTime,
    },
    control::Operator,
    journal::history::{Link, next_cause},
    protocol::{
        ErrorCode, EventsBody, PointInTime, ProgramView, Reply, ReplyError, View, WhyBody, WhyStep, describe_origin,
    },
};
use globset::{Glob, GlobMatcher};
use serde_json::value::RawValue;

use super::{
    ControlActor,
    messages::{Dispatch, JobResult},
};
use crate::{
    control::queries::selected,
    journal::reader::{EventQuery, JournalReader},
};

/// The most events in one reply. A reply of this size has half a megabyte, and the allocator keeps the largest buffer
/// of each thread.
const EVENTS_PAGE: usize = 1_000;

/// Which events are meant.
pub(super) struct Filter {
    /// Those of programs whose names match.
    pub program: Option<GlobMatcher>,
    pub from: Option<WallTime>,
    pub until: Option<WallTime>,
}

impl ControlActor {
    /// The pattern for the programs whose events are wanted. It must match a configured program, or one of the events
    /// in memory.
    pub(super) fn matcher(&self, program: Option<String>) -> Result<Option<GlobMatcher>, ReplyError> {
        let Some(word) = program else { return Ok(None) };
        let glob = Glob::new(&word).map_err(|why| ReplyError {
            code: ErrorCode::BadRequest,
            message: format!("pattern {word:?} is not understood: {}", why.kind()),
        })?;
        let matcher = glob.compile_matcher();
        let known = self.names.keys().any(|name| matcher.is_match(&**name));
        if !known && !self.history.programs().any(|name| matcher.is_match(name)) {
            self.operator().select(&[word])?;
        }
        Ok(Some(matcher))
    }

    /// Refuses a point in time that has not come yet.
    pub(super) fn past_only(&self, at: Option<PointInTime>) -> Result<(), ReplyError> {
        let (last, now) = (self.state.seq, self.clock.wall());
        let message = match at {
            Some(PointInTime::Seq(seq)) if seq > last => {
                format!("event {seq} has not happened yet, the last one is {last}")
            }
            Some(PointInTime::Time(time)) if time.0 > now.0 => "that time has not come yet".to_owned(),
            Some(_) | None => return Ok(()),
        };
        Err(ReplyError { code: ErrorCode::BadRequest, message })
    }

    pub(super) fn events(
        &self,
        id: &str,
        epoch: Option<EpochId>,
        since: Seq,
        limit: Option<usize>,
        filter: Filter,
    ) -> Dispatch {
        let limit = limit.unwrap_or(EVENTS_PAGE).min(EVENTS_PAGE);
        // Without an epoch the query asks for the events that are kept: missing earlier ones are no gap.
        let after = match epoch {
            Some(epoch) => Position { epoch, seq: since },
            None => self.latest_of(since),
        };
        let first = self.history.first().unwrap_or_default();
        let last = Position { epoch: self.state.epoch, seq: self.state.seq };
        let early = after < first && after.seq.0 + 1 < first.seq.0 && first.seq > Seq(1);
        let before = filter.from.is_some_and(|from| self.history.starts_after(from));
        if !early && (filter.from.is_none() || !before || first.seq <= Seq(1)) {
            return Dispatch::Reply(self.recent_events(id, after, last, limit, &filter));
        }
        let Filter { program, from, until } = filter;
        let wanted = EventQuery { after, from, until, program, limit };
        let reader = self.reader.clone();
        let exact = epoch.is_some();
        let known = MemoryRange { first, last };
        Dispatch::Offload(Box::new(move |id| JobResult::Reply(archived_events(id, &reader, &wanted, known, exact))))
    }

    /// The position that an event number without an epoch stands for.
    fn latest_of(&self, seq: Seq) -> Position {
        let epoch = self.history.get(seq).map(|entry| entry.envelope.epoch);
        let oldest =
            if Some(seq) < self.history.first().map(|first| first.seq) { EpochId(0) } else { self.state.epoch };
        Position { epoch: epoch.unwrap_or(oldest), seq }
    }

    fn recent_events(&self, id: &str, after: Position, last: Position, limit: usize, filter: &Filter) -> Reply {
        let first = self.history.first().map_or(Seq(1), |first| first.seq);
        let mut answer = EventsBody {
            epoch: last.epoch,
            gap: after > last,
            first,
            last: last.seq,
            events: Vec::new(),
            next: None,
            next_epoch: None,
        };
        for entry in self.history.after(after) {
            let position = entry.position();
            let matches = |program: &GlobMatcher| entry.program().is_some_and(|name| program.is_match(name));
            let right = filter.program.as_ref().is_none_or(matches)
                && filter.from.is_none_or(|from| entry.envelope.time.0 >= from.0)
                && filter.until.is_none_or(|until| entry.envelope.time.0 <= until.0);
            if !right {
                continue;
            }
            if answer.events.len() == limit {
                answer.next = position.seq.0.checked_sub(1).map(Seq);
                answer.next_epoch = Some(position.epoch);
                break;
            }
            answer.events.extend(RawValue::from_string(entry.encode()).ok());
        }
        Reply::done(id, &answer)
    }

    pub(super) fn past_dump(&self, at: PointInTime, programs: Vec<String>) -> Dispatch {
        let reader = self.reader.clone();
        Dispatch::Offload(Box::new(move |id| {
            JobResult::Reply(match reader.state_at(at) {
                Some((state, wall)) => {
                    let view = View::at(&state, state.at);
                    let names = state.graph.names();
                    let operator = Operator { state: &state, names: &names };
                    match selected(&operator, view.dump(wall, 0, usize::MAX), view, &programs) {
                        Ok(dump) => Reply::done(id, &dump),
                        Err(error) => Reply::refused(id, error.code, error.message),
                    }
                }
                None => too_early(id, &reader),
            })
        }))
    }

    pub(super) fn why(&self, id: &str, program: &str, at: Option<PointInTime>) -> Result<Dispatch, ReplyError> {
        let reader = self.reader.clone();
        if let Some(at) = at {
            let program = program.to_owned();
            return Ok(Dispatch::Offload(Box::new(move |id| JobResult::Reply(past_why(id, &reader, &program, at)))));
        }
        let &[program] = self.operator().select(&[program.to_owned()])?.as_slice() else {
            let message = format!("{program:?} means several programs: ask for one");
            return Err(ReplyError { code: ErrorCode::BadRequest, message });
        };
        let chains = self.history.why(&self.state, program);
        let now = self.clock.now();
        let whole = |chain: &Vec<Link>| next_cause(chain).is_none();
        if chains.iter().all(whole) {
            return Ok(Dispatch::Reply(explain(id, View::at(&self.state, now).program(program), &chains)));
        }
        let state = self.state.clone();
        Ok(Dispatch::Offload(Box::new(move |id| {
            let chains: Vec<_> = chains.into_iter().map(|chain| completed(chain, &reader)).collect();
            JobResult::Reply(explain(id, View::at(&state, now).program(program), &chains))
        })))
    }
}

fn too_early(id: &str, reader: &JournalReader) -> Reply {
    let since = reader.begins().map_or_else(String::new, |begins| format!(": it begins at {}", begins.timestamp()));
    Reply::refused(id, ErrorCode::Failed, format!("the journal does not reach back to that moment{since}"))
}

/// Extends a chain of causes with the events that are only on disk.
fn completed(mut chain: Vec<Link>, reader: &JournalReader) -> Vec<Link> {
    let next = next_cause(&chain);
    chain.extend(next.into_iter().flat_map(|seq| reader.chain(seq)));
    chain
}

fn past_why(id: &str, reader: &JournalReader, name: &str, at: PointInTime) -> Reply {
    let Some((state, _)) = reader.state_at(at) else {
        return too_early(id, reader);
    };
    let Some(program) = state.graph.names().get(name).copied() else {
        return Reply::refused(id, ErrorCode::NoSuchProgram, format!("there was no program {name:?} then"));
    };
    let known = &state.programs[program];
    let from = if known.phase_event > Seq(0) { known.phase_event } else { known.last_seq };
    let chains = vec![reader.chain(from)];
    explain(id, View::at(&state, state.at).program(program), &chains)
}

fn explain(id: &str, view: ProgramView<'_>, chains: &[Vec<Link>]) -> Reply {
    let chains = chains.iter().map(|chain| links(chain)).collect();
    match serde_json::value::to_raw_value(&view) {
        Ok(state) => Reply::done(id, &WhyBody { program: view.program.to_owned(), state, chains }),
        Err(error) => Reply::refused(id, ErrorCode::Failed, format!("the state cannot be written as JSON: {error}")),
    }
}

fn links(chain: &[Link]) -> Vec<WhyStep> {
    let last = chain.len().saturating_sub(1);
    let repeats = next_cause(chain).is_none();
    let origin = |link: &Link| match link.envelope.cause.event() {
        Some(_) if repeats => "the same happened before, again and again".to_owned(),
        _ => describe_origin(&link.envelope.cause),
    };
    chain
        .iter()
        .enumerate()
        .map(|(at, this)| WhyStep {
            seq: this.envelope.seq,
            time: this.envelope.time,
            event: this.envelope.event.name().to_owned(),
            words: this.words.clone(),
            origin: (at == last).then(|| origin(this)),
        })
        .collect()
}

/// The first and the last event in memory.
#[derive(Clone, Copy)]
struct MemoryRange {
    first: Position,
    last: Position,
}

fn archived_events(id: &str, reader: &JournalReader, wanted: &EventQuery, known: MemoryRange, exact: bool) -> Reply {
    let MemoryRange { first, last } = known;
    let mut found = reader.events(wanted);
    if found.end <= wanted.after && !found.full {
        // The disk has none of the events: go on with the first one in memory.
        found.gap = true;
        found.end = Position { seq: Seq(first.seq.0.saturating_sub(1)), ..first };
    }
    // Events that are not on disk yet are in memory: the client's next query finds them there.
    let until = wanted.until.is_some() && found.full && found.events.len() < wanted.limit;
    let more = found.end < last && !until;
    let events = EventsBody {
        epoch: last.epoch,
        gap: found.gap && exact,
        first: found.first.seq,
        last: last.seq,
        events: found.events.into_iter().filter_map(|text| RawValue::from_string(text).ok()).collect(),
        next: more.then_some(found.end.seq),
        next_epoch: more.then_some(found.end.epoch),
    };
    Reply::done(id, &events)
}
