//! Semantic errors: settings that can be parsed, but not carried out.
//!
//! Only errors that the text alone shows; whether a command exists is checked where it will run.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

mod cluster;
mod cycles;
mod groups;
mod health;
mod sandbox;

use crate::{
    base::{
        text::{NAME_MAX, is_of_name},
        time::Millis,
    },
    cluster::split_name,
    config::{log_policy::Rotate, node_sets::NodeSets},
    graph::{Backoff, Condition, Mode, StartLimit},
    host::{PidFile, probe::ReadinessProbe},
    process::Signal,
};

use super::{Config, Diagnostic, NodesPlace, OrderedMap, ProgramConfig, SmtpgateConfig, SpanIndex, Tls};

/// The name of the program that writes logs which are rotated or merged.
pub const LOGGER: &str = "logger";

pub use self::cluster::own_externals;

/// The name of the program that `smtpgate: (auto: true)` adds.
pub const SMTPGATE: &str = "smtpgate";

pub(super) fn check(config: &Config, locator: &SpanIndex) -> Vec<Diagnostic> {
    let has_cgroups = config.gaggled.cgroup.is_some();
    let mut checker = Checker { programs: config.programs.iter().collect(), has_cgroups, locator, found: Vec::new() };
    settings(config, locator, &mut checker.found);
    let mut seen = BTreeSet::new();
    for (name, program) in config.programs.iter() {
        if seen.insert(name) {
            check_name(name, locator, &mut checker.found);
            checker.check_program(name, program);
        }
    }
    groups::check(config, locator, &mut checker.found);
    check_nodes(config, locator, &mut checker.found);
    check_logs(config, locator, &mut checker.found);
    check_shared_files(config, locator, &mut checker.found);
    cycles::check(config, locator, &mut checker.found);
    cluster::check(config, locator, &mut checker.found);
    checker.found
}

/// Checks each program in the context of the others.
struct Checker<'a> {
    programs: BTreeMap<&'a str, &'a ProgramConfig>,
    /// Whether programs get cgroups.
    has_cgroups: bool,
    locator: &'a SpanIndex,
    found: Vec<Diagnostic>,
}

fn settings(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let settings = &config.gaggled;
    check_env(&["gaggled"], "gaggled", &settings.env, locator, found);
    for (name, value) in [("tick", settings.tick), ("startwait", settings.startwait)] {
        if value.is_some() {
            found.push(
                Diagnostic::warning(format!("{name} has no effect: nothing polls"))
                    .at(locator.find(&["gaggled", name]))
                    .help(format!("remove {name}")),
            );
        }
    }
    let is_usable =
        |path: &String| path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..");
    if !settings.cgroup.as_ref().is_none_or(is_usable) {
        found.push(
            Diagnostic::error("the directory for cgroups is not absolute, or goes up again with ..")
                .at(locator.find(&["gaggled", "cgroup"]))
                .help("write the whole path, for instance \"/sys/fs/cgroup/gaggled\""),
        );
    }
    check_backoff("gaggled", settings.backoff, locator.find(&["gaggled", "backoff"]), found);
    check_limit("gaggled", settings.start_limit, locator.find(&["gaggled", "start_limit"]), found);
    if let Some(gate) = &settings.smtpgate {
        smtpgate(config, gate, locator, found);
    }
}

fn smtpgate(config: &Config, gate: &SmtpgateConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let at = |field: &str| locator.nearest(&["gaggled", "smtpgate", field]);
    for (field, missing) in [("mx", gate.mx.is_empty()), ("from", gate.from.is_empty()), ("to", gate.to.is_empty())] {
        if missing {
            let message = format!("smtpgate has no {field}");
            found.push(Diagnostic::error(message).at(at(field)).help(format!("add {field} to the smtpgate section")));
        }
    }
    if gate.period.0 == 0 {
        found.push(
            Diagnostic::error("smtpgate has a period of 0")
                .at(at("period"))
                .help("write 1 ms or more, for instance \"10s\""),
        );
    }
    if gate.timeout.0 == 0 {
        found.push(
            Diagnostic::error("smtpgate has a timeout of 0").at(at("timeout")).help("write for instance \"45s\""),
        );
    }
    if gate.user.is_some() != gate.password_file.is_some() {
        let message = "smtpgate has only one of user and password_file";
        found.push(Diagnostic::error(message).at(at("user")).help("give both, or neither"));
    }
    if gate.user.is_some() && gate.tls == Tls::None {
        let message = "smtpgate would send its password in the clear";
        found.push(Diagnostic::error(message).at(at("user")).help("add tls: StartTls or tls: Implicit"));
    }
    if gate.auto && config.programs.get(SMTPGATE).is_some() {
        found.push(
            Diagnostic::error(format!("program \"{SMTPGATE}\" is there twice: smtpgate.auto adds one of that name"))
                .at(locator.find(&["programs", SMTPGATE]))
                .help("rename the program, or remove auto: true"),
        );
    }
}

/// Whether a name can be typed, printed and mailed as it is.
fn is_usable(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(is_of_name)
}

/// The error about a name that is not usable.
fn unusable(what: &str, name: &str) -> Diagnostic {
    Diagnostic::error(format!("name {name:?} cannot be used for a {what}"))
        .help(format!("use 1 to {NAME_MAX} of the letters a-z, A-Z, 0-9, and . _ -"))
}

fn check_name(name: &str, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    if !is_usable(name) {
        found.push(unusable("program", name).at(locator.find(&["programs", name])));
    }
    if let [_, again, ..] = locator.all(&["programs", name]) {
        found.push(
            Diagnostic::error(format!("program \"{name}\" is there twice"))
                .at(Some(again.clone()))
                .help("rename one of the two, or remove it"),
        );
    }
}

impl Checker<'_> {
    fn check_program(&mut self, name: &str, program: &ProgramConfig) {
        let locator = self.locator;
        let found = &mut self.found;
        let here = locator.find(&["programs", name]);
        let field = |field: &str| locator.nearest(&["programs", name, field]);
        match (&program.command, &program.shell) {
            (None, None) => found.push(
                Diagnostic::error(format!("program \"{name}\" has no command"))
                    .at(here.clone())
                    .help("add command: \"...\", or shell: \"...\" for a line of shell"),
            ),
            (Some(_), Some(_)) => found.push(
                Diagnostic::error(format!("program \"{name}\" has both a command and a shell line"))
                    .at(field("shell"))
                    .help("keep one of the two"),
            ),
            (Some(line), None) | (None, Some(line)) if line.is_empty() => {
                found.push(
                    Diagnostic::error(format!("program \"{name}\" has an empty command"))
                        .at(here.clone())
                        .help("write what to run"),
                );
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if program.shell.is_some() && !program.argv.is_empty() {
            found.push(
                Diagnostic::error(format!("program \"{name}\" has arguments for a shell line"))
                    .at(field("argv"))
                    .help("write them into the line itself"),
            );
        }
        if program.mode.is_some() && program.respawn.is_some() {
            found.push(
                Diagnostic::error(format!("program \"{name}\" has both respawn and mode"))
                    .at(field("respawn"))
                    .help("keep mode: respawn: false is mode: Once"),
            );
        }
        let ProgramConfig { command, shell, wd, log, stop_command: stop, user, chroot, .. } = program;
        let texts = [command, shell, wd, log, stop, user, chroot].into_iter().flatten().chain(&program.argv);
        let texts = texts.chain(program.pid_file.as_ref().map(PidFile::path)).chain(health::texts(program));
        if texts.into_iter().any(|text| text.contains('\0')) {
            found.push(
                Diagnostic::error(format!("program \"{name}\" has a NUL character in a text"))
                    .at(here)
                    .help("remove it"),
            );
        }
        if let Some(backoff) = program.backoff {
            check_backoff(name, backoff, locator.find(&["programs", name, "backoff"]), found);
        }
        check_limit(name, program.start_limit, locator.find(&["programs", name, "start_limit"]), found);
        check_mode(name, program, locator, found);
        check_env(&["programs", name], name, &program.env, locator, found);
        sandbox::check(name, program, locator, found);
        sandbox::check_cgroup(name, program, self.has_cgroups, locator, found);
        health::check(name, program, locator, found);
        self.check_depends(name, program);
    }

    fn check_depends(&mut self, name: &str, program: &ProgramConfig) {
        // Programs of other nodes are checked in `cluster`.
        for (on, depends) in program.depends.iter().filter(|(on, _)| split_name(on).is_none()) {
            let places = self.locator.all(&["programs", name, "depends", on]);
            let other = self.programs.get(on);
            let mode = other.map(|other| other.effective_mode()).unwrap_or_default();
            let once = mode != Mode::Respawn;
            let until = other.map_or(Condition::Started, |other| depends.effective_condition(other));
            let needs = format!("program \"{name}\" depends on \"{on}\"");
            let error = match other {
                None => Diagnostic::error(format!("{needs}, which does not exist"))
                    .help(nearest_name(on, self.programs.keys().copied()).unwrap_or_else(|| {
                        "add such a program, or remove the dependency".to_owned()
                    })),
                Some(other) if !other.enabled && program.enabled => {
                    Diagnostic::error(format!("{needs}, which is disabled"))
                        .help(format!(
                            "enable \"{on}\" (autostart: false leaves its start to an operator), disable \"{name}\", or remove the dependency"
                        ))
                }
                Some(_) if places.len() > 1 => {
                    Diagnostic::error(format!("{needs} twice")).help("keep one of the two")
                }
                Some(_) if until == Condition::Completed && !once => {
                    Diagnostic::error(format!("{needs} to complete, which is started again whenever it ends"))
                        .help(format!("give \"{on}\" mode: Once, or remove condition"))
                }
                Some(_) if until == Condition::Completed && depends.propagate => {
                    Diagnostic::error(format!("{needs} to complete, so there is nothing to propagate when it is down"))
                        .help("remove propagate")
                }
                Some(_) if matches!(until, Condition::Started | Condition::Ready) && once => Diagnostic::warning(format!(
                    "{needs}, which runs once: \"{name}\" can start only while \"{on}\" runs"
                ))
                .help(format!("if \"{on}\" is to have ended well first, add condition: Completed")),
                Some(_) => continue,
            };
            self.found.push(error.at(places.last().cloned()));
        }
    }
}

/// Two programs must not share a pid file, or a log that is rotated or searched for a readiness line.
fn check_shared_files(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let is_own =
        |program: &ProgramConfig| program.rotate.is_some() || matches!(program.ready, Some(ReadinessProbe::LogLine(_)));
    let mut pid_files: BTreeMap<&str, &str> = BTreeMap::new();
    let mut logs: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for (name, program) in config.programs.iter() {
        let mut shared = |other: &str, field: &str, what: &str| {
            let message = format!("program \"{name}\" has the same {what} as \"{other}\"");
            let error = Diagnostic::error(message).at(locator.nearest(&["programs", name, field]));
            found.push(error.help("give each a file of its own"));
        };
        if let Some(other) = program.pid_file.as_ref().and_then(|file| pid_files.insert(file.path(), name)) {
            shared(other, "pid_file", "pid file");
        }
        let Some(log) = program.log.as_deref().filter(|log| *log != "/dev/null") else { continue };
        if let Some((other, others_own)) = logs.insert(log, (name, is_own(program)))
            && (others_own || is_own(program))
        {
            shared(other, "log", "log");
        }
    }
}

fn check_logs(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    for (name, program) in config.programs.iter() {
        let Some(rotate) = program.rotate else { continue };
        let mut error = |what: &str, help: &str| {
            let error = Diagnostic::error(format!("program \"{name}\" {what}"));
            found.push(error.at(locator.find(&["programs", name, "rotate"])).help(help));
        };
        if program.log.as_deref().is_none_or(|log| log.starts_with("/dev/")) {
            error("is to have its log rotated, and has no log", "add log: \"...\", or remove rotate");
        }
        if rotate.size < Rotate::SMALLEST || rotate.age == Some(Millis(0)) {
            error("has a rotation size or age that is too small", "write size: 4096 or more, and age: \"1h\" or so");
        }
        if !(1..=Rotate::MOST).contains(&rotate.max_files) {
            error("is to keep too few logs, or too many", &format!("write max_files: 1 to {}", Rotate::MOST));
        }
    }
    if config.needs_logger() && config.programs.get(LOGGER).is_some() {
        found.push(
            Diagnostic::error(format!(
                "program \"{LOGGER}\" is there twice: rotate and prefix_output add one of that name"
            ))
            .at(locator.find(&["programs", LOGGER]))
            .help("rename the program"),
        );
    }
}

fn check_nodes(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    for wrong in NodeSets::new(&config.statements_of_nodes()).err().into_iter().flatten() {
        let at = match &wrong.place {
            NodesPlace::Hosts => locator.find(&["hosts"]),
            NodesPlace::Set(set) => locator.find(&["nodes", set]),
        };
        found.push(Diagnostic::error(wrong.message).at(at).help(wrong.help));
    }
    for (set, _) in config.nodes.iter() {
        if let [_, again, ..] = locator.all(&["nodes", set]) {
            let error = Diagnostic::error(format!("set \"{set}\" is there twice")).at(Some(again.clone()));
            found.push(error.help("put the members together, or rename one of the two"));
        }
    }
}

fn check_mode(name: &str, program: &ProgramConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mode = program.effective_mode();
    let mut error = |field: &str, what: &str, help: &str| {
        let error = Diagnostic::error(format!("program \"{name}\" {what}"));
        found.push(error.at(locator.nearest(&["programs", name, field])).help(help));
    };
    if mode == Mode::Respawn && program.retry {
        error("retry", "is started again however it ends", "remove retry, or give it mode: Once");
    }
    if mode.is_gate() && program.start_limit.is_some() && !program.retry {
        error(
            "start_limit",
            "has a start limit, but runs only once",
            "remove start_limit, or the mode, or add retry: true",
        );
    }
    if mode == Mode::Test && program.stop_command.is_some() {
        error("stop_command", "is of mode Test, and has a stop command", "give it mode: Wait, or remove stop_command");
    }
    if program.stop_signal.as_deref().is_some_and(|name| Signal::parse(name).is_none_or(|signal| !signal.may_end())) {
        let help = "write a signal that a program can take as a request to end, such as \"INT\", \"QUIT\" or \"USR1\"";
        error("stop_signal", "has a stop signal that cannot ask it to end", help);
    }
    if program.leaves.is_some() && matches!(mode, Mode::Respawn | Mode::Test) {
        error("leaves", "has a mode that keeps no processes", "remove leaves, or give it mode: Once or Wait");
    }
    if mode == Mode::Respawn && program.start_timeout.is_some() && program.ready_on_start() {
        let help = "add ready, remove start_timeout, or give it mode: Once if it is meant to end by itself";
        error("start_timeout", "is ready as soon as it runs, so nothing is waited for", help);
    }
    if program.success_exit_codes.iter().any(|code| !(0..=255).contains(code)) {
        error("success_exit_codes", "has an exit code for success out of range", "write codes from 0 to 255");
    }
}

fn check_backoff(whose: &str, backoff: Backoff, at: Option<Range<usize>>, found: &mut Vec<Diagnostic>) {
    if backoff.initial > backoff.max {
        let (initial, max) = (backoff.initial, backoff.max);
        let error = Diagnostic::error(format!("backoff of \"{whose}\" begins with {initial} and goes up to {max}"));
        found.push(error.at(at).help("write an initial that is not more than max"));
    }
}

fn check_limit(whose: &str, limit: Option<StartLimit>, at: Option<Range<usize>>, found: &mut Vec<Diagnostic>) {
    let Some(limit) = limit else { return };
    let error = |what: &str, help: String| Diagnostic::error(format!("start_limit of \"{whose}\" {what}")).help(help);
    if !(1..=StartLimit::MAX_BURST).contains(&limit.burst) {
        let help = format!("write burst: 1 to {}, or remove start_limit", StartLimit::MAX_BURST);
        found.push(error(&format!("allows {} starts", limit.burst), help).at(at));
    } else if limit.interval.0 == 0 || limit.retry_after.is_some_and(|retry| retry.0 == 0) {
        found.push(error("has a time of 0", "write for instance interval: \"1m\"".to_owned()).at(at));
    }
}

fn check_env(path: &[&str], whose: &str, env: &OrderedMap<String>, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    for (variable, value) in env.iter() {
        let mut path = path.to_vec();
        path.extend(["env", variable]);
        let error = if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
            "cannot be passed to a program"
        } else if variable.starts_with("GAGGLED_") {
            "is set by gaggled itself"
        } else if locator.all(&path).len() > 1 {
            "is there twice"
        } else {
            continue;
        };
        found.push(
            Diagnostic::error(format!("variable {variable:?} of \"{whose}\" {error}"))
                .at(locator.find(&path))
                .help("remove it, or give it another name"),
        );
    }
}

/// A hint with the name that was probably meant, if there is a similar one.
pub(super) fn nearest_name<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let lower = wrong.to_lowercase();
    let far = |name: &str| strsim::levenshtein(&lower, &name.to_lowercase());
    let (distance, name) = names.map(|name| (far(name), name)).min()?;
    (distance <= 1 + wrong.len() / 3).then(|| format!("did you mean \"{name}\"?"))
}
