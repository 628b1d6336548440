//! The sections of plone.recipe.cluster in a buildout configuration: commands that start, stop and restart a cluster.
//!
//! Each option becomes a level of a group, and each of its lines a program. If a line of `stop` kills the process in a
//! pid file, the line that leaves this file becomes a daemon.

use std::{cell::Cell, collections::BTreeSet, path::Path};

use gaggled_core::{
    config::{GroupConfig, ProgramConfig},
    graph::{Leaves, Mode, RESTART, START, STOP},
    host::PidFile,
};

use super::{
    imported::{Imported, SourceLocation, counterpart, usable},
    ini::{self, Section, Setting},
};

const RECIPE: &str = "plone.recipe.cluster";

/// Options of the recipe that gaggled has no use for.
const UNUSED: [&str; 4] = ["pid-file", "control-script", "debug", "extra_paths"];

/// Reads every section of the recipe.
pub fn import(path: &Path) -> Result<Imported, String> {
    let comment = |line: &str| line.starts_with(['#', ';']).then_some(0);
    let sections = ini::parse(path, comment)?;
    let values = Values { path, sections: &sections, replaced: Cell::new(0) };
    let mut imported = Imported::default();
    let clusters: Vec<&Section> = sections
        .iter()
        .filter(|section| section.get("recipe").is_some_and(|recipe| recipe.value() == RECIPE))
        .collect();
    if clusters.is_empty() {
        return Err(format!("{}: has no section with recipe = {RECIPE}", path.display()));
    }
    for section in clusters {
        Importer { values: &values, section, imported: &mut imported }.cluster()?;
    }
    imported.checked(path)
}

/// The values of options, with `${section:option}` replaced.
struct Values<'a> {
    path: &'a Path,
    sections: &'a [Section],
    /// How many texts have been looked through for references.
    replaced: Cell<u32>,
}

/// The most texts that are looked through for references in one file.
const REPLACED_MAX: u32 = 100_000;

impl Values<'_> {
    fn of(&self, section: &str, option: &str, place: &SourceLocation, depth: u32) -> Result<String, String> {
        let found =
            self.sections.iter().rev().filter(|other| other.name == section).find_map(|other| other.get(option));
        match found {
            Some(found) => self.replace(&found.value(), section, place, depth + 1),
            None => self.default(section, option, depth + 1).ok_or(format!(
                "{place}: ${{{section}:{option}}} is not set: section [{section}] has no option \"{option}\""
            )),
        }
    }

    /// What buildout sets by itself.
    fn default(&self, section: &str, option: &str, depth: u32) -> Option<String> {
        let directory = std::path::absolute(self.path).ok()?.parent()?.display().to_string();
        let below = match (section, option) {
            ("buildout", "directory") => return Some(directory),
            ("buildout", "bin-directory") => "bin",
            ("buildout", "parts-directory") => "parts",
            ("buildout", "eggs-directory") => "eggs",
            ("buildout", "develop-eggs-directory") => "develop-eggs",
            _ => return None,
        };
        let directory = self.of("buildout", "directory", &SourceLocation::new(self.path, 1), depth).ok()?;
        Some(format!("{directory}/{below}"))
    }

    fn replace(&self, text: &str, own: &str, place: &SourceLocation, depth: u32) -> Result<String, String> {
        // Without this limit, options that refer to each other many times could take for ever.
        let replaced = self.replaced.get() + 1;
        self.replaced.set(replaced);
        if depth > 20 || replaced > REPLACED_MAX {
            return Err(format!("{place}: options of section [{own}] are made of each other"));
        }
        let mut replaced = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) = after.split_once('}').ok_or(format!("{place}: ${{ has no }}"))?;
            let (section, option) =
                name.split_once(':').ok_or(format!("{place}: ${{{name}}} is not ${{section:option}}"))?;
            let section = if section.is_empty() { own } else { section };
            replaced.push_str(before);
            replaced.push_str(&self.of(section, option, place, depth)?);
            rest = behind;
        }
        replaced.push_str(rest);
        Ok(replaced)
    }
}

/// What a line of an option asks for.
enum Line {
    Shell(String),
    Background(Vec<String>),
    /// Kill the process whose id is in this file.
    PidFile(String),
}

struct Importer<'a> {
    values: &'a Values<'a>,
    section: &'a Section,
    imported: &'a mut Imported,
}

impl Importer<'_> {
    fn cluster(&mut self) -> Result<(), String> {
        let group = usable(&self.section.name);
        let lines = |own: &Self, level: &str, required: bool| match own.section.get(level) {
            Some(option) => own.lines(option),
            None if required => {
                Err(format!("{}: section [{}] has no option \"{level}\"", own.section.place, own.section.name))
            }
            None => Ok(Vec::new()),
        };
        let (start, stop) = (lines(self, START, true)?, lines(self, STOP, true)?);
        let restart = lines(self, RESTART, false)?;
        for name in UNUSED {
            if let Some(option) = self.section.get(name) {
                self.imported.note(
                    &option.place,
                    format!("{name} is left out: gaggled is the daemon, and gaggled_controller its script"),
                );
            }
        }
        let config =
            GroupConfig { level: Some(STOP.to_owned()), on_failure: Some(STOP.to_owned()), ..GroupConfig::default() };
        self.imported.config.groups.0.push((group.clone(), config));
        let mut taken: BTreeSet<&Vec<String>> = BTreeSet::new();
        let pid_files: Vec<&String> = stop
            .iter()
            .filter_map(|(_, line)| match line {
                Line::PidFile(file) => Some(file),
                Line::Shell(_) | Line::Background(_) => None,
            })
            .collect();
        let mut followed = Vec::new();
        // A line of `stop` for the script of a line of `start` becomes its stop command, which a restart runs, too.
        let mut paired: BTreeSet<String> = BTreeSet::new();
        for ((place, line), number) in start.iter().zip(1..) {
            let also = matches!(line, Line::Background(words) if restart.iter().any(|(_, other)| matches!(other, Line::Background(again) if again == words)));
            let levels = if also { vec![START, RESTART] } else { vec![START] };
            let mut program = self.program(&group, &levels, line, place);
            if let Line::Shell(text) = line
                && let Some(file) = pid_files.iter().find(|file| text.contains(file.as_str()))
            {
                self.imported.note(
                    place,
                    format!("it leaves a daemon, which is followed by {file} and restarted; the recipe never did"),
                );
                followed.push((*file).clone());
                program = ProgramConfig { mode: None, pid_file: Some(PidFile::Read((*file).clone())), ..program };
            }
            if let Line::Background(words) = line {
                taken.insert(words);
            }
            if let Line::Shell(text) = line {
                let shells = |lines: &[(SourceLocation, Line)], word: &str| {
                    let other = counterpart(text, START, word)?;
                    lines.iter().any(|(_, line)| matches!(line, Line::Shell(text) if *text == other)).then_some(other)
                };
                if let Some(other) = shells(&stop, STOP) {
                    paired.extend(shells(&restart, RESTART));
                    paired.insert(other.clone());
                    program.stop_command = Some(other);
                }
            }
            self.imported.program(place, &format!("{group}.start.{number}"), program)?;
        }
        for (level, lines) in [(STOP, &stop), (RESTART, &restart)] {
            for ((place, line), number) in lines.iter().zip(1..) {
                match line {
                    Line::PidFile(file) if level == STOP && followed.contains(file) => continue,
                    Line::Background(words) if level == RESTART && taken.contains(words) => continue,
                    Line::Shell(text) if level == STOP && paired.contains(text) => continue,
                    Line::Background(_) => {
                        self.imported.note(place, format!("it runs only while the cluster is at level {level}"));
                    }
                    Line::PidFile(_) | Line::Shell(_) => {}
                }
                let mut program = self.program(&group, &[level], line, place);
                if matches!(line, Line::Shell(text) if level == RESTART && paired.contains(text)) {
                    // What it leaves is ended by the stop command of the line of `start`.
                    program.leaves = Some(Leaves::Release);
                }
                self.imported.program(place, &format!("{group}.{level}.{number}"), program)?;
            }
        }
        Ok(())
    }

    fn lines(&self, option: &Setting) -> Result<Vec<(SourceLocation, Line)>, String> {
        let mut lines = Vec::new();
        for (place, text) in &option.lines {
            let text = self.values.replace(text, &self.section.name, place, 0)?;
            for text in text.lines().map(str::trim).filter(|text| !text.is_empty()) {
                let wrong =
                    |why: String| format!("{place}: option {} of section [{}]: {why}", option.name, self.section.name);
                lines.push((place.clone(), line(text).map_err(wrong)?));
            }
        }
        Ok(lines)
    }

    fn program(&mut self, group: &str, levels: &[&str], line: &Line, place: &SourceLocation) -> ProgramConfig {
        let plain = ProgramConfig {
            group: Some(group.to_owned()),
            levels: levels.iter().map(|level| (*level).to_owned()).collect(),
            ..ProgramConfig::default()
        };
        match line {
            Line::Shell(text) => ProgramConfig { mode: Some(Mode::Wait), shell: Some(text.clone()), ..plain },
            Line::Background(words) => {
                let (command, argv) = words
                    .split_first()
                    .map_or((None, Vec::new()), |(first, rest)| (Some(first.clone()), rest.to_vec()));
                ProgramConfig { command, argv, ..plain }
            }
            Line::PidFile(file) => {
                self.imported
                    .note(place, format!("no line of start writes {file}, so the process that it names is killed"));
                let word = shell_words::quote(file);
                let kill = format!("test ! -e {word} || {{ kill \"$(cat {word})\"; rm -f {word}; }}");
                ProgramConfig { mode: Some(Mode::Wait), shell: Some(kill), ..plain }
            }
        }
    }
}

fn line(text: &str) -> Result<Line, String> {
    if let Some(command) = text.strip_prefix("background:") {
        let words = shell_words::split(command).map_err(|_| format!("\"{command}\" has a quote that is not closed"))?;
        return if words.is_empty() {
            Err("background: has no command".to_owned())
        } else {
            Ok(Line::Background(words))
        };
    }
    if text.starts_with("pid:") {
        let file = text.rsplit(':').next().unwrap_or_default().trim();
        if file.parse::<u64>().is_ok() {
            return Err(format!("pid:{file} is a process id, which is another process tomorrow: name a pid file"));
        }
        if !file.starts_with('/') {
            return Err(format!("pid:{file} is no absolute path of a pid file"));
        }
        return Ok(Line::PidFile(file.to_owned()));
    }
    Ok(Line::Shell(text.to_owned()))
}
