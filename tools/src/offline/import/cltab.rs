//! The files of `Cluster::Init`: `GROUP:TAG:LEVELS:MODE:COMMAND`, a line each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use gaggled_core::{
    base::time::Millis,
    config::{GroupConfig, ProgramConfig},
    graph::{Mode, RESTART, STOP, StartLimit},
};

use super::imported::{Imported, SourceLocation, counterpart, read, usable};

/// What the original does with an entry that ends again and again: it pauses for a minute after seven starts in a row.
const THROTTLE: StartLimit =
    StartLimit { burst: 7, interval: Millis(6000), retry_after: Some(Millis(60_000)), reset: None };

/// Reads a cltab.
pub fn import(path: &Path) -> Result<Imported, String> {
    let text = read(path)?;
    let mut importer = Importer { imported: Imported::default(), tags: BTreeMap::new() };
    for (line, number) in text.lines().zip(1..) {
        importer.line(line, &SourceLocation::new(path, number))?;
    }
    importer.pair_scripts();
    importer.separate_names();
    let whole = SourceLocation::new(path, 1);
    importer.imported.note(
        whole,
        "a process is stopped by TERM to its group, killwait and KILL; the original sent INT, TERM after 5 s and KILL after 15 s to the one process",
    );
    importer.imported.checked(path)
}

struct Importer {
    imported: Imported,
    /// Where each tag stands.
    tags: BTreeMap<String, SourceLocation>,
}

impl Importer {
    fn line(&mut self, line: &str, place: &SourceLocation) -> Result<(), String> {
        if line.starts_with('#') || line.trim().is_empty() {
            return Ok(());
        }
        // Only the name and the value of a setting count; the third field, for levels, may hold anything.
        if let Some(setting) = line.strip_prefix("::").and_then(|rest| rest.split_once(':')).map(|(_, setting)| setting)
        {
            return self.setting(setting, place);
        }
        let fields: Vec<&str> = line.splitn(5, ':').collect();
        let &[group, tag, levels, mode, command] = fields.as_slice() else {
            let why = "an entry has five fields: GROUP:TAG:LEVELS:MODE:COMMAND";
            return Err(format!("{place}: {} of {why}", fields.len()));
        };
        for (what, field) in [("group", group), ("tag", tag), ("levels", levels), ("command", command)] {
            if field.is_empty() {
                return Err(format!("{place}: the {what} of the entry is empty: GROUP:TAG:LEVELS:MODE:COMMAND"));
            }
        }
        if let Some(first) = self.tags.insert(tag.to_owned(), place.clone()) {
            return Err(format!("{place}: tag \"{tag}\" is there twice, first at {first}: rename one of the two"));
        }
        let mode = match mode {
            "respawn" | "off" => Mode::Respawn,
            "once" => Mode::Once,
            "wait" => Mode::Wait,
            "test" => Mode::Test,
            other => return Err(format!("{place}: mode \"{other}\" is not wait, once, respawn, test or off")),
        };
        let off = line.split(':').nth(3) == Some("off");
        let program = ProgramConfig {
            shell: Some(command.to_owned()),
            mode: Some(mode),
            group: Some(self.group(group, place)),
            levels: self.levels(levels, place),
            start_limit: (mode == Mode::Respawn).then_some(THROTTLE),
            enabled: !off,
            ..ProgramConfig::default()
        };
        self.imported.program(place, tag, program)
    }

    fn setting(&mut self, setting: &str, place: &SourceLocation) -> Result<(), String> {
        let (name, value) = setting.split_once(':').ok_or(format!("{place}: a setting is :::NAME:VALUE"))?;
        match name {
            "socket" if value.starts_with('/') => {
                self.imported.config.gaggled.controlurl = Some(format!("ipc://{value}"));
                self.imported.note(place, "gaggled_controller speaks at this socket; clinit cannot");
            }
            "socket" => self.imported.note(place, "socket is left out: it is no absolute path"),
            // initstat is the older name.
            "clstat" | "initstat" => {
                self.imported.note(place, format!("{name} is left out: ask gaggled_controller status"));
            }
            "log" => self.imported.note(place, "log is left out: the original never wrote it"),
            other => {
                let why = "settings are socket, clstat and log";
                return Err(format!("{place}: setting \"{other}\" is not known: {why}"));
            }
        }
        Ok(())
    }

    /// A group starts at level `stop`: nothing runs until an operator moves it to another level.
    fn group(&mut self, name: &str, place: &SourceLocation) -> String {
        let own = usable(name);
        if own != name {
            self.imported.note(place, format!("group {name:?} is called {own:?} here"));
        }
        if self.imported.config.groups.get(&own).is_none() {
            let group = GroupConfig { level: Some(STOP.to_owned()), ..GroupConfig::default() };
            self.imported.config.groups.0.push((own.clone(), group));
        }
        own
    }

    /// The original took a word without a comma both for one level and for a list of one-letter levels.
    fn levels(&mut self, field: &str, place: &SourceLocation) -> Vec<String> {
        let levels: Vec<String> = if field.contains(',') {
            field.split(',').filter(|level| !level.is_empty()).map(str::to_owned).collect()
        } else if field.chars().all(|c| c.is_ascii_digit()) {
            field.chars().map(String::from).collect()
        } else {
            if field.chars().count() > 1 {
                self.imported.note(
                    place,
                    format!("\"{field}\" is one level here; in the original it was also each of its letters, which is written with commas"),
                );
            }
            vec![field.to_owned()]
        };
        if levels.iter().any(|level| level == RESTART) {
            self.imported.note(
                place,
                "level \"restart\" is what is run when the group is restarted, and no level that it can be at",
            );
        }
        levels
    }

    /// A line that ends what another line of its group starts is the stop command of that one: `X stop` for `X start`.
    fn pair_scripts(&mut self) {
        let programs = &mut self.imported.config.programs.0;
        let scripts: Vec<(Option<String>, String)> = programs
            .iter()
            .filter(|(_, program)| matches!(program.mode, Some(Mode::Wait | Mode::Once)) && program.enabled)
            .filter_map(|(_, program)| Some((program.group.clone(), program.shell.clone()?)))
            .collect();
        let mut paired = Vec::new();
        for (_, program) in programs.iter_mut().filter(|(_, program)| program.mode == Some(Mode::Wait)) {
            let stop = program.shell.as_deref().and_then(|line| counterpart(line, "start", "stop"));
            if let Some(stop) = stop.map(|stop| (program.group.clone(), stop)).filter(|stop| scripts.contains(stop)) {
                program.stop_command = Some(stop.1.clone());
                paired.push(stop);
            }
        }
        let is_paired = |program: &ProgramConfig| {
            program.shell.clone().is_some_and(|line| paired.contains(&(program.group.clone(), line)))
        };
        // A level exists as long as a program names it.
        let others = programs.iter().filter(|(_, program)| !is_paired(program));
        let named: BTreeSet<(Option<String>, String)> = others
            .flat_map(|(_, program)| program.levels.iter().map(|level| (program.group.clone(), level.clone())))
            .collect();
        for (name, program) in programs.iter_mut() {
            if !is_paired(program) {
                continue;
            }
            let place = self.tags.iter().find(|(tag, _)| usable(tag) == *name).map(|(_, place)| place.to_string());
            let note = "it is the stop command of the line that starts the same script";
            self.imported.notes.push(format!("{}: {note}", place.unwrap_or_default()));
            let is_there = |level: &String| level == STOP || named.contains(&(program.group.clone(), level.clone()));
            // A program that does nothing keeps the level in existence.
            program.shell = if program.levels.iter().all(is_there) { None } else { Some(":".to_owned()) };
        }
        programs.retain(|(_, program)| program.shell.is_some());
    }

    /// A group and a program may not have the same name here: commands take both.
    fn separate_names(&mut self) {
        let config = &mut self.imported.config;
        let groups: Vec<String> = config.groups.iter().map(|(name, _)| name.to_owned()).collect();
        for (name, program) in &mut config.programs.0 {
            if groups.contains(name) {
                let group = program.group.as_deref().unwrap_or_default();
                let own = usable(&format!("{group}.{name}"));
                let place = self.tags.iter().find(|(tag, _)| usable(tag) == *name).map(|(_, place)| place);
                let place = place.map(ToString::to_string).unwrap_or_default();
                self.imported
                    .notes
                    .push(format!("{place}: \"{name}\" is also a group, so the program is called \"{own}\" here"));
                *name = own;
            }
        }
    }
}
