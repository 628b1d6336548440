//! Ten thousand worlds, and the defects that they must find.

use std::{fs, path::Path};

use gaggled_tests::sim::{
    actix, invariants,
    mutants::Mutant,
    scheduler::{Policy, Simulation},
    script::Script,
    world::World,
};

fn violations(seed: u64, mutant: Option<Mutant>) -> Vec<String> {
    let world = World::new(seed);
    let run = Simulation::new(&world, Policy::of(seed), mutant).run();
    invariants::check(&world, &run)
}

#[test]
fn ten_thousand_worlds_keep_every_invariant() {
    let failed: Vec<_> =
        (0..10_000).map(|seed| (seed, violations(seed, None))).filter(|(_, found)| !found.is_empty()).collect();
    let shown: Vec<String> =
        failed.iter().take(5).map(|(seed, found)| format!("seed {seed}: {}", found.join("; "))).collect();
    assert!(
        failed.is_empty(),
        "{} of 10000 seeds fail; replay one with `cargo sim -- SEED`, shrink it with `--shrink FILE`\n{}",
        failed.len(),
        shown.join("\n")
    );
}

#[test]
fn every_mutant_is_killed() {
    let survivors: Vec<Mutant> = Mutant::ALL
        .into_iter()
        .filter(|mutant| (0..2_000).all(|seed| violations(seed, Some(*mutant)).is_empty()))
        .collect();
    assert!(survivors.is_empty(), "these defects were not found in 2000 seeds: {survivors:?}");
}

#[test]
fn the_real_actors_write_the_same_journal() {
    for seed in 0..1_000 {
        let world = World::new(seed).without_crashes();
        let simulated = Simulation::new(&world, Policy::Fifo, None).run().envelopes;
        let real = actix::run(&world);
        let differ = simulated.iter().zip(&real).find(|(simulated, real)| simulated != real);
        assert!(differ.is_none(), "seed {seed}: {differ:#?}");
        assert_eq!(simulated.len(), real.len(), "seed {seed}");
    }
}

/// Worlds that once failed, shrunk. Each violates its invariant with the defect that it names, and none without it.
#[test]
fn every_scenario_finds_its_defect_and_nothing_else() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut count = 0;
    for entry in fs::read_dir(directory).expect("scenarios") {
        let path = entry.expect("a scenario").path();
        let text = fs::read_to_string(&path).expect("a scenario");
        let script: Script = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let without = Script { mutant: None, ..script.clone() };
        assert_eq!(without.violations(), Vec::<String>::new(), "{}", path.display());
        assert!(script.mutant.is_none() || script.holds(), "{}: {:?}", path.display(), script.violations());
        count += 1;
    }
    assert!(count >= 3);
}
