//! Semantic errors in the sandbox, limits, cgroup settings and pid file of a program.

use crate::{
    config::sandbox::{Cgroup, Resource},
    host::PidFile,
};

use super::{Diagnostic, ProgramConfig, SpanIndex, nearest_name};

pub(super) fn check(name: &str, program: &ProgramConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut error = |field: &str, what: &str, help: &str| {
        let error = Diagnostic::error(format!("program \"{name}\" {what}"));
        found.push(error.at(locator.nearest(&["programs", name, field])).help(help));
    };
    if program.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
        error("nice", "has a niceness out of range", "write -20 (highest priority) to 19 (lowest)");
    }
    if program.oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        error("oom_score_adj", "has a score out of range", "write -1000 (never killed) to 1000 (killed first)");
    }
    if program.user.as_ref().is_some_and(|user| user.split(':').any(str::is_empty) || user.matches(':').count() > 1) {
        error("user", "has a user without a name", "write user: \"name\", or \"name:group\"");
    }
    if program.chroot.as_ref().is_some_and(|root| !root.starts_with('/')) {
        error("chroot", "has a root that is not absolute", "write the whole path, beginning with /");
    }
    if program.pid_file.as_ref().is_some_and(|file| file.path().is_empty()) {
        error("pid_file", "has a pid file without a name", "write the path of the file");
    }
    if matches!(program.pid_file, Some(PidFile::Read(_))) && program.effective_mode().is_gate() {
        error(
            "pid_file",
            "is to run to its end, but its command leaves a daemon",
            "remove pid_file: Read(..), or the mode",
        );
    }
    for (resource, limit) in program.rlimits.iter() {
        let places = locator.all(&["programs", name, "rlimits", resource]);
        let known = Resource::ALL.map(|(known, _)| known);
        let (what, help) = if Resource::parse(resource).is_none() {
            let help = nearest_name(resource, known.into_iter())
                .unwrap_or_else(|| format!("write one of {}", known.join(", ")));
            ("is not known", help)
        } else if places.len() > 1 {
            ("is there twice", "keep one of the two".to_owned())
        } else {
            continue;
        };
        let error = Diagnostic::error(format!("limit \"{resource}\" ({limit}) of program \"{name}\" {what}"));
        found.push(error.at(places.last().cloned()).help(help));
    }
}

pub(super) fn check_cgroup(
    name: &str,
    program: &ProgramConfig,
    has_cgroups: bool,
    locator: &SpanIndex,
    found: &mut Vec<Diagnostic>,
) {
    for (setting, value) in program.cgroup.iter() {
        let places = locator.all(&["programs", name, "cgroup", setting]);
        let (what, help) = if Cgroup::controller(setting).is_none() {
            ("is not a setting of a cgroup", "write the name of a file of a controller, such as \"memory.max\"")
        } else if value.trim().is_empty() || value.contains(['\0', '\n']) {
            ("has no value", "write what the kernel takes, such as \"512M\"")
        } else if places.len() > 1 {
            ("is there twice", "keep one of the two")
        } else if !has_cgroups {
            ("needs a cgroup", "add cgroup: \"/sys/fs/cgroup/gaggled\" to the gaggled section")
        } else {
            continue;
        };
        let error = Diagnostic::error(format!("setting {setting:?} of program \"{name}\" {what}"));
        found.push(error.at(places.last().cloned()).help(help));
    }
}
