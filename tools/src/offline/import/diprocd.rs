//! The JSON files of diprocd: a worker's list of processes, or a master's list for each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use gaggled_core::{
    base::time::Millis,
    config::{DependsConfig, Placement, ProgramConfig, sandbox::Umask},
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

/// Reads the file of a worker, a master's file, or the part of that for one node.
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
        (None, Some(nodes), None) => return import_master(path, &whole, nodes),
        (Some(_), _, Some(_)) => {
            return Err(format!("{whole}: is the file of a worker, which has no nodes: leave --node out"));
        }
        (None, None, _) if file.contains_key("conf_file") => {
            let why = "is the file of a client, which only says where its master is";
            return Err(format!("{whole}: {why}: import the master's file"));
        }
        (None, None, _) => return Err(format!("{whole}: has neither procs nor nodes")),
    };
    let mut importer = Importer { imported: Imported::default(), place: whole };
    for key in file.keys().filter(|key| !["procs", "nodes"].contains(&key.as_str())) {
        importer.note(&format!("{key} is left out: gaggled has its own"));
    }
    importer.imported.config.gaggled.env.0.push(LOCALE.map(str::to_owned).into());
    importer.list(procs)?;
    importer.imported.checked(path)
}

/// The locale that diprocd gives its processes.
const LOCALE: [&str; 2] = ["LC_ALL", "C"];

/// Reads the lists of all nodes, as one configuration that can be published to them.
fn import_master(path: &Path, place: &SourceLocation, nodes: &Value) -> Result<Imported, String> {
    let nodes = nodes.as_object().ok_or(format!("{place}: nodes is not an object"))?;
    let mut whole = Importer { imported: Imported::default(), place: place.clone() };
    let mut lists: BTreeMap<String, Vec<(&str, ProgramConfig)>> = BTreeMap::new();
    for (node, procs) in nodes {
        let mut importer = Importer { imported: Imported::default(), place: place.clone() };
        importer.list(procs)?;
        whole.imported.notes.extend(importer.imported.notes);
        for (name, mut program) in importer.imported.config.programs.0 {
            program.env.0.insert(0, LOCALE.map(str::to_owned).into());
            lists.entry(name).or_default().push((node, program));
        }
    }
    whole.imported.config.hosts = nodes.keys().cloned().collect();
    for (name, places) in lists {
        let is_same = places.iter().all(|(_, program)| *program == places[0].1);
        if is_same && places.len() == nodes.len() {
            let program = ProgramConfig { on: Some(Placement::All("*".to_owned())), ..places[0].1.clone() };
            whole.imported.program(place, &name, program)?;
            continue;
        }
        let is_alone = places.len() == 1;
        for (node, program) in places {
            let own = if is_alone { name.clone() } else { format!("{name}.{node}") };
            if !is_alone {
                whole.note(&format!(
                    "\"{name}\" of node {node} is called \"{own}\" here, as other nodes have one of that name"
                ));
            }
            let program = ProgramConfig { on: Some(Placement::All(node.to_owned())), ..program };
            whole.imported.program(place, &own, program)?;
        }
    }
    whole.note(
        "is the file of a master: publish the result with gaggled_clustergate publish, or give --node for one node",
    );
    whole.imported.checked_for_cluster(path)
}

fn missing_node(place: &SourceLocation, nodes: &Value, node: &str) -> String {
    let names: Vec<&String> = nodes.as_object().map(|nodes| nodes.keys().collect()).unwrap_or_default();
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    format!("{place}: has no node \"{node}\": choose one of its nodes with --node: {}", names.join(", "))
}

struct Importer {
    imported: Imported,
    place: SourceLocation,
}

impl Importer {
    fn note(&mut self, text: &str) {
        self.imported.note(self.place.clone(), text);
    }

    /// Reads a list of processes.
    fn list(&mut self, procs: &Value) -> Result<(), String> {
        let procs = procs.as_array().ok_or(format!("{}: procs is not a list", self.place))?;
        procs.iter().try_for_each(|process| self.process(process))?;
        self.link();
        Ok(())
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
