//! The scenarios of the original: a configuration whose comments say what happens when.
//!
//! `;@ 0.4 sig a SIGKILL` sends a signal 0.4 s after the start; `start`, `stop` and `kill` are the original's requests;
//! `dump` records the state of all programs; `end` ends gaggled. The events become marks on a timeline:
//!
//! | mark | of run N of program a |
//! |---|---|
//! | `a+N` | it came up |
//! | `a-N` | it ended |
//! | `a!N` | gaggled began to stop it |
//! | `a*N` | it was killed, because it did not stop in time |
//! | `a~N` | it could not be started |
//! | `a:up` `a:down` `a:restart` | an operator requested that for the first time; `a:up/2` for the second |

use std::{collections::BTreeMap, fs, path::Path, str::FromStr, sync::Arc, time::Duration};

use gaggled_core::{
    event::{Event, ProgramEvent},
    graph::Mode,
    protocol::{Action, Selection},
};
use gaggled_tools::offline::import::import_original;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{self, Daemon, DaemonOptions, directory, free_port, substitute};

/// The observations of a scenario.
pub struct Timeline {
    /// Every mark with its moment in microseconds and its place in the journal.
    pub marks: BTreeMap<String, (u64, usize)>,
    /// The dumps, in order.
    pub dumps: Vec<Value>,
    /// How gaggled ended.
    pub code: i32,
    /// The whole timeline as text.
    pub timeline: String,
    /// The daemon, which has ended.
    pub daemon: Daemon,
}

/// Runs a scenario of this name, without some of its programs.
pub fn run(name: &str, without: &[&str]) -> Timeline {
    let source = fs::read_to_string(fixture(name)).expect("a scenario");
    let directory = Arc::new(directory());
    let (event, control) = (free_port(), free_port());
    let text = substitute(&source, directory.path())
        .replace("34561", &event.to_string())
        .replace("34562", &control.to_string());
    let original = directory.path().join("original.conf");
    fs::write(&original, text).expect("a file");
    prepare(directory.path());
    let mut imported = import_original(&original).expect("it can be imported");
    imported.config.programs.0.retain(|(name, _)| !without.contains(&name.as_str()));
    let modes: BTreeMap<String, Mode> =
        imported.config.programs.iter().map(|(name, program)| (name.to_owned(), program.effective_mode())).collect();
    let printed = imported.config.print().expect("it can be printed");
    let arguments: Vec<&str> = if source.contains(";@opt args -n") { vec!["-n"] } else { Vec::new() };
    let urls = Some((format!("tcp://127.0.0.1:{event}"), format!("tcp://127.0.0.1:{control}")));
    let mut daemon =
        Daemon::with(&printed, directory, &DaemonOptions { arguments: &arguments, urls, ..DaemonOptions::default() });
    daemon.wait("its beginning", |_, _| true);
    let begun = harness::now();
    let mut dumps = Vec::new();
    let mut ended = None;
    for line in source.lines().filter_map(|line| line.strip_prefix(";@ ")) {
        let (at, action) = line.split_once(' ').expect("a moment and an action");
        let at = f64::from_str(at).expect("seconds");
        daemon.listen_until(begun + Duration::from_secs_f64(at));
        let words: Vec<&str> = action.split_whitespace().collect();
        match words.as_slice() {
            ["dump" | "ps" | "status", ..] => dumps.push(daemon.dump()),
            ["ctl", ..] => assert!(daemon.tool("gaggled_controller", &["dump"]).status.success()),
            ["end"] => ended = Some(daemon.end()),
            ["self", signal] => {
                daemon.signal(Signal::from_str(signal).expect("a signal"));
                if *signal == "SIGINT" && arguments.is_empty() {
                    ended = Some(daemon.await_end());
                    break;
                }
            }
            ["sig", program, signal] => daemon.kill(program, Signal::from_str(signal).expect("a signal")),
            ["shutdown", _] => drop(daemon.ask(Action::Shutdown { wait: false, timeout_ms: None })),
            ["start", program] => drop(daemon.ask(Action::Up(one(program)))),
            ["stop", program] => drop(daemon.ask(Action::Down(one(program)))),
            // The original's `kill` restarted a program that respawns, and sent a signal to any other.
            ["kill", program] => drop(match modes.get(*program) {
                Some(Mode::Respawn) => daemon.ask(Action::Restart(one(program))),
                _ => daemon.ask(Action::Signal { programs: vec![(*program).to_owned()], signal: "TERM".to_owned() }),
            }),
            other => panic!("{other:?} is no action"),
        }
        if daemon.must_have_ended() {
            ended = Some(daemon.await_end());
            break;
        }
    }
    let status = ended.unwrap_or_else(|| daemon.end());
    Timeline { marks: marks(&daemon), dumps, code: harness::code(status), timeline: daemon.timeline(), daemon }
}

/// The path of a fixture of the original.
pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/original").join(format!("{name}.conf"))
}

fn one(program: &str) -> Selection {
    Selection { programs: vec![program.to_owned()], wait: false, timeout_ms: None }
}

/// Files that some scenarios name: a binary of no known format, a script that names no interpreter, a program.
fn prepare(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let bin = directory.join("bin");
    fs::create_dir(&bin).expect("a directory");
    for (name, bytes) in [
        ("badformat", &b"\x7fELF\0\0\0\0garbage"[..]),
        ("nointerp", b"sleep 1\n"),
        ("relprog", b"#!/bin/sh\nsleep 9\n"),
    ] {
        let path = bin.join(name);
        fs::write(&path, bytes).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
}

fn marks(daemon: &Daemon) -> BTreeMap<String, (u64, usize)> {
    let names = &daemon.state().graph.programs;
    let mut marks = BTreeMap::new();
    for (place, envelope) in daemon.heard.iter().enumerate() {
        let Event::Program(id, event) = &envelope.event else { continue };
        let name = &names[*id].name;
        let mark = match event {
            ProgramEvent::Started { instance, .. } => format!("{name}+{instance}"),
            ProgramEvent::Exited { instance, .. } => format!("{name}-{instance}"),
            ProgramEvent::Stopping { instance, .. } => format!("{name}!{instance}"),
            ProgramEvent::KillRequested { instance } => format!("{name}*{instance}"),
            ProgramEvent::Daemonized { instance, .. } => format!("{name}&{instance}"),
            ProgramEvent::Ready { instance } => format!("{name}.{instance}"),
            ProgramEvent::Unhealthy { instance, .. } => format!("{name}?{instance}"),
            ProgramEvent::SpawnFailed { instance, .. } => format!("{name}~{instance}"),
            ProgramEvent::StartRequested => format!("{name}:up"),
            ProgramEvent::StopRequested => format!("{name}:down"),
            ProgramEvent::RestartRequested => format!("{name}:restart"),
            ProgramEvent::Starting { .. }
            | ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::Adopted { .. }
            | ProgramEvent::LevelStartRequested { .. }
            | ProgramEvent::LevelStopRequested { .. }
            | ProgramEvent::Signalled { .. } => continue,
        };
        let again = (2..).map(|count| format!("{mark}/{count}"));
        let mark =
            std::iter::once(mark.clone()).chain(again).find(|mark| !marks.contains_key(mark)).expect("a free mark");
        marks.insert(mark, (envelope.monotonic.as_micros(), place));
    }
    marks
}

impl Timeline {
    /// Checks statements, one per line:
    ///
    /// `X < Y` X happened before Y · `X +400 <= Y` at least 400 ms before · `X ~100 Y` Y followed within 100 ms ·
    /// `no X` it did not happen · `dump N PROGRAM FIELD VALUE` that stood in the Nth dump · `type X VALUE` the
    /// `exit_kind` in the event · `exit CODE` gaggled's own exit status.
    pub fn check(&self, sentences: &str) {
        for sentence in sentences.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = sentence.split_whitespace().collect();
            let holds = match words.as_slice() {
                ["no", mark] => !self.marks.contains_key(*mark),
                ["exit", code] => self.code == code.parse::<i32>().expect("a number"),
                ["dump", number, program, field, value] => {
                    let dump = &self.dumps[number.parse::<usize>().expect("a number") - 1];
                    let seen = &dump[*program][*field];
                    seen.as_str().map_or_else(|| seen.to_string(), str::to_owned) == *value
                }
                ["type", mark, value] => {
                    let place = self.at(mark).1;
                    let event: Value = serde_json::from_str(&self.daemon.texts[place]).expect("JSON");
                    event["state"]["exit_kind"] == **value
                }
                [first, "<", rest @ ..] => {
                    let chain: Vec<usize> = std::iter::once(first)
                        .chain(rest.iter().filter(|word| **word != "<"))
                        .map(|mark| self.at(mark).1)
                        .collect();
                    chain.windows(2).all(|pair| pair[0] < pair[1])
                }
                [first, span, "<=", second] => self.at(first).0 + millis(span) <= self.at(second).0,
                [first, span, second] => {
                    let (first, second) = (self.at(first).0, self.at(second).0);
                    first <= second && second <= first + millis(span)
                }
                _ => panic!("{sentence:?} is no sentence"),
            };
            assert!(holds, "{sentence}\n{}\n{:?}", self.timeline, self.dumps);
        }
    }

    fn at(&self, mark: &str) -> (u64, usize) {
        *self
            .marks
            .get(mark)
            .unwrap_or_else(|| panic!("{mark} did not happen\n{}\n{}", self.timeline, self.daemon.log()))
    }
}

fn millis(word: &str) -> u64 {
    1000 * word.trim_start_matches(['+', '~']).parse::<u64>().expect("milliseconds")
}
