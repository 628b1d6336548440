//! The configuration of supervisord: `[program:x]` and `[group:x]`, with what `[include]` brings.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gaggled_core::{
    config::{GroupConfig, Ordered, ProgramConfig},
    confines::Umask,
    graph::{Backoff, Limit, Mode},
    host::Signal,
    logs::{Bytes, Rotate},
    time::Millis,
};

use super::{
    Imported, Place,
    ini::{self, Section, Setting},
};

/// Options of a program that mean nothing here.
const UNUSED: [&str; 10] = [
    "stderr_logfile_maxbytes",
    "stderr_logfile_backups",
    "stdout_capture_maxbytes",
    "stderr_capture_maxbytes",
    "stdout_events_enabled",
    "stderr_events_enabled",
    "stdout_syslog",
    "stderr_syslog",
    "serverurl",
    "process_name",
];

/// Options that are kept.
const KEPT: [&str; 22] = [
    "stdout_logfile_maxbytes",
    "stdout_logfile_backups",
    "command",
    "numprocs",
    "numprocs_start",
    "priority",
    "autostart",
    "startsecs",
    "startretries",
    "autorestart",
    "exitcodes",
    "stopsignal",
    "stopwaitsecs",
    "stopasgroup",
    "killasgroup",
    "user",
    "redirect_stderr",
    "stdout_logfile",
    "stderr_logfile",
    "environment",
    "directory",
    "umask",
];

/// Reads a file and what it includes.
pub fn import(path: &Path) -> Result<Imported, String> {
    let mut importer = Importer { imported: Imported::default(), members: BTreeMap::new(), user: None };
    let sections = sections(path, 0, &mut importer.imported)?;
    for (file, section) in sections.iter().filter(|(_, section)| section.name.starts_with("group:")) {
        importer.group(file, section);
    }
    for (file, section) in &sections {
        importer.section(file, section)?;
    }
    let defined: Vec<&str> =
        sections.iter().filter_map(|(_, section)| section.name.strip_prefix("program:")).map(str::trim).collect();
    for (name, group) in &importer.members {
        if !defined.contains(&name.as_str()) {
            importer.imported.note(
                Place::new(path, 1),
                format!("group {group} has no program \"{name}\": there is none of that name"),
            );
        }
    }
    for (_, program) in &mut importer.imported.config.programs.0 {
        program.user = program.user.take().or_else(|| importer.user.clone());
    }
    importer.part_logs(path);
    if importer.imported.config.programs.is_empty() {
        return Err(format!("{}: has no [program:...] section", path.display()));
    }
    let whole = Place::new(path, 1);
    importer.imported.note(&whole, "signals go to the whole process group, whatever stopasgroup and killasgroup said");
    importer.imported.checked()
}

/// All sections, each with the file that it is in.
fn sections(path: &Path, depth: u32, imported: &mut Imported) -> Result<Vec<(PathBuf, Section)>, String> {
    // A comment begins a line, or follows white space.
    let comment = |line: &str| {
        let inner = line
            .match_indices([';', '#'])
            .find(|(at, _)| line.get(..*at).is_some_and(|before| before.ends_with([' ', '\t'])));
        if line.starts_with([';', '#']) { Some(0) } else { inner.map(|(at, _)| at) }
    };
    let mut all = Vec::new();
    for section in ini::parse(path, comment)? {
        if section.name != "include" {
            all.push((path.to_owned(), section));
            continue;
        }
        let Some(files) = section.get("files").filter(|_| depth < 5) else { continue };
        for pattern in files.value().split_whitespace() {
            let pattern = expand(pattern, path, &files.place, &[])?;
            let pattern = path.parent().unwrap_or(Path::new(".")).join(pattern).display().to_string();
            let found = glob::glob(&pattern).map_err(|why| format!("{}: {pattern}: {why}", files.place))?;
            let mut found: Vec<PathBuf> = found.flatten().collect();
            found.sort();
            if found.is_empty() {
                imported.note(&files.place, format!("nothing is like {pattern}"));
            }
            for file in found {
                all.extend(sections(&file, depth + 1, imported)?);
            }
        }
    }
    Ok(all)
}

struct Importer {
    imported: Imported,
    /// The group that each program belongs to.
    members: BTreeMap<String, String>,
    /// As whom programs run that do not say so.
    user: Option<String>,
}

impl Importer {
    fn group(&mut self, _: &Path, section: &Section) {
        let name = section.name.trim_start_matches("group:").trim().to_owned();
        for program in section.get("programs").map(Setting::value).unwrap_or_default().split(',') {
            self.members.insert(program.trim().to_owned(), name.clone());
        }
        self.imported.config.groups.0.push((super::usable(&name), GroupConfig::default()));
    }

    fn section(&mut self, file: &Path, section: &Section) -> Result<(), String> {
        if let Some(name) = section.name.strip_prefix("program:") {
            return self.program(file, section, name.trim());
        }
        let known = ["supervisorctl", "unix_http_server", "inet_http_server"].contains(&section.name.as_str());
        if section.name == "supervisord" {
            if let Some(environment) = section.get("environment") {
                self.imported.config.gaggled.env =
                    variables(&expand(&environment.value(), file, &environment.place, &[])?, &environment.place)?;
            }
            self.user = section.get("user").map(Setting::value);
            for option in
                section.options.iter().filter(|option| !["environment", "user"].contains(&option.name.as_str()))
            {
                self.imported.note(&option.place, format!("{} is left out: gaggled has its own", option.name));
            }
        } else if !known && !section.name.starts_with("group:") && !section.name.starts_with("rpcinterface:") {
            let cure = if section.name.starts_with("eventlistener:") {
                ": follow events with gaggled_listener --json"
            } else {
                ""
            };
            self.imported.note(&section.place, format!("[{}] is left out{cure}", section.name));
        }
        Ok(())
    }

    fn program(&mut self, file: &Path, section: &Section, name: &str) -> Result<(), String> {
        let place = &section.place;
        let number = |option: &str, default: u64| match section.get(option) {
            Some(found) => found.value().parse().map_err(|_| format!("{}: {option} is no number", found.place)),
            None => Ok(default),
        };
        let (count, first) = (number("numprocs", 1)?, number("numprocs_start", 0)?);
        if !(1..=1000).contains(&count) {
            return Err(format!("{place}: numprocs is {count}: write 1 to 1000"));
        }
        let group = self.members.get(name).cloned().or((count > 1).then(|| name.to_owned()));
        if count > 1 && !self.members.contains_key(name) {
            self.imported.config.groups.0.push((super::usable(name), GroupConfig::default()));
        }
        let pattern = section.get("process_name").map(Setting::value);
        let pattern = pattern.unwrap_or_else(|| {
            if count > 1 { "%(program_name)s_%(process_num)02d" } else { "%(program_name)s" }.to_owned()
        });
        self.say(section, name);
        for number in first..first + count {
            let words = [
                ("program_name", name.to_owned()),
                ("process_num", number.to_string()),
                ("group_name", group.clone().unwrap_or_else(|| name.to_owned())),
            ];
            let own = expand(&pattern, file, place, &words)?;
            let program =
                ProgramConfig { group: group.as_deref().map(super::usable), ..program(file, section, &words)? };
            self.imported.program(place, &own, program)?;
        }
        Ok(())
    }

    /// A log that several write to is left to somebody else to begin anew.
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
                Place::new(path, 1),
                format!("several programs write to {log}, so it is not begun anew: let logrotate do it"),
            );
        }
    }

    /// What is not kept of a program, or means something else here.
    fn say(&mut self, section: &Section, name: &str) {
        for option in &section.options {
            let what = match option.name.as_str() {
                "priority" => "is left out: programs start at once, unless they depend on each other".to_owned(),
                "process_name" | "command" => continue,
                "stderr_logfile" if section.get("redirect_stderr").is_none_or(|option| option.value() != "true") => {
                    "is left out: a program has one log, for both".to_owned()
                }
                known if UNUSED.contains(&known) => "is left out".to_owned(),
                known if KEPT.contains(&known) => continue,
                _ => "is no setting, and was ignored".to_owned(),
            };
            self.imported.note(&option.place, format!("{} of {name} {what}", option.name));
        }
    }
}

fn program(file: &Path, section: &Section, words: &[(&str, String)]) -> Result<ProgramConfig, String> {
    let text =
        |option: &str| section.get(option).map(|found| expand(&found.value(), file, &found.place, words)).transpose();
    let wrong = |option: &str, why: &str| {
        format!("{}: {option} {why}", section.get(option).map_or(&section.place, |found| &found.place))
    };
    let number = |option: &str, default: u64| {
        text(option)?.map_or(Ok(default), |text| text.parse().map_err(|_| wrong(option, "is no number")))
    };
    let line = text("command")?.ok_or(format!("{}: [{}] has no command", section.place, section.name))?;
    let line = shell_words::split(&line).map_err(|_| wrong("command", "has a quote that is not closed"))?;
    let (command, argv) = line.split_first().ok_or_else(|| wrong("command", "is empty"))?;
    let (mode, retry) = match text("autorestart")?.as_deref() {
        Some("false") => (Some(Mode::Once), false),
        // It is left down only when it has ended as expected.
        None | Some("unexpected") => (Some(Mode::Once), true),
        Some("true") => (None, false),
        Some(_) => return Err(wrong("autorestart", "is not true, false or unexpected")),
    };
    let retries = number("startretries", 3)?;
    let signal = text("stopsignal")?.unwrap_or_else(|| "TERM".to_owned());
    Signal::parse(&signal).ok_or_else(|| wrong("stopsignal", "is no signal"))?;
    let lasts = number("startsecs", 1)?;
    let autostart = match text("autostart")?.as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(wrong("autostart", "is neither true nor false")),
    };
    let codes = text("exitcodes")?.unwrap_or_else(|| "0".to_owned());
    let codes: Option<Vec<i32>> = codes.split(',').map(|code| code.trim().parse().ok()).collect();
    let codes = codes.ok_or_else(|| wrong("exitcodes", "is no list of numbers"))?;
    let umask =
        text("umask")?.map(|text| u16::from_str_radix(&text, 8).map_err(|_| wrong("umask", "is no octal number")));
    let log = match text("stdout_logfile")?.as_deref() {
        None | Some("AUTO" | "/dev/stdout" | "/dev/fd/1") => None,
        // A program has one log, and what it says of its errors is worth more than nothing.
        Some("NONE") => Some(
            text("stderr_logfile")?
                .filter(|path| !["AUTO", "NONE"].contains(&path.as_str()))
                .unwrap_or_else(|| "/dev/null".to_owned()),
        ),
        Some(path) => Some(path.to_owned()),
    };
    let rotate = rotation(section, log.as_deref().is_some_and(|log| log != "/dev/null"))?;
    let place = section.get("environment").map_or(&section.place, |found| &found.place);
    let environment = text("environment")?.map(|text| variables(&text, place)).transpose()?;
    Ok(ProgramConfig {
        command: Some(command.clone()),
        argv: argv.to_vec(),
        wd: text("directory")?,
        env: environment.unwrap_or_default(),
        user: text("user")?,
        umask: umask.transpose()?.map(Umask),
        log,
        rotate,
        mode,
        retry,
        manual: !autostart,
        success: if codes == [0] { Vec::new() } else { codes },
        stop: (signal != "TERM")
            .then(|| format!("kill -{} \"$GAGGLED_PROGRAM_PID\"", signal.trim_start_matches("SIG"))),
        killwait: Some(Millis(1000 * number("stopwaitsecs", 10)?)),
        // It was given up after so many starts in a row, each a second later than the one before.
        limit: Some(Limit {
            starts: u32::try_from(retries + 1).unwrap_or(1000).min(Limit::MOST),
            within: Millis(1000 * ((retries + 1) * lasts.max(1) + retries * (retries + 1) / 2)),
            retry: None,
        }),
        backoff: Some(Backoff { initial: Millis(1000), ..Backoff::default() }),
        ..ProgramConfig::default()
    })
}

/// A log of supervisord is begun anew at 50 MB unless it says otherwise, and ten are kept.
fn rotation(section: &Section, has_log: bool) -> Result<Option<Rotate>, String> {
    let option = |name: &str| section.get(name).map(|found| (found.place.clone(), found.value()));
    let size = match option("stdout_logfile_maxbytes") {
        None => Bytes(50 << 20),
        Some((place, text)) => Bytes::read(&text).ok_or(format!("{place}: stdout_logfile_maxbytes is no size"))?,
    };
    let keep = match option("stdout_logfile_backups") {
        None => 10,
        Some((place, text)) => text.parse().map_err(|_| format!("{place}: stdout_logfile_backups is no number"))?,
    };
    // Without a size, or without anything to keep, it is never begun anew.
    let rotates = has_log && size >= Rotate::SMALLEST && keep > 0;
    Ok(rotates.then(|| Rotate { size, keep, ..Rotate::default() }))
}

/// `KEY=value,KEY2="value, with a comma"`.
fn variables(text: &str, place: &Place) -> Result<Ordered<String>, String> {
    let mut variables = Ordered::default();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(format!("{place}: environment is no list of KEY=\"value\""))?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| ['"', '\''].contains(c));
        let (value, behind) = match quote {
            Some(quote) => {
                let inner = after.get(1..).unwrap_or_default();
                inner.split_once(quote).ok_or(format!("{place}: environment has a quote that is not closed"))?
            }
            None => after.split_at(after.find([',', '\n']).unwrap_or(after.len())),
        };
        variables.0.push((name.trim().to_owned(), value.trim_end().to_owned()));
        rest = behind.trim_start().trim_start_matches(',').trim_start();
    }
    Ok(variables)
}

/// Replaces `%(here)s`, `%(program_name)s`, `%(process_num)02d`, `%(ENV_X)s` and so on.
fn expand(text: &str, file: &Path, place: &Place, words: &[(&str, String)]) -> Result<String, String> {
    let here = || std::path::absolute(file).ok().and_then(|file| Some(file.parent()?.display().to_string()));
    let host = || nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned());
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            expanded.push('%');
            rest = after;
            continue;
        }
        let known = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        let (name, after) = known.ok_or(format!("{place}: % stands alone: write %% for a percent sign"))?;
        let end = after.find(['s', 'd']).ok_or(format!("{place}: %({name}) has no s or d behind it"))?;
        let (width, behind) = after.split_at(end);
        let value = match name {
            "here" => here(),
            "host_node_name" => host(),
            _ => match name.strip_prefix("ENV_") {
                Some(variable) => std::env::var(variable).ok(),
                None => words.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()),
            },
        };
        let value = value.ok_or(format!("{place}: %({name})s is not known here"))?;
        let width: usize = width.trim_start_matches('0').parse().unwrap_or(0);
        let padded = if value.bytes().all(|b| b.is_ascii_digit()) { format!("{value:0>width$}") } else { value };
        expanded.push_str(&padded);
        rest = behind.get(1..).unwrap_or_default();
    }
    expanded.push_str(rest);
    Ok(expanded)
}
