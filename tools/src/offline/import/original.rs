//! The original gaggled's files.
//!
//! What the original ignored in silence is said here; what it refused is refused.

use std::{collections::BTreeSet, path::Path};

use gaggled_core::{
    base::time::Millis,
    config::{Config, DependsConfig, OrderedMap, ProgramConfig, SmtpgateConfig},
    graph::Mode,
};
use gaggled_gateways::url::{Url, UrlError};

use super::{
    imported::{Imported, usable},
    info::{self, Node},
};

/// Reads a file of the original.
pub fn import(path: &Path) -> Result<Imported, String> {
    let root = info::read(path)?;
    let mut importer = Importer::default();
    for section in root.children.iter().filter(|section| section.key == "gaggled") {
        importer.settings(section)?;
    }
    for program in root.children.iter().filter(|section| section.key != "gaggled") {
        importer.program(program)?;
    }
    importer.link()?;
    Ok(importer.imported)
}

#[derive(Default)]
struct Importer {
    imported: Imported,
    /// Programs that are not enabled.
    disabled: BTreeSet<String>,
}

const SETTINGS: [&str; 8] = ["tick", "startwait", "killwait", "path", "env", "eventurl", "controlurl", "smtpgate"];
const GATE: [&str; 8] = ["mx", "helo", "from", "to", "spfix", "period", "batch", "auto"];
const PROGRAM: [&str; 7] = ["command", "argv", "wd", "respawn", "enabled", "env", "depends"];

impl Importer {
    fn note(&mut self, node: &Node, text: impl std::fmt::Display) {
        self.imported.notes.push(format!("{}: {text}", node.place));
    }

    /// Notes what the original ignored: unknown keys, repeated ones, and those that trail a value.
    fn passed_over(&mut self, section: &Node, known: &[&str]) {
        let mut seen = BTreeSet::new();
        for child in &section.children {
            if child.trails {
                self.note(
                    child,
                    format!(
                        "\"{}\" stands behind a value on the same line, so it was read as a key of its own",
                        child.key
                    ),
                );
            }
            if !known.contains(&child.key.as_str()) {
                self.note(child, format!("\"{}\" is no setting, and was ignored", child.key));
            } else if !seen.insert(child.key.as_str()) {
                self.note(child, format!("a second \"{}\" was ignored", child.key));
            }
        }
    }

    fn settings(&mut self, section: &Node) -> Result<(), String> {
        self.passed_over(section, &SETTINGS);
        for unused in ["tick", "startwait"] {
            if let Some(node) = section.first(unused) {
                self.note(node, format!("{unused} is left out: nothing polls"));
            }
        }
        if let Some(killwait) = self.number(section, "killwait", 10_000) {
            self.imported.config.gaggled.killwait = killwait;
        }
        if let Some(path) = section.first("path") {
            self.imported.config.gaggled.path.clone_from(&path.value);
        }
        if let Some(env) = section.first("env") {
            self.note(env, "env was never read by the original; here every program gets it, as its manual says");
            self.imported.config.gaggled.env = self.variables(env);
        }
        if let Some(url) = section.first("eventurl") {
            self.imported.config.gaggled.eventurl = self.url(url, false);
        }
        if let Some(url) = section.first("controlurl") {
            self.imported.config.gaggled.controlurl = self.url(url, true);
        }
        match section.first("smtpgate") {
            Some(gate) => self.gate(gate),
            None => Ok(()),
        }
    }

    /// A url. One that is insecure is listed as such, because the original used it all the same.
    fn url(&mut self, node: &Node, control: bool) -> Option<String> {
        let url = node.value.clone();
        match Url::parse(&url, &[]) {
            Ok(Url::Tcp { .. }) if control => {
                self.note(
                    node,
                    format!(
                        "every user of this machine can do everything through {url}; an ipc:// url lets the kernel name the user"
                    ),
                );
                self.imported.config.gaggled.insecure.push(url.clone());
            }
            Ok(_) => {}
            Err(UrlError::Exposed(_)) => {
                self.note(
                    node,
                    format!(
                        "every host that reaches {url} can use it; an ipc:// url, or one on 127.0.0.1, would be safe"
                    ),
                );
                self.imported.config.gaggled.insecure.push(url.clone());
            }
            Err(why) => {
                self.note(node, format!("left out: {why}"));
                return None;
            }
        }
        Some(url)
    }

    fn gate(&mut self, section: &Node) -> Result<(), String> {
        self.passed_over(section, &GATE);
        let text = |key: &str| section.first(key).map(|node| node.value.clone()).unwrap_or_default();
        let auto = self.boolean(section, "auto", false);
        for required in ["mx", "from", "to"] {
            if text(required).is_empty() {
                return Err(format!("{}: required setting gaggled.smtpgate.{required} is not set", section.place));
            }
        }
        let defaults = SmtpgateConfig::default();
        let gate = SmtpgateConfig {
            mx: text("mx"),
            helo: text("helo"),
            from: text("from"),
            to: vec![text("to")],
            spfix: text("spfix"),
            period: self.number(section, "period", defaults.period.0).unwrap_or(defaults.period),
            batch: self.number(section, "batch", 0).unwrap_or_default(),
            auto,
            ..defaults
        };
        if gate.period.0 == 0 {
            return Err(format!("{}: gaggled.smtpgate.period must be a positive integer", section.place));
        }
        self.imported.config.gaggled.smtpgate = Some(gate);
        Ok(())
    }

    fn program(&mut self, section: &Node) -> Result<(), String> {
        self.passed_over(section, &PROGRAM);
        let name = self.name(section);
        if self.imported.config.programs.get(&name).is_some() {
            return Err(format!("{}: duplicate program name {name}", section.place));
        }
        let command = section.first("command").map(|node| node.value.clone()).filter(|command| !command.is_empty());
        let Some(command) = command else {
            return Err(format!("{}: program {name} missing setting: command", section.place));
        };
        let respawn = self.boolean(section, "respawn", true);
        let enabled = self.boolean(section, "enabled", true);
        if !enabled {
            self.disabled.insert(name.clone());
        }
        let program = ProgramConfig {
            command: Some(command),
            argv: self.arguments(section),
            wd: section.first("wd").map(|node| node.value.clone()).filter(|wd| !wd.is_empty()),
            env: section.first("env").map(|env| self.variables(env)).unwrap_or_default(),
            mode: (!respawn).then_some(Mode::Once),
            enabled,
            depends: section.first("depends").map(|depends| self.depends(depends)).unwrap_or_default(),
            ..ProgramConfig::default()
        };
        self.imported.config.programs.0.push((name, program));
        Ok(())
    }

    /// A name that can be used here.
    fn name(&mut self, section: &Node) -> String {
        let name = usable(&section.key);
        if name != section.key {
            self.note(
                section,
                format!(
                    "program {:?} is called {name:?} here: a name has 1 to 64 of the letters a-z, A-Z, 0-9, and . _ -",
                    section.key
                ),
            );
        }
        name
    }

    fn arguments(&mut self, section: &Node) -> Vec<String> {
        let Some(node) = section.first("argv") else { return Vec::new() };
        if node.value != node.value.trim() {
            self.note(node, "white space at an end of argv gave an empty argument; it is left out");
        }
        node.value.split_whitespace().map(str::to_owned).collect()
    }

    fn variables(&mut self, section: &Node) -> OrderedMap<String> {
        let mut variables: OrderedMap<String> = OrderedMap::default();
        for node in &section.children {
            if node.key.is_empty() || node.key.contains('=') || node.key.starts_with("GAGGLED_") {
                self.note(node, format!("variable {:?} is left out: it cannot be set", node.key));
            } else if variables.get(&node.key).is_some() {
                self.note(node, format!("a second variable {:?} was ignored", node.key));
            } else {
                variables.0.push((node.key.clone(), node.value.clone()));
            }
        }
        variables
    }

    fn depends(&mut self, section: &Node) -> OrderedMap<DependsConfig> {
        if !section.value.is_empty() {
            self.note(
                section,
                format!("depends has the value {:?} instead of a section, and was ignored", section.value),
            );
        }
        let mut depends: OrderedMap<DependsConfig> = OrderedMap::default();
        for node in &section.children {
            self.passed_over(node, &["delay", "propagate"]);
            let on = usable(&node.key);
            if depends.get(&on).is_some() {
                self.note(node, format!("a second dependency on {on:?} was ignored"));
                continue;
            }
            let delay = self.number(node, "delay", 0).unwrap_or_default();
            let propagate = self.boolean(node, "propagate", false);
            depends.0.push((on, DependsConfig { delay, propagate, ..DependsConfig::default() }));
        }
        depends
    }

    /// Checks that concern several programs.
    fn link(&mut self) -> Result<(), String> {
        let enabled_need: BTreeSet<String> = self
            .imported
            .config
            .programs
            .iter()
            .filter(|(_, program)| program.enabled)
            .flat_map(|(_, program)| program.depends.iter().map(|(on, _)| on.to_owned()))
            .collect();
        for (name, program) in &mut self.imported.config.programs.0 {
            if self.disabled.contains(name) && enabled_need.contains(name) {
                program.enabled = true;
                program.autostart = false;
                self.imported.notes.push(format!(
                    "program {name} was not enabled, and others need it: autostart is false here, so they wait until an operator starts it"
                ));
            }
        }
        let printed = self.imported.config.print().map_err(|why| why.to_string())?;
        match Config::parse(&printed) {
            Ok(_) => Ok(()),
            Err(found) => Err(found.into_iter().map(|found| found.message).collect::<Vec<_>>().join("; ")),
        }
    }

    fn boolean(&mut self, section: &Node, key: &str, default: bool) -> bool {
        let Some(node) = section.first(key) else { return default };
        match node.value.trim() {
            "true" | "1" => true,
            "false" | "0" => false,
            other => {
                self.note(node, format!("{key} {other:?} is neither true nor false, so it was {default}"));
                default
            }
        }
    }

    fn number(&mut self, section: &Node, key: &str, default: u64) -> Option<Millis> {
        let node = section.first(key)?;
        match node.value.trim().parse::<i64>() {
            Ok(number) => match u64::try_from(number) {
                Ok(millis) => return Some(Millis(millis)),
                Err(_) => self.note(node, format!("{key} {number} is negative; it is {default} here")),
            },
            Err(_) => {
                self.note(node, format!("{key} {:?} is not a number of milliseconds, so it was {default}", node.value));
            }
        }
        Some(Millis(default))
    }
}
