//! `journalist DIRECTORY COUNT`: writes a journal of COUNT events as the daemon does, reads it back, and prints how
//! long that took. For the benchmark.

use std::{path::PathBuf, sync::Arc, time::Duration};

use gaggled_actors::journal::{
    directory::{StateDirectory, boot, segments},
    reader::{EventQuery, JournalReader},
    writer_command::{Retention, WriterInit},
    writer_handle::JournalWriterHandle,
};
use gaggled_core::{
    base::{
        ids::{DenseId, EpochId, InstanceId, Position, ProgramId},
        time::{Instant, Millis, WallTime},
    },
    event::{Cause, Envelope, Event, ProgramEvent},
    graph::{Backoff, Graph, Policy},
    journal::{
        Journal,
        segment::{ConfigSource, FORMAT, SegmentHeader},
    },
    process::{ExitStatus, StartTime},
    state::State,
};
use gaggled_tests::harness::now;

const PROGRAMS: usize = 100;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(directory), Some(count)) = (words.first(), words.get(1).and_then(|word| word.parse::<u64>().ok())) else {
        eprintln!("usage: journalist DIRECTORY COUNT");
        std::process::exit(2);
    };
    let directory = StateDirectory::open(&PathBuf::from(directory), None).expect("a directory for the journal");
    let mut journal = Journal::resume(State::new(Arc::new(graph()), EpochId(1)));
    let head = SegmentHeader {
        v: FORMAT,
        journal: directory.identity.clone(),
        boot: boot(),
        epoch: EpochId(1),
        config: ConfigSource::default(),
        lost_events: 0,
        cgroups: Vec::new(),
    };
    let retention = Retention { bytes: 4 << 30, age: Millis::MAX };
    let journaled = WriterInit { head, state: journal.state().clone(), opening: Vec::new() };
    let (file, thread) = JournalWriterHandle::start(
        directory.path().to_owned(),
        journaled,
        retention,
        Arc::new(|_| {}),
        Arc::new(|| ()),
    )
    .expect("a thread");
    let mut sink = file.sink();
    let begun = now();
    for number in 0..count {
        let envelope = Arc::new(commit(&mut journal, number));
        sink(&envelope, journal.state());
        if number % 10_000 == 0 {
            // Wait for the disk, so that no event is dropped.
            file.written(Duration::from_secs(60)).expect("the disk answers");
        }
    }
    file.flush(Duration::from_secs(60)).expect("the disk answers");
    let seconds = begun.elapsed().as_secs_f64();
    let bytes: u64 =
        segments(directory.path()).iter().map(|file| file.path.metadata().map_or(0, |found| found.len())).sum();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    {
        println!("written_per_second {:.0}", count as f64 / seconds);
        println!("bytes_per_event {:.0}", bytes as f64 / count as f64);
    }
    drop((sink, file));
    thread.join().expect("it ends");
    let begun = now();
    let remains = directory.recover(8192).expect("it can be read");
    println!("recovery_ms {:.1}", begun.elapsed().as_secs_f64() * 1000.0);
    assert_eq!(
        remains.last.as_ref().map(|(_, state)| state),
        Some(journal.state()),
        "what was written is what is read"
    );
    let begun = now();
    let never = Some(WallTime(i64::MAX));
    let wanted = EventQuery { after: Position::default(), from: never, until: None, program: None, limit: 1 };
    let found = JournalReader::new(directory.path()).events(&wanted);
    println!("passed_through_ms {:.0}", begun.elapsed().as_secs_f64() * 1000.0);
    assert!(!found.gap, "nothing is missing");
}

fn graph() -> Graph {
    let mut graph = Graph::new(Millis(1000));
    for i in 0..PROGRAMS {
        graph.add_program(Policy {
            killwait: Millis(1000),
            backoff: Backoff { initial: Millis(0), max: Millis(0), reset: Millis(0) },
            ..Policy::new(&format!("program-{i}"))
        });
    }
    graph
}

/// Commits the next event: programs start, run and end in turn.
fn commit(journal: &mut Journal, number: u64) -> Envelope {
    let program = ProgramId::at(usize::try_from(number / 3).expect("a small number") % PROGRAMS);
    let known = journal.state().programs[program].instance;
    let event = match number % 3 {
        0 => ProgramEvent::Starting { instance: InstanceId(known.0 + 1) },
        1 => ProgramEvent::Started { instance: known, pid: 4711, start_time: StartTime(number) },
        _ => ProgramEvent::Exited { instance: known, status: ExitStatus::Code(1), orphans: 0, remains: false },
    };
    let at = Instant::from_micros(number);
    let cause = if number.is_multiple_of(3) { Cause::DaemonStart } else { Cause::Event(journal.state().seq) };
    journal.commit_unchecked(
        at,
        WallTime(i64::try_from(number).expect("a small number")),
        Event::Program(program, event),
        cause,
    )
}
