//! The configuration of supervisord: `[program:x]` and `[group:x]`, with what `[include]` brings.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use gaggled_core::{
    config::{GroupConfig, OrderedMap, ProgramConfig},
    graph::Mode,
};

use self::values::{Expansions, Options};
use super::{
    imported::{Imported, SourceLocation, usable},
    ini::{self, Section, Setting},
};

mod program;
mod values;

/// Sections that concern supervisord itself.
const ITS_OWN: [&str; 3] = ["supervisorctl", "unix_http_server", "inet_http_server"];

/// Reads a file and what it includes.
pub fn import(path: &Path) -> Result<Imported, String> {
    let mut importer = Importer::default();
    let sections = importer.merged(path)?;
    let of_kind = |kind: &str| -> Vec<&(PathBuf, Section)> {
        sections.iter().filter(|(_, section)| section.name.starts_with(kind)).collect()
    };
    for (file, section) in &sections {
        importer.other(file, section)?;
    }
    for (_, section) in of_kind("group:") {
        importer.group(section);
    }
    for (file, section) in of_kind("program:") {
        importer.program(file, section)?;
    }
    importer.miss_members();
    importer.separate_groups();
    importer.part_logs(path);
    importer.conclude();
    let Importer { imported, .. } = importer;
    if imported.config.programs.is_empty() {
        let why = format!("{}: has no [program:...] section", path.display());
        return Err([vec![why], imported.notes].concat().join("\nNote: "));
    }
    imported.checked(path)
}

#[derive(Default)]
struct Importer {
    imported: Imported,
    /// The group that each program belongs to, and where that is said.
    members: BTreeMap<String, (String, SourceLocation)>,
    /// Where each group begins.
    groups: BTreeMap<String, SourceLocation>,
    /// The names of all program sections.
    sections: BTreeSet<String>,
    /// The user of programs that name none.
    user: Option<String>,
    /// The first place of each setting that means something else here.
    first: BTreeMap<&'static str, SourceLocation>,
}

impl Importer {
    /// All sections, each with its file. A repeated section is appended to the first.
    fn merged(&mut self, path: &Path) -> Result<Vec<(PathBuf, Section)>, String> {
        let mut merged: Vec<(PathBuf, Section)> = Vec::new();
        for (file, section) in self.read(path, 0)? {
            match merged.iter_mut().find(|(_, known)| known.name == section.name) {
                Some((_, known)) => {
                    self.imported.note(&section.place, format!("[{}] goes on with {}", section.name, known.place));
                    known.options.extend(section.options);
                }
                None => merged.push((file, section)),
            }
        }
        Ok(merged)
    }

    fn read(&mut self, path: &Path, depth: u32) -> Result<Vec<(PathBuf, Section)>, String> {
        // A comment begins a line, or follows white space.
        let comment = |line: &str| {
            let inner = line
                .match_indices([';', '#'])
                .find(|(at, _)| line.get(..*at).is_some_and(|before| before.ends_with([' ', '\t'])));
            if line.starts_with([';', '#']) { Some(0) } else { inner.map(|(at, _)| at) }
        };
        let mut all = Vec::new();
        for mut section in ini::parse(path, comment)? {
            for option in &mut section.options {
                option.name = option.name.to_ascii_lowercase();
            }
            if section.name != "include" {
                all.push((path.to_owned(), section));
                continue;
            }
            let Some(files) = section.get("files").filter(|_| depth < 5) else {
                self.imported.note(&section.place, "[include] has no files, and was ignored");
                continue;
            };
            let words = Expansions::new(path, &OrderedMap::default());
            for pattern in files.value().split_whitespace() {
                let pattern = words.expand(pattern, &files.place)?;
                let pattern = path.parent().unwrap_or(Path::new(".")).join(pattern).display().to_string();
                let found = glob::glob(&pattern).map_err(|why| format!("{}: {pattern}: {why}", files.place))?;
                let mut found: Vec<PathBuf> = found.flatten().collect();
                found.sort();
                if found.is_empty() {
                    self.imported.note(&files.place, format!("no file matches {pattern}"));
                }
                for file in found {
                    all.extend(self.read(&file, depth + 1)?);
                }
            }
        }
        Ok(all)
    }

    /// Handles the sections other than those of programs and groups.
    fn other(&mut self, file: &Path, section: &Section) -> Result<(), String> {
        let name = section.name.as_str();
        if let Some(program) = name.strip_prefix("program:") {
            self.sections.insert(program.trim().to_owned());
        } else if name == "supervisord" {
            self.supervisord(file, section)?;
        } else if ITS_OWN.contains(&name) || name.starts_with("rpcinterface:") {
            self.imported.note(&section.place, format!("[{name}] is left out: gaggled has its own control channel"));
        } else if name.starts_with("eventlistener:") {
            self.imported
                .note(&section.place, format!("[{name}] is left out: follow events with gaggled_listener --json"));
        } else if !name.starts_with("group:") {
            self.imported.note(&section.place, format!("[{name}] is left out"));
        }
        Ok(())
    }

    fn supervisord(&mut self, file: &Path, section: &Section) -> Result<(), String> {
        let words = Expansions::new(file, &OrderedMap::default());
        let options = Options { section, words: &words };
        if let Some(environment) = options.text("environment")? {
            self.imported.config.gaggled.env = values::variables(&environment, options.place("environment"))?;
        }
        self.user = options.text("user")?;
        for option in section.options.iter().filter(|option| !["environment", "user"].contains(&option.name.as_str())) {
            self.imported.note(&option.place, format!("{} is left out: gaggled has its own", option.name));
        }
        self.imported.notes.extend(words.frozen());
        Ok(())
    }

    fn group(&mut self, section: &Section) {
        let name = section.name.trim_start_matches("group:").trim().to_owned();
        let programs = section.get("programs");
        for option in section.options.iter().filter(|option| option.name != "programs") {
            self.imported.note(&option.place, format!("{} of group {name} is left out", option.name));
        }
        let place = programs.map_or(&section.place, |programs| &programs.place);
        for program in programs.map(Setting::value).unwrap_or_default().split(',').map(str::trim) {
            let (program, own) = (program.to_owned(), (name.clone(), place.clone()));
            if program.is_empty() {
                continue;
            }
            if let Some((other, _)) = self.members.get(&program).filter(|(other, _)| *other != name) {
                let what = format!("\"{program}\" is already in group {other}, and cannot be in {name}, too");
                self.imported.note(place, what);
                continue;
            }
            self.members.insert(program, own);
        }
        self.add_group(&name, &section.place);
    }

    fn add_group(&mut self, name: &str, place: &SourceLocation) {
        let own = usable(name);
        if own != name {
            self.imported.note(place, format!("group {name:?} is called {own:?} here"));
        }
        self.groups.insert(own.clone(), place.clone());
        self.imported.config.groups.0.push((own, GroupConfig::default()));
    }

    fn program(&mut self, file: &Path, section: &Section) -> Result<(), String> {
        let name = section.name.trim_start_matches("program:").trim();
        let place = &section.place;
        let group = self.members.get(name).map(|(group, _)| group.clone());
        let words = Expansions::new(file, &self.imported.config.gaggled.env).with("program_name", name);
        let options = Options { section, words: &words };
        let (count, first) = (options.number::<u64>("numprocs", 1)?, options.number::<u64>("numprocs_start", 0)?);
        if !(1..=1000).contains(&count) {
            return Err(format!("{place}: numprocs is {count}: write 1 to 1000"));
        }
        if count > 1 && group.is_none() {
            self.add_group(name, place);
        }
        let group = group.or((count > 1).then(|| name.to_owned()));
        let words = words.with("numprocs", count).with("group_name", group.as_deref().unwrap_or(name));
        let pattern = section.get("process_name").map_or("%(program_name)s".to_owned(), Setting::value);
        if count > 1 && !pattern.contains("%(process_num)") {
            return Err(format!("{place}: numprocs is {count}, so process_name must hold %(process_num)s"));
        }
        let mut frozen = BTreeSet::new();
        for number in first..first.saturating_add(count) {
            let words = words.clone().with("process_num", number);
            let own = words.expand(&pattern, place)?;
            let env = Options { section, words: &words }.text("environment")?;
            let env = env
                .map(|text| values::variables(&text, section.get("environment").map_or(place, |found| &found.place)));
            let env = env.transpose()?.unwrap_or_default();
            let words = words.and_environment(&env);
            let options = Options { section, words: &words };
            let mut program = program::program(&options, env)?;
            if number == first {
                for (option, what) in program::remarks(&options, &program) {
                    self.imported.note(options.place(&option), format!("{option} of {name} {what}"));
                }
                self.mark(&options, &program);
            }
            frozen.extend(words.frozen());
            program.user = program.user.or_else(|| self.user.clone());
            program.group = group.as_deref().map(usable);
            let is_taken = self.imported.config.programs.get(&usable(&own)).is_some();
            let own = match group.as_deref().filter(|_| is_taken) {
                Some(group) => {
                    self.imported
                        .note(place, format!("\"{own}\" is there twice, so it is called \"{group}.{own}\" here"));
                    format!("{group}.{own}")
                }
                None => own,
            };
            self.imported.program(place, &own, program)?;
        }
        self.imported.notes.extend(frozen);
        Ok(())
    }

    /// Remembers the first place of settings that mean something else here.
    fn mark(&mut self, options: &Options<'_>, program: &ProgramConfig) {
        let set = |option: &str| options.boolean(option).ok().flatten() == Some(true);
        let mut mark = |what: &'static str, place: &SourceLocation| {
            self.first.entry(what).or_insert_with(|| place.clone());
        };
        if !set("stopasgroup") && (program.stop_command.is_none() || !set("killasgroup")) {
            mark(
                "TERM and KILL go to the whole process group, whatever stopasgroup and killasgroup said",
                options.place("stopasgroup"),
            );
        }
        if program.mode == Some(Mode::Once) && !program.retry {
            mark(
                "what is not started again when it ends (autorestart) is not either when it ends before startsecs",
                options.place("autorestart"),
            );
        } else if program.mode == Some(Mode::Once) {
            mark(
                "what ends before startsecs with an expected exit code has ended well here, and is not started again",
                options.place("autorestart"),
            );
        }
        if program.user.is_some() {
            mark("a program that runs as a user has HOME, USER and LOGNAME of that user here", options.place("user"));
        }
    }

    fn conclude(&mut self) {
        for (what, place) in std::mem::take(&mut self.first) {
            self.imported.note(place, what);
        }
    }

    /// Notes members of groups that do not exist.
    fn miss_members(&mut self) {
        for (name, (group, place)) in &self.members {
            if !self.sections.contains(name) {
                self.imported
                    .note(place, format!("group {group} has no program \"{name}\": there is no [program:{name}]"));
            }
        }
    }

    /// A group and a program may not have the same name here: commands take both.
    fn separate_groups(&mut self) {
        let config = &mut self.imported.config;
        let programs: BTreeSet<String> = config.programs.iter().map(|(name, _)| name.to_owned()).collect();
        let mut notes = Vec::new();
        for (name, _) in config.groups.0.iter_mut().filter(|(name, _)| programs.contains(name)) {
            let own = usable(&format!("group.{name}"));
            let place = self.groups.get(name).map(ToString::to_string).unwrap_or_default();
            notes.push(format!("{place}: \"{name}\" is also a program, so the group is called \"{own}\" here"));
            for (_, program) in &mut config.programs.0 {
                program.group = program.group.take().map(|group| if group == *name { own.clone() } else { group });
            }
            *name = own;
        }
        self.imported.notes.append(&mut notes);
    }

    /// A log that several programs write to is not rotated.
    fn part_logs(&mut self, path: &Path) {
        let mut writers: BTreeMap<String, usize> = BTreeMap::new();
        let programs = &mut self.imported.config.programs.0;
        for log in programs.iter().filter_map(|(_, program)| program.log.clone()) {
            *writers.entry(log).or_default() += 1;
        }
        let shared = |program: &ProgramConfig| program.log.as_ref().is_some_and(|log| writers[log] > 1);
        for (_, program) in programs.iter_mut().filter(|(_, program)| shared(program)) {
            program.rotate = None;
        }
        for (log, _) in writers.iter().filter(|(log, count)| **count > 1 && *log != "/dev/null") {
            self.imported.note(
                SourceLocation::new(path, 1),
                format!("several programs write to {log}, so it is not rotated: let logrotate do it"),
            );
        }
    }
}
