//! A ClusterIt cluster file, for putting its hosts into the configuration. `gaggled nodes` also reads the file itself.

use std::path::Path;

use gaggled_core::config::{OrderedMap, node_sets};

use super::imported::{Imported, read};

/// Reads a cluster file.
pub fn import(path: &Path) -> Result<Imported, String> {
    let (hosts, sets) = node_sets::config_of_cluster(&read(path)?).map_err(|wrong| describe_errors(path, wrong))?;
    let mut imported = Imported::default();
    imported.config.hosts = hosts;
    imported.config.nodes = OrderedMap(sets);
    imported.checked(path)
}

/// What is wrong, a line each.
pub fn describe_errors(path: &Path, wrong: Vec<node_sets::DeclarationError<usize>>) -> String {
    let line = |wrong: node_sets::DeclarationError<usize>| {
        format!("{}:{}: {}: {}", path.display(), wrong.place, wrong.message, wrong.help)
    };
    wrong.into_iter().map(line).collect::<Vec<_>>().join("\n")
}
