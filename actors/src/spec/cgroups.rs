//! Checks whether this machine can provide the cgroups of a configuration.

use std::{collections::BTreeSet, path::Path};

use gaggled_core::config::{Config, Diagnostic, ProgramConfig, SpanIndex, sandbox::Cgroup};

use super::settings;
use crate::host::cgroup;

/// Creates the directory of the cgroups, and tests the settings of all programs in it; the error is in words.
pub fn prepare(config: &Config, own: &Path) -> Result<(), String> {
    let was_there = own.is_dir();
    let enabled = || config.enabled_programs();
    let asked = enabled().flat_map(|(_, program)| program.cgroup.iter());
    let controllers = asked.filter_map(|(setting, _)| Cgroup::controller(setting)).collect();
    let has_settings = |(_, program): &(&str, &ProgramConfig)| !program.cgroup.is_empty();
    let prepared = cgroup::prepare(own, &controllers).map_err(|error| format!("cgroups cannot be used: {error}"));
    let tried = prepared.and_then(|()| {
        enabled().filter(has_settings).try_for_each(|(name, program)| {
            let refuse = |error| format!("the cgroup settings of program \"{name}\" cannot be applied: {error}");
            cgroup::try_settings(own, &settings(program)).map_err(refuse)
        })
    });
    if tried.is_err() && !was_there {
        let _ = std::fs::remove_dir(own);
    }
    tried
}

/// The cgroup settings that this machine cannot provide, as far as known without creating a cgroup.
pub(super) fn check(config: &Config, locator: &SpanIndex) -> Vec<Diagnostic> {
    let Some(parent) = config.gaggled.cgroup.as_deref().map(Path::new) else { return Vec::new() };
    if let Err(error) = cgroup::check(parent, &BTreeSet::new()) {
        let error = Diagnostic::error(format!("the directory for cgroups cannot be used: {error}"));
        let help = "write a directory of a cgroup2 that is mounted, for instance \"/sys/fs/cgroup/gaggled\"";
        return vec![error.at(locator.nearest(&["gaggled", "cgroup"])).help(help)];
    }
    let mut found = Vec::new();
    for (name, program) in config.enabled_programs() {
        let missing = program.cgroup.iter().find_map(|(setting, _)| {
            let error = cgroup::check(parent, &Cgroup::controller(setting).into_iter().collect()).err()?;
            Some((setting, error))
        });
        if let Some((setting, error)) = missing {
            let message = format!("the cgroup settings of program \"{name}\" cannot be applied: {error}");
            let at = locator.nearest(&["programs", name, "cgroup", setting]);
            found.push(Diagnostic::error(message).at(at).help("correct the setting, or remove it"));
        }
    }
    found
}
