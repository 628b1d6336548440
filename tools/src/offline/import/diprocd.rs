//! The JSON files of diprocd: a worker's list of processes, or a master's list for each node.

use std::{collections::BTreeSet, path::Path};

use gaggled_core::{
    base::time::Millis,
    config::{DependsConfig, ProgramConfig, sandbox::Umask},
    graph::{Mode, StartLimit},
    host::PidFile,
};
use serde_json::{Map, Value};

use super::imported::{Imported, SourceLocation, read};

/// The original gives up a process that is started more often than this within a minute.
const LIMIT: StartLimit = StartLimit { burst: 5, interval: Millis(60_000), retry_after: None, reset: None };

const PROCESS: [&str; 14] = [
    "name",
    "run",
    "args",
    "pid_file",
    "cwd",
    "user",
    "env",
    "logs",
    "write_pid",
    "daemon",
    "restart",
    "chroot",
    "depends",
    "comment",
];

/// Reads the file of a worker, or the part of a master's file for one node.
pub fn import(path: &Path, node: Option<&str>) -> Result<Imported, String> {
    let whole = SourceLocation::new(path, 1);
    let wrong = |error: serde_json::Error| {
        let place = SourceLocation::new(path, error.line());
        format!("{place}:{}: {}", error.column(), error.to_string().split(" at line").next().unwrap_or_default())
    };
    let value: Value = serde_json::from_str(&read(path)?).map_err(wrong)?;
    let file = value.as_object().ok_or(format!("{whole}: is not an object with a list of processes"))?;
    let procs = match (file.get("procs"), file.get("nodes"), node) {
        (Some(procs), _, None) => procs,
        (None, Some(nodes), Some(node)) => nodes.get(node).ok_or_else(|| missing_node(&whole, nodes, node))?,
        (None, Some(nodes), None) => return Err(missing_node(&whole, nodes, "")),
        (Some(_), _, Some(_)) => {
            return Err(format!("{whole}: is the file of a worker, which has no nodes: leave --node out"));
        }
        (None, None, _) if file.contains_key("conf_file") => {
            let why = "is the file of a client, which only says where its master is";
            return Err(format!("{whole}: {why}: import the master's file with --node"));
        }
        (None, None, _) => return Err(format!("{whole}: has neither procs nor nodes")),
    };
    let procs = procs.as_array().ok_or(format!("{whole}: procs is not a list"))?;
    let mut importer = Importer { imported: Imported::default(), place: whole };
    for key in file.keys().filter(|key| !["procs", "nodes"].contains(&key.as_str())) {
        importer.note(&format!("{key} is left out: gaggled has its own"));
    }
    importer.imported.config.gaggled.env.0.push(("LC_ALL".to_owned(), "C".to_owned()));
    for process in procs {
        importer.process(process)?;
    }
    importer.link();
    importer.imported.checked(path)
}

fn missing_node(place: &SourceLocation, nodes: &Value, node: &str) -> String {
    let names: Vec<&String> = nodes.as_object().map(|nodes| nodes.keys().collect()).unwrap_or_default();
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    let what = if node.is_empty() { "is the file of a master".to_owned() } else { format!("has no node \"{node}\"") };
    format!("{place}: {what}: choose one of its nodes with --node: {}", names.join(", "))
}

struct Importer {
    imported: Imported,
    place: SourceLocation,
}

impl Importer {
    fn note(&mut self, text: &str) {
        self.imported.note(self.place.clone(), text);
    }

    fn process(&mut self, value: &Value) -> Result<(), String> {
        let place = self.place.clone();
        let process = value.as_object().ok_or(format!("{place}: a process is not an object"))?;
        let name = text(process, "name").ok_or(format!("{place}: a process has no name"))?;
        let wrong = |why: &str| format!("{place}: process \"{name}\" {why}");
        let command = text(process, "run").ok_or(wrong("has no \"run\""))?;
        let path = text(process, "pid_file").ok_or(wrong("has no \"pid_file\""))?;
        let flag = |key: &str| {
            process
                .get(key)
                .map(|value| value.as_bool().ok_or(wrong(&format!("has a \"{key}\" that is neither true nor false"))))
                .transpose()
        };
        let (write, daemon, restart) = (flag("write_pid")?, flag("daemon")?, flag("restart")?);
        let pid_file = match (daemon.unwrap_or(false), write) {
            (true, Some(true)) => {
                return Err(wrong(
                    "is a daemon and has its pid written: one of \"daemon\" and \"write_pid\" must be false",
                ));
            }
            (true, _) => Some(PidFile::Read(path)),
            (false, Some(true) | None) => Some(PidFile::Write(path)),
            (false, Some(false)) => None,
        };
        let argv = process.get("args").map_or(Some(Vec::new()), |args| {
            args.as_array()?.iter().map(|arg| arg.as_str().map(str::to_owned)).collect()
        });
        let mut program = ProgramConfig {
            command: Some(command),
            argv: argv.ok_or(wrong("has \"args\" that are not a list of texts"))?,
            wd: Some(text(process, "cwd").unwrap_or_else(|| "/".to_owned())),
            user: user(process),
            log: Some(text(process, "logs").unwrap_or_else(|| "/dev/null".to_owned())),
            mode: (restart == Some(false)).then_some(Mode::Once),
            umask: Some(Umask(0o077)),
            start_limit: Some(LIMIT),
            pid_file,
            chroot: text(process, "chroot"),
            ..ProgramConfig::default()
        };
        for (variable, value) in process.get("env").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().ok_or(wrong(&format!("has a variable \"{variable}\" that is no text")))?;
            program.env.0.push((variable.clone(), value.to_owned()));
        }
        for on in process.get("depends").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            program.depends.0.push((on.to_owned(), DependsConfig::default()));
        }
        for (key, meant) in [("chroot", "applied"), ("depends", "used")] {
            if process
                .get(key)
                .is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
            {
                self.note(&format!("{key} of \"{name}\" was never {meant} by the original; here it is"));
            }
        }
        for key in process.keys().filter(|key| !PROCESS.contains(&key.as_str())) {
            self.note(&format!("\"{key}\" of \"{name}\" is no setting, and was ignored"));
        }
        self.imported.program(&place, &name, program).map_err(|_| wrong("is there twice: rename one of the two"))
    }

    /// Removes dependencies on programs that do not exist.
    fn link(&mut self) {
        let names: BTreeSet<String> = self.imported.config.programs.iter().map(|(name, _)| name.to_owned()).collect();
        let mut unknown = Vec::new();
        for (name, program) in &mut self.imported.config.programs.0 {
            program.depends.0.retain(|(on, _)| {
                let known = names.contains(on);
                if !known {
                    unknown.push(format!("\"{name}\" depends on \"{on}\", which is not there; that is left out"));
                }
                known
            });
        }
        for text in unknown {
            self.note(&text);
        }
    }
}

fn text(process: &Map<String, Value>, key: &str) -> Option<String> {
    process.get(key)?.as_str().map(str::to_owned).filter(|text| !text.is_empty())
}

/// An empty user means that of gaggled, and a missing one `nobody`.
fn user(process: &Map<String, Value>) -> Option<String> {
    match process.get("user") {
        None => Some("nobody".to_owned()),
        Some(user) => user.as_str().filter(|user| !user.is_empty()).map(str::to_owned),
    }
}
