//! The public interface: golden files, and a client in another language that knows only its description.

use std::{fs, path::Path, process::Command, sync::Arc};

use gaggled_core::{
    base::{
        ids::{DependencyId, EpochId, GroupId, InstanceId, ProgramId, Seq},
        time::{Instant, Millis, WallTime},
    },
    cluster::{Assumption, External, RemoteSource, UnseenReason},
    event::{
        Cause, DependencyEvent, Envelope, Event, GroupEvent, Handover, ProgramEvent, RemoteCause, RemoteEvent,
        StartKind, StopReason, SystemEvent,
    },
    graph::{Condition, Dependency, Graph, Group, Mode, Policy},
    host::probe::{ProbeError, UnhealthyReason},
    process::{ExitStatus, Outcome, Signal, SpawnStage, StartTime},
    protocol::{ErrorCode, Heartbeat, Permits, Reply, decode_event, encode_message},
    state::State,
};
use gaggled_tests::harness::{Daemon, binary};
use serde_json::Value;

/// A small system with each kind of event once.
#[expect(clippy::too_many_lines, reason = "a table of all events")]
fn everything() -> (State, Vec<Envelope>) {
    let mut graph = Graph::new(Millis(3000));
    let policy = |name: &str, mode| Policy { mode, killwait: Millis(3000), ..Policy::new(name) };
    let (db, web) = (graph.add_program(policy("db", Mode::Respawn)), graph.add_program(policy("web", Mode::Once)));
    let site = graph.add_group(Group::new("site", "start", Some("stop")));
    let mount = graph.add_program(Policy { group: Some(site), remain_after_exit: true, ..policy("mount", Mode::Wait) });
    graph.add_dependency(Dependency {
        dependent: web,
        dependency: db,
        condition: Condition::Started,
        delay: Millis(500),
        propagate: true,
    });
    let external = External {
        node: "n2".into(),
        of_group: false,
        program: "cache".into(),
        on_lost: Assumption::Down,
        on_blind: Assumption::Keep,
        lost_after: Millis(2500),
        blind_after: Millis(10_000),
    };
    let cache = graph.add_program(Policy::external("cache@n2", external));
    let operator = Cause::Operator { who: "uid 1000 (pid 77)".into(), command: "c1".into() };
    let (one, two) = (InstanceId(1), InstanceId(2));
    let program = |id: ProgramId, event| Event::Program(id, event);
    let script = [
        (
            Event::System(SystemEvent::DaemonStarted {
                version: "1.2.3".into(),
                programs: 2,
                start_kind: StartKind::First,
                adopted: 0,
                exited_meanwhile: 0,
            }),
            Cause::DaemonStart,
        ),
        (program(db, ProgramEvent::Starting { instance: one }), Cause::Event(Seq(1))),
        (
            program(db, ProgramEvent::Started { instance: one, pid: 100, start_time: StartTime(4711) }),
            Cause::Event(Seq(2)),
        ),
        (Event::Dependency(DependencyId(0), DependencyEvent::Satisfied { instance: one }), Cause::Timer(Seq(3))),
        (program(web, ProgramEvent::Starting { instance: one }), Cause::Event(Seq(4))),
        (
            program(web, ProgramEvent::SpawnFailed { instance: one, stage: SpawnStage::Exec, errno: 2 }),
            Cause::Event(Seq(5)),
        ),
        (program(web, ProgramEvent::StartRequested), operator.clone()),
        (program(web, ProgramEvent::Starting { instance: two }), Cause::Event(Seq(7))),
        (
            program(web, ProgramEvent::Started { instance: two, pid: 101, start_time: StartTime(4712) }),
            Cause::Event(Seq(8)),
        ),
        (program(web, ProgramEvent::Signalled { instance: two, signal: Signal(1) }), operator.clone()),
        (
            program(
                db,
                ProgramEvent::Exited { instance: one, status: ExitStatus::Core(11), orphans: 2, remains: false },
            ),
            Cause::Kernel,
        ),
        (
            Event::Dependency(
                DependencyId(0),
                DependencyEvent::RestartTriggered { down_event: Seq(11), before_stop: false },
            ),
            Cause::Event(Seq(11)),
        ),
        (Event::Dependency(DependencyId(0), DependencyEvent::Broken), Cause::Event(Seq(11))),
        (
            program(
                web,
                ProgramEvent::Stopping {
                    instance: two,
                    reason: StopReason::DependencyDown,
                    kill_at: Instant::from_micros(9_000_000),
                },
            ),
            Cause::Event(Seq(12)),
        ),
        (program(web, ProgramEvent::KillRequested { instance: two }), Cause::Timer(Seq(14))),
        (
            program(
                web,
                ProgramEvent::Exited { instance: two, status: ExitStatus::Signal(9), orphans: 0, remains: false },
            ),
            Cause::Event(Seq(14)),
        ),
        (program(web, ProgramEvent::RestartRequested), operator.clone()),
        (program(web, ProgramEvent::StopRequested), operator.clone()),
        (
            Event::System(SystemEvent::CommandRefused {
                code: "forbidden".into(),
                reason: "uid 5 may not ask for this".into(),
            }),
            operator.clone(),
        ),
        (
            Event::System(SystemEvent::ActorPanicked { actor: "Program(web)".into(), message: "oops".into() }),
            Cause::Kernel,
        ),
        (Event::System(SystemEvent::JournalDegraded { reason: "no space left on device".into() }), Cause::Kernel),
        (Event::System(SystemEvent::JournalRestored { lost_events: 7 }), Cause::Kernel),
        (
            Event::System(SystemEvent::JournalDamaged { file: "1-0.damaged".into(), reason: "it is damaged".into() }),
            Cause::Kernel,
        ),
        (
            program(db, ProgramEvent::Adopted { instance: one, pid: 100, start_time: StartTime(4711) }),
            Cause::Event(Seq(1)),
        ),
        (Event::System(SystemEvent::ShutdownStarted), operator),
        (Event::System(SystemEvent::ShutdownCompleted { unkillable: 0 }), Cause::Event(Seq(25))),
        (Event::System(SystemEvent::HandoverStarted { kind: Handover::Upgrade }), Cause::Kernel),
    ];
    let script = script.into_iter().chain(everything_of_a_group(site, mount)).chain(everything_of_health(web));
    let script = script.chain(everything_of_another_node(cache));
    let epoch = EpochId(1_795_169_933_570);
    let envelopes = script.zip(1_u64..).map(|((event, cause), number)| Envelope {
        seq: Seq(number),
        epoch,
        monotonic: Instant::from_micros(number * 250_125),
        time: WallTime(1_795_169_933_570_000 + i64::try_from(number).expect("a small number") * 250_125),
        cause,
        event,
    });
    (State::new(Arc::new(graph), epoch), envelopes.collect())
}

/// The events of readiness and health.
fn everything_of_health(web: ProgramId) -> Vec<(Event, Cause)> {
    let (three, os) = (InstanceId(3), || Cause::Kernel);
    let program = |event| Event::Program(web, event);
    let unhealthy = |unhealthy_reason| program(ProgramEvent::Unhealthy { instance: three, reason: unhealthy_reason });
    vec![
        (program(ProgramEvent::Starting { instance: three }), Cause::Event(Seq(37))),
        (
            program(ProgramEvent::Started { instance: three, pid: 103, start_time: StartTime(4714) }),
            Cause::Event(Seq(38)),
        ),
        (program(ProgramEvent::Daemonized { instance: three, pid: 104, start_time: StartTime(4715) }), os()),
        (program(ProgramEvent::Ready { instance: three }), os()),
        (unhealthy(UnhealthyReason::HealthCheckFailed(ProbeError::HttpStatus(503))), os()),
        (unhealthy(UnhealthyReason::ReadinessTimeout(Some(ProbeError::ForeignProcess(1)))), Cause::Timer(Seq(39))),
        (unhealthy(UnhealthyReason::WatchdogTimeout), Cause::Timer(Seq(39))),
        (
            program(ProgramEvent::Stopping {
                instance: three,
                reason: StopReason::Unhealthy,
                kill_at: Instant::from_micros(44_000_000),
            }),
            Cause::Event(Seq(44)),
        ),
        (
            program(ProgramEvent::StopCommandFailed { instance: three, status: ExitStatus::Code(1) }),
            Cause::Event(Seq(45)),
        ),
    ]
}

/// The events of a program of another node.
fn everything_of_another_node(cache: ProgramId) -> Vec<(Event, Cause)> {
    let source = |seq, falls| {
        Box::new(RemoteSource { journal: "7f3a9c2e51b04d1a".into(), epoch: EpochId(12), seq: Seq(seq), falls })
    };
    let published = |why: &[&str]| {
        let why = why.iter().map(|line| (*line).into()).collect();
        Cause::Remote(Box::new(RemoteCause { node: "n2".into(), time: WallTime(1_795_169_940_000_000), why }))
    };
    let (run, event) = (InstanceId(7), |event| Event::Remote(cache, event));
    let outcome = Some(Outcome::Exited(ExitStatus::Signal(9)));
    let down = RemoteEvent::Down { source: source(120, 6), missed: 1, planned: false, outcome };
    let completed = Some(Outcome::Exited(ExitStatus::Code(0)));
    vec![
        (event(RemoteEvent::Up { source: source(100, 4), remote_instance: run }), published(&[])),
        (event(RemoteEvent::Ready { source: source(101, 4) }), published(&[])),
        (event(down), published(&["cache was killed by SIGKILL", "the operating system reported it"])),
        (
            event(RemoteEvent::Completed {
                source: source(130, 7),
                remote_instance: InstanceId(9),
                outcome: completed,
            }),
            published(&[]),
        ),
        (event(RemoteEvent::Unseen { reason: UnseenReason::Lost, assumed_down: false }), Cause::Cluster),
        (event(RemoteEvent::Seen), Cause::Cluster),
        (event(RemoteEvent::Unseen { reason: UnseenReason::Blind, assumed_down: true }), Cause::Cluster),
    ]
}

/// The events of a group; the first of these is event 28.
fn everything_of_a_group(site: GroupId, mount: ProgramId) -> Vec<(Event, Cause)> {
    let operator = Cause::Operator { who: "uid 1000 (pid 77)".into(), command: "c2".into() };
    let (one, group) = (InstanceId(1), |event| Event::Group(site, event));
    let program = |id: ProgramId, event| Event::Program(id, event);
    vec![
        (group(GroupEvent::LevelRequested { level: "start".into() }), operator.clone()),
        (program(mount, ProgramEvent::LevelStartRequested { requested_by: Seq(28) }), Cause::Event(Seq(28))),
        (program(mount, ProgramEvent::Starting { instance: one }), Cause::Event(Seq(29))),
        (
            program(mount, ProgramEvent::Started { instance: one, pid: 102, start_time: StartTime(4713) }),
            Cause::Event(Seq(30)),
        ),
        (
            program(
                mount,
                ProgramEvent::Exited { instance: one, status: ExitStatus::Code(0), orphans: 0, remains: true },
            ),
            Cause::Kernel,
        ),
        (group(GroupEvent::LevelReached { requested_by: Seq(28) }), Cause::Event(Seq(32))),
        (group(GroupEvent::RestartRequested), operator),
        (program(mount, ProgramEvent::LevelStopRequested { requested_by: Seq(34) }), Cause::Event(Seq(34))),
        (group(GroupEvent::Failed { requested_by: Seq(34), failed_program: "mount".into() }), Cause::Event(Seq(35))),
        (group(GroupEvent::FallbackStarted { level: "stop".into() }), Cause::Event(Seq(36))),
    ]
}

/// Compares a text with a golden file; `UPDATE_GOLDEN=1` writes it anew.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, known, "the public interface has changed: {name}");
}

#[test]
fn every_event_is_written_as_it_always_was_and_reads_back() {
    let (mut state, envelopes) = everything();
    let names = state.graph.names();
    let mut text = String::new();
    for envelope in &envelopes {
        state.apply(envelope);
        let message = encode_message(envelope, &state);
        let (topic, body) = message.split_once('\n').expect("a topic");
        assert_eq!(decode_event(body, &names, &state).as_ref(), Ok(envelope));
        text.push_str(&format!("{topic}\n{body}\n"));
    }
    text.push_str(&Heartbeat::new(&state, Permits::default()).encode());
    text.push('\n');
    golden("events.txt", &text);
}

#[test]
fn every_reply_is_written_as_it_always_was() {
    let (mut state, envelopes) = everything();
    envelopes.iter().take(13).for_each(|envelope| state.apply(envelope));
    let view = gaggled_core::protocol::View::at(&state, Instant::from_micros(4_000_000));
    let done = Reply::done("a1", &view.dump(WallTime(1_795_169_937_570_000), 0, 10)).encode();
    let refused =
        Reply::refused("a2", ErrorCode::NoSuchProgram, "there is no program \"wep\"; did you mean \"web\"?").encode();
    golden("replies.txt", &format!("{done}\n{refused}\n"));
}

#[test]
fn any_text_is_refused_without_harm() {
    // A small generator of broken messages: each golden event with one byte changed, cut, or doubled.
    let (state, _) = everything();
    let names = state.graph.names();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/golden/events.txt"))
        .expect("golden events");
    let mut random = gaggled_tests::sim::random::Random::new(7);
    for line in text.lines().filter(|line| line.starts_with('{')) {
        for _ in 0..5000 {
            let mut bytes = line.as_bytes().to_vec();
            let at = usize::try_from(random.below(bytes.len() as u64)).expect("a small number");
            match random.below(3) {
                0 => bytes[at] = u8::try_from(random.below(256)).expect("a byte"),
                1 => bytes.truncate(at),
                _ => bytes.insert(at, b"{}[]\",:0"[usize::try_from(random.below(8)).expect("a small number")]),
            }
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = decode_event(&text, &names, &state);
                let _ = gaggled_core::protocol::Request::decode(text.as_bytes());
            }
        }
    }
}

#[test]
fn a_python_client_folds_a_crash_storm_of_a_thousand_programs() {
    let python = binary("gaggled").ancestors().nth(2).expect("the target folder").join("venv/bin/python");
    assert!(python.is_file(), "{} is not there: run tests/run", python.display());
    let programs: String = (0..1000)
        .map(|i| {
            let on = if i % 10 > 0 { format!("\"p{}\": (propagate: true)", i - i % 10) } else { String::new() };
            let part = if i % 3 == 0 { "\"exit\", \"200\", \"1\"" } else { "\"sleep\", \"1000000\"" };
            format!("\"p{i}\": (command: \"@PUPPET@\", argv: [{part}], backoff: (initial: 50, max: 1000), depends: {{{on}}}),")
        })
        .collect();
    let mut daemon = Daemon::new(&programs);
    daemon.wait("the first restarts", |_, state| state.programs.values().any(|program| program.restarts > 0));
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/client.py");
    let output = Command::new(python).arg(client).args([&daemon.event, &daemon.control, "4"]).output().expect("python");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1000 programs") && said.contains(" 0 differ"), "{said}");
    let applied: u64 = said.split(' ').nth(2).and_then(|word| word.parse().ok()).expect("a number");
    assert!(applied > 1000, "too quiet for a storm: {said}");
}

#[test]
fn the_description_names_every_event_and_request() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/protocol.md"))
        .expect("the description");
    let (_, envelopes) = everything();
    for envelope in &envelopes {
        assert!(text.contains(&format!("`{}`", envelope.event.name())), "{} is not described", envelope.event.name());
    }
    let (mut state, envelopes) = everything();
    envelopes.iter().take(6).for_each(|envelope| state.apply(envelope));
    let view = gaggled_core::protocol::View::at(&state, Instant::from_micros(2_000_000)).program(ProgramId(1));
    let fields = serde_json::to_value(&view).expect("JSON");
    for field in fields.as_object().into_iter().flat_map(serde_json::Map::keys) {
        assert!(text.contains(&format!("`{field}`")), "{field} is not described");
    }
    let _: Value = fields;
}
