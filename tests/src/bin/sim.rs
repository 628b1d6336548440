//! `cargo sim`: runs the worlds of some seeds and shows what is wrong with them.
//!
//! One seed alone shows its system and its journal, in words or as the lines that followers get.

use std::process::ExitCode;

use clap::Parser;
use gaggled_core::{journal::history, protocol::encode_event_with_state, state::State};
use gaggled_tests::sim::{
    invariants,
    mutants::Mutant,
    scheduler::{Policy, Run, Simulation},
    world::World,
};

/// Run the worlds of some seeds, and show what is wrong with them
#[derive(Parser)]
#[command(name = "cargo sim --", no_binary_name = false)]
struct Arguments {
    /// The first seed
    seed: u64,
    /// How many seeds
    #[arg(default_value_t = 1)]
    count: u64,
    /// A defect on purpose, by the name of its variant
    mutant: Option<String>,
    /// With one seed: show the events up to this number
    #[arg(long, value_name = "SEQ")]
    until: Option<u64>,
    /// With one seed: print each event as JSON, as the bus does
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let find = |name: &String| Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == *name);
    let mutant = arguments.mutant.as_ref().map(find);
    if mutant == Some(None) {
        let names: Vec<String> = Mutant::ALL.iter().map(|mutant| format!("{mutant:?}")).collect();
        eprintln!("Error: there is no mutant of this name: use one of {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mutant = mutant.flatten();
    let mut failed = 0;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.count) {
        let world = World::new(seed);
        let policy = Policy::of(seed);
        let run = Simulation::new(&world, policy, mutant).run();
        if arguments.count == 1 {
            show(&world, &run, &arguments);
        }
        let found = invariants::check(&world, &run);
        if !found.is_empty() {
            failed += 1;
            eprintln!("seed {seed} ({policy:?}): {}", found.iter().take(4).cloned().collect::<Vec<_>>().join("; "));
        }
    }
    eprintln!("{failed} of {} fail", arguments.count);
    ExitCode::from(u8::from(failed > 0))
}

fn show(world: &World, run: &Run, arguments: &Arguments) {
    if !arguments.json {
        for policy in world.graph.programs.values() {
            println!("{policy:?}");
        }
        for one in world.graph.dependencies.values() {
            let (of, on) = (&world.graph.programs[one.dependent].name, &world.graph.programs[one.dependency].name);
            println!("{of} -> {on}: {:?} for {}, propagate: {}", one.condition, one.delay, one.propagate);
        }
        for (at, action) in world.commands() {
            println!("at {} ms: {action:?}", at.as_millis());
        }
    }
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
                let words = history::describe_event(envelope, &state.graph);
                println!("{:>9} ms {:>6}  {words}  ({})", envelope.monotonic.as_millis(), envelope.seq, envelope.cause);
            }
        }
    }
}
