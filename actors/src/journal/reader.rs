//! Reads past events and states from the segments on disk.
//!
//! All calls read from the disk: use a thread for which no actor waits.

use std::path::{Path, PathBuf};

use gaggled_core::{
    base::{
        ids::{Position, Seq},
        time::WallTime,
    },
    event::Envelope,
    journal::{
        history::{Link, next_cause},
        segment::{Corruption, Replay, SegmentError},
    },
    protocol::{PointInTime, describe_event, encode_applied},
    state::State,
};
use globset::GlobMatcher;

use crate::journal::directory::{SegmentFile, StateError, read_own, segments};

/// Which events are wanted.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// Those after this one.
    pub after: Position,
    /// Not before this time.
    pub from: Option<WallTime>,
    /// Not after this time.
    pub until: Option<WallTime>,
    /// Only those of programs whose names match.
    pub program: Option<GlobMatcher>,
    /// How many at most.
    pub limit: usize,
}

/// Events that were found.
#[derive(Clone, Debug, Default)]
pub struct EventPage {
    /// The events as JSON, each with the state of its program after it.
    pub events: Vec<String>,
    /// Whether some of the requested events are missing.
    pub gap: bool,
    /// The position of the first event that is kept.
    pub first: Position,
    /// How far the search has come; there may be more after it.
    pub end: Position,
    /// Whether the search stopped at the limit, or after `until`.
    pub full: bool,
}

/// The segments of a directory.
#[derive(Clone, Debug)]
pub struct JournalReader {
    directory: PathBuf,
}

/// Called for each event of a segment, with the state after it. False stops the replay.
type Visit<'a> = dyn FnMut(&Envelope, &State) -> bool + 'a;

impl JournalReader {
    /// The archive in a directory.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The events after a position.
    pub fn events(&self, wanted: &EventQuery) -> EventPage {
        let segments = segments(&self.directory);
        let mut found = EventPage { end: wanted.after, ..EventPage::default() };
        let Some(oldest) = segments.first() else { return EventPage { gap: true, ..found } };
        found.first = Position { epoch: oldest.epoch, seq: Seq(oldest.after.0 + 1) };
        found.gap = wanted.after.seq < oldest.after;
        let begin = segments.iter().rposition(|segment| segment.position() <= wanted.after).unwrap_or(0);
        for segment in segments.iter().skip(begin) {
            // A gap between two segments means that events were never written.
            found.gap |= segment.after > found.end.seq && found.end.seq >= oldest.after;
            let passed = pass(segment, &mut |envelope, state| {
                let position = Position { epoch: envelope.epoch, seq: envelope.seq };
                if position <= wanted.after {
                    return true;
                }
                if wanted.until.is_some_and(|until| envelope.time.0 > until.0) {
                    found.full = true;
                    return false;
                }
                let subject = state.graph.subject(&envelope.event);
                let name = subject.map(|id| &*state.graph.programs[id].name);
                let matches = |program: &GlobMatcher| name.is_some_and(|name| program.is_match(name));
                let right = wanted.program.as_ref().is_none_or(matches)
                    && wanted.from.is_none_or(|from| envelope.time.0 >= from.0);
                if right {
                    if found.events.len() == wanted.limit {
                        found.full = true;
                        return false;
                    }
                    found.events.push(encode_applied(envelope, state));
                }
                found.end = position;
                true
            });
            if found.full {
                break;
            }
            found.gap |= passed.is_err();
            found.end = found.end.max(segment.position());
        }
        found
    }

    /// The time of the first event that is kept.
    pub fn begins(&self) -> Option<WallTime> {
        let mut first = None;
        let _ = pass(segments(&self.directory).first()?, &mut |envelope, _| {
            first = Some(envelope.time);
            false
        });
        first
    }

    /// The state at a moment, and the time of its last event; `None` if the journal does not reach back to it.
    pub fn state_at(&self, moment: PointInTime) -> Option<(State, WallTime)> {
        let is_past = |envelope: &Envelope| match moment {
            PointInTime::Seq(seq) => envelope.seq > seq,
            PointInTime::Time(time) => envelope.time.0 > time.0,
        };
        let segments = segments(&self.directory);
        let candidates = segments.iter().rev().filter(|segment| match moment {
            PointInTime::Seq(seq) => segment.after < seq,
            PointInTime::Time(_) => true,
        });
        candidates.filter_map(|segment| read_own(&segment.path).ok()).find_map(|bytes| {
            let mut events = 0;
            let mut last = WallTime::default();
            let mut search = Replay::open(&bytes).ok()?;
            while let Some(Ok((envelope, _))) = search.next_event() {
                if is_past(&envelope) {
                    break;
                }
                (events, last) = (events + 1, envelope.time);
            }
            let mut replay = Replay::open(&bytes).ok().filter(|_| events > 0)?;
            (0..events).for_each(|_| drop(replay.next_event()));
            Some((replay.state, last))
        })
    }

    /// The chain of causes that leads to an event.
    pub fn chain(&self, from: Seq) -> Vec<Link> {
        let segments = segments(&self.directory);
        let mut links: Vec<Link> = Vec::new();
        let mut next = Some(from);
        for segment in segments.iter().rev() {
            let Some(wanted) = next else { break };
            if segment.after >= wanted {
                continue;
            }
            let mut seen: Vec<Link> = Vec::new();
            let _ = pass(segment, &mut |envelope, state| {
                if envelope.seq > wanted {
                    return false;
                }
                let words = describe_event(envelope, &state.graph);
                seen.push(Link { envelope: envelope.clone().into(), words });
                true
            });
            while let Some(seq) = next {
                let Ok(at) = seen.binary_search_by_key(&seq, |link| link.envelope.seq) else { break };
                let link = seen[at].clone();
                links.push(link);
                next = next_cause(&links);
            }
        }
        links
    }
}

impl SegmentFile {
    fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.after }
    }
}

/// Replays a segment up to its end or its first error.
fn pass(segment: &SegmentFile, visit: &mut Visit<'_>) -> Result<(), ScanError> {
    let bytes = read_own(&segment.path)?;
    let mut replay = match Replay::open(&bytes) {
        Err(SegmentError { how: Corruption::Truncated, .. }) => return Ok(()),
        opened => opened?,
    };
    while let Some(next) = replay.next_event() {
        let envelope = match next {
            Ok((envelope, _)) => envelope,
            // The last frame may be in the middle of being written.
            Err(SegmentError { how: Corruption::Truncated, .. }) => break,
            Err(broken) => return Err(broken.into()),
        };
        if !visit(&envelope, &replay.state) {
            break;
        }
    }
    Ok(())
}

/// A segment that cannot be read, or not to its end.
struct ScanError;

impl From<StateError> for ScanError {
    fn from(_: StateError) -> Self {
        Self
    }
}

impl From<SegmentError> for ScanError {
    fn from(_: SegmentError) -> Self {
        Self
    }
}
