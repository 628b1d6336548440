//! `cargo sim -- SEED [COUNT] [MUTANT]`: runs the worlds of some seeds and shows what is wrong with them.
//!
//! One seed alone shows its whole journal.

use std::process::ExitCode;

use gaggled_tests::sim::{
    invariants,
    mutants::Mutant,
    scheduler::{Policy, Simulation},
    world::World,
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let Some(first) = number(0) else {
        eprintln!("usage: cargo sim -- SEED [COUNT] [MUTANT]");
        return ExitCode::from(2);
    };
    let count = number(1).unwrap_or(1);
    let mutant = words.get(2).and_then(|name| Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == *name));
    let mut failed = 0;
    for seed in first..first + count {
        let world = World::new(seed);
        let policy = Policy::of(seed);
        let run = Simulation::new(&world, policy, mutant).run();
        if count == 1 {
            for (id, policy) in world.graph.programs.iter() {
                println!("{id:?}: {policy:?}");
            }
            for (id, dependency) in world.graph.dependencies.iter() {
                println!("{id:?}: {dependency:?}");
            }
            for envelope in &run.envelopes {
                println!(
                    "{:>6} {:>9} {:?} <- {}",
                    envelope.seq,
                    envelope.monotonic.as_millis(),
                    envelope.event,
                    envelope.cause
                );
            }
            println!("{} events, {} steps, {policy:?}", run.envelopes.len(), run.steps);
        }
        let found = invariants::check(&world, &run);
        if !found.is_empty() {
            failed += 1;
            println!("seed {seed} ({policy:?}): {}", found.iter().take(4).cloned().collect::<Vec<_>>().join("; "));
        }
    }
    println!("{failed} of {count} fail");
    ExitCode::from(u8::from(failed > 0))
}
