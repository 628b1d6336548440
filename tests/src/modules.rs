//! The modules of a crate and which of them use which, read from the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// All Rust sources below a directory.
pub fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The cycles of a graph: groups of vertices that can all be reached from each other.
pub fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<&String> = graph.get(from).into_iter().flatten().collect();
        while let Some(next) = pending.pop() {
            if seen.insert(next.clone()) {
                pending.extend(graph.get(next).into_iter().flatten());
            }
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|from| (from, reached(from))).collect();
    let circle = |from: &String| -> BTreeSet<String> {
        all[from].iter().filter(|to| all.get(to).is_some_and(|back| back.contains(from))).cloned().collect()
    };
    let found: BTreeSet<BTreeSet<String>> = graph.keys().map(circle).filter(|circle| circle.len() > 1).collect();
    found.into_iter().collect()
}
