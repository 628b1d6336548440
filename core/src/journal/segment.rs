//! The format of the journal on disk. This module handles bytes only, no files.
//!
//! A segment is self-contained: it begins with a head and a snapshot, and the events after the snapshot follow. So the
//! last segment alone is enough to continue from, and the oldest can be deleted when there are too many.
//!
//! ```text
//! frame:    mark (4 bytes) | length of the body (u32) | crc32c (u32) | kind (u8) | body
//! segment:  head, snapshot, then any number of events and configurations
//! ```
//!
//! Numbers are little-endian; the checksum covers the length, the kind and the body. A body is JSON, that of an event
//! exactly as on the bus, but without `state`. If no valid frame follows an invalid one, a crash has torn off the end;
//! if one follows, the segment is damaged.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    base::ids::EpochId,
    event::Envelope,
    graph::Graph,
    protocol::{ProgramIndex, decode_event, encode_event},
    state::State,
};

/// The version of the segments that this gaggled writes, and the latest that it reads.
pub const FORMAT: u32 = 1;

const MARK: [u8; 4] = *b"gag\x01";
const FRAME: usize = 13;

/// The longest body, which the snapshot of a hundred thousand programs does not reach.
const BODY_MAX: usize = 256 << 20;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The header: the journal, boot, epoch and configuration.
    Head = 1,
    /// The state before the first event.
    Snapshot = 2,
    /// An event.
    Event = 3,
    /// A configuration that the next run of the daemon is to take.
    Config = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Head, Self::Snapshot, Self::Event, Self::Config].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A configuration with the place that it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSource {
    /// The file.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// The version of the format.
    pub v: u32,
    /// The id of the journal, drawn at random once, so that processes of another gaggled are never taken for its own.
    pub journal: String,
    /// The id of the boot of the machine: process ids and monotonic times are not valid in another.
    pub boot: String,
    /// The epoch.
    pub epoch: EpochId,
    /// The configuration in force.
    pub config: ConfigSource,
    /// How many events right before this segment are in no segment, because the disk could not be written. The number
    /// is in the header, not in an event, so that every segment announces the gap before it.
    #[serde(default)]
    pub lost_events: u64,
    /// The directories in which there may be cgroups of this gaggled, from this daemon and those before.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
}

/// The part of the header that every version of the format has.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// Adds a frame to a segment.
pub fn frame(kind: Kind, body: &[u8], segment: &mut Vec<u8>) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    segment.extend_from_slice(&MARK);
    segment.extend_from_slice(&length.to_le_bytes());
    segment.extend_from_slice(&checksum(length, kind as u8, body).to_le_bytes());
    segment.push(kind as u8);
    segment.extend_from_slice(body);
}

/// The beginning of a segment.
pub fn begin(head: &SegmentHeader, state: &State) -> Result<Vec<u8>, serde_json::Error> {
    let mut segment = Vec::new();
    frame(Kind::Head, &serde_json::to_vec(head)?, &mut segment);
    frame(Kind::Snapshot, &serde_json::to_vec(state)?, &mut segment);
    Ok(segment)
}

/// Adds an event to a segment.
pub fn frame_event(envelope: &Envelope, graph: &Graph, segment: &mut Vec<u8>) {
    frame(Kind::Event, encode_event(envelope, graph, None).as_bytes(), segment);
}

fn checksum(length: u32, kind: u8, body: &[u8]) -> u32 {
    let start = crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), &[kind]);
    crc32c::crc32c_append(start, body)
}

/// Where and how a segment is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentError {
    /// The first byte that is not valid.
    pub at: usize,
    /// What is wrong there.
    pub how: Corruption,
}

/// What is wrong with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// The last frame is incomplete: a crash has torn off the end. No complete frame is lost.
    Truncated,
    /// A frame is invalid although a valid one follows, or its content is invalid.
    Damaged(String),
    /// It is of a version that this gaggled does not know.
    NewerFormat(u32),
}

/// A valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame<'a> {
    kind: Kind,
    body: &'a [u8],
    end: usize,
}

fn frame_at(bytes: &[u8], at: usize) -> Option<Frame<'_>> {
    let rest = bytes.get(at..)?;
    let word = |from: usize| rest.get(from..from + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    if rest.get(..4)? != MARK {
        return None;
    }
    let length = word(4)?;
    let size = usize::try_from(length).ok().filter(|size| *size <= BODY_MAX)?;
    let (kind, body) = (*rest.get(12)?, rest.get(FRAME..FRAME + size)?);
    (word(8)? == checksum(length, kind, body)).then_some(())?;
    Some(Frame { kind: Kind::of(kind)?, body, end: at + FRAME + size })
}

/// Whether a valid frame begins at this byte or after it.
fn another_follows(bytes: &[u8], at: usize) -> bool {
    let rest = bytes.get(at..).unwrap_or_default();
    let marks = rest.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    marks.map(|(offset, _)| at + offset).any(|place| frame_at(bytes, place).is_some())
}

/// A segment that is read event by event, with the state after each.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    bytes: &'a [u8],
    at: usize,
    names: ProgramIndex,
    /// The header of the segment.
    pub head: SegmentHeader,
    /// The state after the events read so far.
    pub state: State,
    /// A configuration that the next run of the daemon is to take.
    pub next_config: Option<ConfigSource>,
}

impl<'a> Replay<'a> {
    /// Reads the head and the snapshot.
    pub fn open(bytes: &'a [u8]) -> Result<Self, SegmentError> {
        let mut at = 0;
        let mut next = |kind: Kind| {
            let found = frame_at(bytes, at).filter(|frame| frame.kind == kind);
            let found = found.ok_or_else(|| broken(bytes, at))?;
            let place = std::mem::replace(&mut at, found.end);
            Ok((place, found.body))
        };
        let (place, body) = next(Kind::Head)?;
        let wrong = |at, what: &str, why: serde_json::Error| SegmentError {
            at,
            how: Corruption::Damaged(format!("the {what} is not understood: {why}")),
        };
        let version: Version = serde_json::from_slice(body).map_err(|why| wrong(place, "head", why))?;
        if version.v > FORMAT {
            return Err(SegmentError { at: place, how: Corruption::NewerFormat(version.v) });
        }
        let head = serde_json::from_slice(body).map_err(|why| wrong(place, "head", why))?;
        let (place, body) = next(Kind::Snapshot)?;
        let state: State = serde_json::from_slice(body).map_err(|why| wrong(place, "snapshot", why))?;
        let names = state.graph.names();
        Ok(Self { bytes, at, names, head, state, next_config: None })
    }

    /// The end of the valid part.
    pub fn good(&self) -> usize {
        self.at
    }

    /// The next event, which the state contains already, and its JSON; `None` at the end.
    pub fn next_event(&mut self) -> Option<Result<(Envelope, &'a str), SegmentError>> {
        while self.at < self.bytes.len() {
            let Some(frame) = frame_at(self.bytes, self.at) else {
                return Some(Err(broken(self.bytes, self.at)));
            };
            match self.take(frame) {
                Ok(event) => {
                    self.at = frame.end;
                    if let Some(event) = event {
                        return Some(Ok(event));
                    }
                }
                Err(why) => return Some(Err(SegmentError { at: self.at, how: Corruption::Damaged(why) })),
            }
        }
        None
    }

    fn take(&mut self, frame: Frame<'a>) -> Result<Option<(Envelope, &'a str)>, String> {
        match frame.kind {
            Kind::Event => {
                let text = std::str::from_utf8(frame.body).map_err(|why| why.to_string())?;
                let envelope = decode_event(text, &self.names, &self.state)?;
                if envelope.seq.0 != self.state.seq.0 + 1 || envelope.epoch != self.state.epoch {
                    return Err(format!("event {} follows event {}", envelope.seq, self.state.seq));
                }
                self.state.apply(&envelope);
                Ok(Some((envelope, text)))
            }
            Kind::Config => {
                let config = serde_json::from_slice(frame.body).map_err(|why| why.to_string())?;
                self.next_config = Some(config);
                Ok(None)
            }
            Kind::Head | Kind::Snapshot => Err("a head or a snapshot stands within the segment".to_owned()),
        }
    }
}

fn broken(bytes: &[u8], at: usize) -> SegmentError {
    let how = if another_follows(bytes, at + 1) {
        Corruption::Damaged("a part of it has been overwritten".to_owned())
    } else {
        Corruption::Truncated
    };
    SegmentError { at, how }
}

impl std::fmt::Display for Corruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("its end is torn off"),
            Self::Damaged(why) => write!(f, "it is damaged: {why}"),
            Self::NewerFormat(version) => write!(f, "it was written by a newer gaggled, in format {version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        base::{
            ids::{InstanceId, ProgramId},
            time::{Instant, Millis, WallTime},
        },
        event::{Cause, Event, ProgramEvent},
        graph::{Backoff, Policy},
        journal::Journal,
        process::StartTime,
    };

    /// A hundred events of one program.
    fn segment() -> (Vec<u8>, Vec<usize>, State) {
        let mut graph = Graph::new(Millis(1000));
        let backoff = Backoff { initial: Millis(0), max: Millis(0), reset: Millis(0) };
        let policy = Policy { killwait: Millis(1000), backoff, ..Policy::new("a") };
        graph.add_program(policy);
        let mut journal = Journal::new(Arc::new(graph), EpochId(7));
        let head = SegmentHeader {
            v: FORMAT,
            journal: "j".into(),
            boot: "b".into(),
            epoch: EpochId(7),
            config: ConfigSource { path: "system.ron".into(), text: "()".into() },
            lost_events: 0,
            cgroups: Vec::new(),
        };
        let mut bytes = begin(&head, journal.state()).expect("it can be written");
        let mut ends = vec![bytes.len()];
        for step in 0..99_u64 {
            let instance = InstanceId(step / 3 + 1);
            let event = match step % 3 {
                0 => ProgramEvent::Starting { instance },
                1 => ProgramEvent::Started { instance, pid: 42, start_time: StartTime(4711) },
                _ => ProgramEvent::Exited {
                    instance,
                    status: crate::process::ExitStatus::Code(1),
                    orphans: 0,
                    remains: false,
                },
            };
            let at = Instant::from_micros(step * 1000);
            let event = Event::Program(ProgramId(0), event);
            let envelope = journal.commit_unchecked(at, WallTime(1), event, Cause::DaemonStart);
            frame_event(&envelope, &journal.state().graph, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends, journal.state().clone())
    }

    fn read(bytes: &[u8]) -> (usize, Option<SegmentError>, Option<State>) {
        let mut replay = match Replay::open(bytes) {
            Ok(replay) => replay,
            Err(broken) => return (0, Some(broken), None),
        };
        let mut events = 0;
        while let Some(next) = replay.next_event() {
            match next {
                Ok(_) => events += 1,
                Err(broken) => return (events, Some(broken), Some(replay.state)),
            }
        }
        (events, None, Some(replay.state))
    }

    #[test]
    fn what_was_written_is_read_and_folds_to_the_same_state() {
        let (bytes, _, state) = segment();
        assert_eq!(read(&bytes), (99, None, Some(state)));
    }

    #[test]
    fn an_end_torn_off_anywhere_costs_only_the_last_event() {
        let (bytes, ends, _) = segment();
        for length in 0..bytes.len() {
            let (events, broken, _) = read(&bytes[..length]);
            let whole = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
            assert_eq!(events, whole, "cut at {length}");
            if ends.contains(&length) {
                assert_eq!(broken, None, "cut at {length}");
            } else {
                assert_eq!(broken.expect("it is noticed").how, Corruption::Truncated, "cut at {length}");
            }
        }
    }

    #[test]
    fn a_flipped_byte_is_noticed_wherever_it_is_and_nothing_is_misread() {
        let (bytes, ends, _) = segment();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x40;
            let (events, broken, _) = read(&flipped);
            let before = ends.iter().filter(|end| **end <= at).count().saturating_sub(1);
            assert_eq!(events, before, "flipped at {at}");
            let how = broken.expect("it is noticed").how;
            let last = at >= ends[ends.len() - 2];
            assert_eq!(matches!(how, Corruption::Truncated), last, "flipped at {at}: {how}");
        }
    }

    #[test]
    fn a_newer_format_is_not_guessed_at() {
        let mut bytes = Vec::new();
        frame(Kind::Head, br#"{"v":99,"something":"new"}"#, &mut bytes);
        assert_eq!(Replay::open(&bytes).expect_err("it is newer").how, Corruption::NewerFormat(99));
    }
}
