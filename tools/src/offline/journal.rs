//! Verifies, shows and exports a journal on disk, without a running gaggled.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use gaggled_actors::journal::directory::{SegmentFile, segments};
use gaggled_core::{
    base::time::{Millis, WallTime},
    event::Envelope,
    journal::{
        audit::JournalAudit,
        segment::{Corruption, Replay, SegmentError, SegmentHeader},
    },
    protocol::{View, encode_applied},
    state::State,
};

use crate::{common::output, controller::state_format};

/// How late an effect may be on a busy machine.
const TOLERANCE: Millis = Millis(2000);
/// How many findings are shown.
const MAX_SHOWN: usize = 20;

/// What to do with a journal.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check that no event is damaged or missing, and that the rules allow every event
    Verify {
        /// The directory of the journal
        directory: PathBuf,
    },
    /// Show the last state of all programs
    State {
        /// The directory of the journal
        directory: PathBuf,
        /// Print JSON
        #[arg(short, long)]
        json: bool,
    },
    /// Print every event as JSON, one a line
    Export {
        /// The directory of the journal
        directory: PathBuf,
    },
}

/// Runs the command. Exit status: 0 all is well; 1 something is wrong with the journal; 100 there is none.
pub fn run(command: &Command) -> ExitCode {
    let (Command::Verify { directory } | Command::State { directory, .. } | Command::Export { directory }) = command;
    if let Err(error) = fs::read_dir(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("Error: {}: cannot be read: {error}", directory.display());
        return ExitCode::from(100);
    }
    let found = segments(directory);
    if found.is_empty() {
        eprintln!("Error: {}: there is no journal: give the state directory of gaggled", directory.display());
        return ExitCode::from(100);
    }
    match command {
        Command::Verify { .. } => verify(&found),
        Command::State { json, .. } => print_state(&found, *json),
        Command::Export { .. } => export(&found),
    }
}

/// An item of a segment, with the state at that point.
enum SegmentItem<'a> {
    Head(&'a SegmentHeader, &'a State),
    Event(&'a Envelope, &'a State),
}

/// Replays a segment. Returns its last state, if it has one, and the error at which the replay ended.
fn pass(
    segment: &Path,
    mut visit: impl FnMut(SegmentItem<'_>) -> io::Result<()>,
) -> (Option<State>, Result<(), JournalError>) {
    let bytes = match fs::read(segment) {
        Ok(bytes) => bytes,
        Err(error) => return (None, Err(error.into())),
    };
    let mut replay = match Replay::open(&bytes) {
        Ok(replay) => replay,
        Err(broken) => return (None, Err(JournalError::Broken(broken))),
    };
    let passed = visit_all(&mut replay, &mut visit);
    (Some(replay.state), passed)
}

fn visit_all(
    replay: &mut Replay<'_>,
    visit: &mut impl FnMut(SegmentItem<'_>) -> io::Result<()>,
) -> Result<(), JournalError> {
    visit(SegmentItem::Head(&replay.head, &replay.state))?;
    while let Some(next) = replay.next_event() {
        let (envelope, _) = next.map_err(JournalError::Broken)?;
        visit(SegmentItem::Event(&envelope, &replay.state))?;
    }
    Ok(())
}

enum JournalError {
    Io(io::Error),
    Broken(SegmentError),
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl std::fmt::Display for JournalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "it cannot be read: {error}"),
            Self::Broken(SegmentError { at, how }) => write!(f, "{how}, from byte {at} on"),
        }
    }
}

fn verify(found: &[SegmentFile]) -> ExitCode {
    let mut audit = JournalAudit::new(TOLERANCE);
    let mut wrong = Vec::new();
    let (mut events, mut bytes) = (0_u64, 0);
    let mut last: Option<State> = None;
    for (number, segment) in found.iter().enumerate() {
        let name = segment.path.display();
        bytes += fs::metadata(&segment.path).map_or(0, |found| found.len());
        let mut differs = false;
        let (state, passed) = pass(&segment.path, |passage| {
            match passage {
                SegmentItem::Event(envelope, _) => {
                    events += 1;
                    audit.observe(envelope);
                }
                SegmentItem::Head(head, state) => {
                    let same = |last: &State| last.epoch == state.epoch && last.seq == state.seq;
                    differs = last.as_ref().is_some_and(|last| same(last) && last != state);
                    audit.begin(state, head.lost_events);
                }
            }
            Ok(())
        });
        if differs {
            wrong.push(format!("{name}: I4: it does not begin with the state that the events before it fold to"));
        }
        last = state.filter(|_| passed.is_ok());
        match passed {
            Ok(()) => {}
            Err(JournalError::Broken(SegmentError { how: Corruption::Truncated, .. })) if number + 1 == found.len() => {
                audit.missing.push(format!("{name}: its end is torn off, or being written"));
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    wrong.append(&mut audit.violations);
    let size = bytes / 1024;
    let mut lines = vec![format!("{} segments, {events} events, {size} KiB", found.len())];
    lines.extend(audit.missing.iter().map(|missing| format!("note: {missing}")));
    lines.extend(wrong.iter().take(MAX_SHOWN).map(|wrong| format!("wrong: {wrong}")));
    if wrong.len() > MAX_SHOWN {
        lines.push(format!("and {} more", wrong.len() - MAX_SHOWN));
    }
    lines.push(match wrong.len() {
        0 => "ok".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        count => format!("{count} things are wrong"),
    });
    let printed = output::line(&lines.join("\n"));
    if wrong.is_empty() { output::end(printed) } else { ExitCode::FAILURE }
}

fn print_state(found: &[SegmentFile], json: bool) -> ExitCode {
    let mut broken = Vec::new();
    let last = found.iter().rev().find_map(|segment| {
        let (last, why) = as_far_as_it_holds(&segment.path);
        broken.extend(why.map(|why| format!("{}: {why}", segment.path.display())));
        last
    });
    let Some((state, wall)) = last else {
        eprintln!("Error: no segment of the journal can be read");
        return ExitCode::FAILURE;
    };
    let dump = View::at(&state, state.at).dump(wall, 0, usize::MAX);
    let text = serde_json::to_string(&dump).unwrap_or_default();
    let printed = match serde_json::from_str::<state_format::Dump>(&text) {
        Ok(dump) if !json => format!("{}\n\n{}", state_format::table(&dump, false), state_format::summary(&dump)),
        Ok(_) | Err(_) => text,
    };
    let printed = output::line(&printed);
    for why in &broken {
        eprintln!("Error: {why}: this is the state before that");
    }
    if broken.is_empty() { output::end(printed) } else { ExitCode::FAILURE }
}

/// The last state of a segment and when its last event was, and where it is damaged.
fn as_far_as_it_holds(segment: &Path) -> (Option<(State, WallTime)>, Option<JournalError>) {
    let mut wall = WallTime::default();
    let (state, passed) = pass(segment, |passage| {
        if let SegmentItem::Event(envelope, _) = passage {
            wall = envelope.time;
        }
        Ok(())
    });
    // A crash leaves a truncated end, in which no complete event is lost.
    let is_torn = |wrong: &JournalError| {
        matches!(wrong, JournalError::Broken(SegmentError { how: Corruption::Truncated, .. })) && state.is_some()
    };
    let wrong = passed.err().filter(|wrong| !is_torn(wrong));
    (state.map(|state| (state, wall)), wrong)
}

fn export(found: &[SegmentFile]) -> ExitCode {
    let mut whole = true;
    for segment in found {
        let (_, passed) = pass(&segment.path, |passage| {
            let SegmentItem::Event(envelope, state) = passage else { return Ok(()) };
            output::line(&encode_applied(envelope, state))
        });
        match passed {
            Ok(()) | Err(JournalError::Broken(SegmentError { how: Corruption::Truncated, .. })) => {}
            Err(JournalError::Io(error)) => return output::end(Err(error)),
            Err(why) => {
                eprintln!("Error: {}: {why}", segment.path.display());
                whole = false;
            }
        }
    }
    if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
