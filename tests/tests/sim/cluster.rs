//! A thousand clusters of several nodes, and the defects that they must find.

use gaggled_tests::sim::cluster::{mutants::ClusterMutant, network::Network, world::ClusterWorld};

fn violations(seed: u64, mutant: Option<ClusterMutant>) -> Vec<String> {
    Network::new(ClusterWorld::new(seed, mutant), mutant).run().1
}

/// Seeds beyond the first thousand that have found a defect: a refused proposal of a dependency that was not made anew for the
/// next run of the program.
const ONCE_FAILED: [u64; 1] = [2679];

#[test]
fn a_thousand_clusters_keep_every_invariant() {
    let failed: Vec<_> = (0..1_000)
        .chain(ONCE_FAILED)
        .map(|seed| (seed, violations(seed, None)))
        .filter(|(_, found)| !found.is_empty())
        .collect();
    let shown: Vec<String> =
        failed.iter().take(5).map(|(seed, found)| format!("seed {seed}: {}", found.join("; "))).collect();
    assert!(
        failed.is_empty(),
        "{} seeds fail; replay one with `cargo sim -- --cluster SEED`\n{}",
        failed.len(),
        shown.join("\n")
    );
}

#[test]
fn every_defect_between_nodes_is_found() {
    let survivors: Vec<ClusterMutant> = ClusterMutant::ALL
        .into_iter()
        .filter(|mutant| (0..300).all(|seed| violations(seed, Some(*mutant)).is_empty()))
        .collect();
    assert!(survivors.is_empty(), "these defects were not found in 300 seeds: {survivors:?}");
}
