//! `cargo sim`: runs the worlds of some seeds and shows what is wrong with them.
//!
//! One seed alone shows its system and its journal, in words or as the lines that followers get.

use std::{fmt::Debug, fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use gaggled_core::{
    protocol::{describe_event, encode_event_with_state},
    state::State,
};
use gaggled_tests::sim::{
    cluster::{mutants::ClusterMutant, network::Network, world::ClusterWorld},
    invariants,
    mutants::Mutant,
    scheduler::{Run, Simulation},
    script::Script,
    shrink::shrink,
};

/// Run the worlds of some seeds, and show what is wrong with them
#[derive(Parser)]
#[command(name = "cargo sim --", no_binary_name = false)]
struct Arguments {
    /// The first seed
    #[arg(required_unless_present = "scenario")]
    seed: Option<u64>,
    /// How many seeds
    #[arg(default_value_t = 1)]
    count: u64,
    /// A defect on purpose, by the name of its variant
    mutant: Option<String>,
    /// Run the scenario in this file instead of the world of a seed
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    scenario: Option<PathBuf>,
    /// Run clusters of several nodes
    #[arg(long, conflicts_with_all = ["scenario", "shrink"])]
    cluster: bool,
    /// With one seed: show the events up to this number
    #[arg(long, value_name = "SEQ")]
    until: Option<u64>,
    /// With one seed: print each event as JSON, as the bus does
    #[arg(long)]
    json: bool,
    /// Make the first world that fails as small as it can be and still fail alike, and write it to this file
    #[arg(long, value_name = "FILE")]
    shrink: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the given scenario or seeds, and returns how many worlds fail.
fn run(arguments: &Arguments) -> Result<u64, String> {
    if let Some(path) = &arguments.scenario {
        let named = |error: String| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let script: Script = text.parse().map_err(named)?;
        return Ok(u64::from(fails(&script, &path.display().to_string(), arguments)?));
    }
    if arguments.cluster {
        return run_clusters(arguments);
    }
    let mutant = arguments.mutant.as_deref().map(|name| mutant_named(name, &Mutant::ALL)).transpose()?;
    let first = arguments.seed.unwrap_or_default();
    let mut failed = 0;
    for seed in first..first.saturating_add(arguments.count) {
        if fails(&Script::of(seed, mutant), &format!("seed {seed}"), arguments)? {
            failed += 1;
            if arguments.shrink.is_some() {
                break;
            }
        }
    }
    eprintln!("{failed} of {} fail", arguments.count);
    Ok(failed)
}

/// Runs the clusters of the given seeds, and returns how many fail.
fn run_clusters(arguments: &Arguments) -> Result<u64, String> {
    let mutant = arguments.mutant.as_deref().map(|name| mutant_named(name, &ClusterMutant::ALL)).transpose()?;
    let first = arguments.seed.unwrap_or_default();
    let mut failed = 0;
    for seed in first..first.saturating_add(arguments.count) {
        let (runs, found) = Network::new(ClusterWorld::new(seed, mutant), mutant).run();
        if arguments.count == 1 {
            for (number, run) in runs.iter().enumerate() {
                println!("node n{number}:");
                show_events(run, arguments);
            }
        }
        if !found.is_empty() {
            failed += 1;
            eprintln!("cluster {seed}: {}", found.iter().take(4).cloned().collect::<Vec<_>>().join("; "));
        }
    }
    eprintln!("{failed} of {} fail", arguments.count);
    Ok(failed)
}

fn mutant_named<T: Copy + Debug>(name: &str, all: &[T]) -> Result<T, String> {
    let found = all.iter().find(|mutant| format!("{mutant:?}") == name).copied();
    let names = || all.iter().map(|mutant| format!("{mutant:?}")).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("there is no mutant {name}: use one of {}", names()))
}

/// Whether a world fails. It is shown if it is the only one, and shrunk if requested.
fn fails(script: &Script, name: &str, arguments: &Arguments) -> Result<bool, String> {
    let run = Simulation::new(&script.world, script.order, script.mutant).run();
    if arguments.count == 1 && arguments.shrink.is_none() {
        show(script, &run, arguments);
    }
    let found = invariants::check(&script.world, &run);
    if found.is_empty() {
        return Ok(false);
    }
    eprintln!("{name} ({:?}): {}", script.order, found.iter().take(4).cloned().collect::<Vec<_>>().join("; "));
    if let Some(path) = &arguments.shrink {
        if !script.holds() {
            return Err(format!("{name} fails without the defect, too: shrink it without {:?}", script.mutant));
        }
        fs::write(path, shrink(script.clone()).print()).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("the smallest world that fails alike is in {}", path.display());
    }
    Ok(true)
}

fn show(script: &Script, run: &Run, arguments: &Arguments) {
    if !arguments.json {
        println!("{}", script.print());
    }
    show_events(run, arguments);
}

fn show_events(run: &Run, arguments: &Arguments) {
    for life in &run.lives {
        let mut state: State = life.start.clone();
        for envelope in &life.envelopes {
            state.apply(envelope);
            if arguments.until.is_some_and(|until| envelope.seq.0 > until) {
                return;
            }
            if arguments.json {
                let after = state.graph.subject(&envelope.event).map(|program| (program, &state.programs[program]));
                println!("{}", encode_event_with_state(envelope, &state.graph, after));
            } else {
                let words = describe_event(envelope, &state.graph);
                println!("{:>9} ms {:>6}  {words}  ({})", envelope.monotonic.as_millis(), envelope.seq, envelope.cause);
            }
        }
    }
}
