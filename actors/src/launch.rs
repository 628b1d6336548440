//! From a configuration to what the host needs, and whether it can be had on this machine.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use gaggled_core::{
    config::{Config, Diagnostic, Locator, ProgramConfig},
    graph::Graph,
    host::{Launch, Log},
    ids::{ProgramId, Table},
};

/// What the host needs of each program of a graph. Of one that is no longer configured it needs only the name: it is
/// never started again.
pub fn launches(config: &Config, graph: &Graph) -> Table<ProgramId, Launch> {
    let configured: BTreeMap<&str, &ProgramConfig> = config.programs.iter().collect();
    let launch = |name: &str| match configured.get(name) {
        Some(program) => launch(name, program),
        None => Launch { name: name.to_owned(), ..Launch::default() },
    };
    graph.programs.values().map(|policy| launch(&policy.name)).collect()
}

fn launch(name: &str, program: &ProgramConfig) -> Launch {
    let (command, argv) = match (&program.command, &program.shell) {
        (Some(command), _) => (command.clone(), program.argv.clone()),
        (None, shell) => ("/bin/sh".to_owned(), vec!["-c".to_owned(), shell.clone().unwrap_or_default()]),
    };
    let mut env: Vec<(String, String)> =
        program.env.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    env.push(("GAGGLED_PROGRAM_NAME".to_owned(), name.to_owned()));
    let log = program.log.clone().map_or(Log::Inherit, Log::File);
    Launch { name: name.to_owned(), command, argv, stop: program.stop.clone(), env, wd: program.wd.clone(), log }
}

/// The directories in which commands are looked for: those of the configuration, then those of `$PATH`.
pub fn search_path(config: &Config, path: &str) -> Vec<String> {
    let all = config.gaggled.path.split(':').chain(path.split(':'));
    all.filter(|directory| !directory.is_empty()).map(str::to_owned).collect()
}

/// The variables that every program gets: gaggled's own, those of the configuration, and where gaggled is.
pub fn variables(
    config: &Config,
    own: impl IntoIterator<Item = (String, String)>,
    search: &[String],
    about_gaggled: [(&str, String); 3],
) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> =
        own.into_iter().filter(|(name, _)| !name.starts_with("GAGGLED_")).collect();
    if !search.is_empty() {
        variables.insert("PATH".to_owned(), search.join(":"));
    }
    variables.extend(config.gaggled.env.iter().map(|(name, value)| (name.to_owned(), value.clone())));
    variables.extend(about_gaggled.map(|(name, value)| (name.to_owned(), value)));
    variables
}

/// Commands and directories that are not there. Of a disabled program nothing is asked.
pub fn check(config: &Config, locator: &Locator, search: &[String]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (name, program) in config.programs.iter().filter(|(_, program)| program.enabled) {
        let place = |field: &str| locator.nearest(&["programs", name, field]);
        if let Some(command) = &program.command
            && let Err(why) = executable(command, program.wd.as_deref(), search)
        {
            found.push(
                Diagnostic::error(format!("command \"{command}\" of program \"{name}\" {why}"))
                    .at(place("command"))
                    .help("correct the command or the path, install what is missing, or set enabled: false"),
            );
        }
        let folder = program.log.as_deref().and_then(|log| Path::new(log).parent());
        if let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            found.push(
                Diagnostic::warning(format!(
                    "directory \"{}\" for the log of program \"{name}\" is not there now",
                    folder.display()
                ))
                .at(place("log"))
                .help("the program cannot start before there is one"),
            );
        }
        if let Some(wd) = program.wd.as_deref().filter(|wd| !Path::new(wd).is_dir()) {
            found.push(
                Diagnostic::warning(format!("working directory \"{wd}\" of program \"{name}\" is not a directory now"))
                    .at(place("wd"))
                    .help("the program cannot start before there is one"),
            );
        }
    }
    found
}

fn executable(command: &str, wd: Option<&str>, search: &[String]) -> Result<(), String> {
    if command.contains('/') {
        let path = wd.map_or_else(|| Path::new(command).to_owned(), |wd| Path::new(wd).join(command));
        return is_executable(&path);
    }
    let mut why =
        format!("is not found in {}", if search.is_empty() { "an empty path".to_owned() } else { search.join(":") });
    for directory in search {
        match is_executable(&Path::new(directory).join(command)) {
            Ok(()) => return Ok(()),
            Err(wrong) if !wrong.contains("does not exist") => why = wrong,
            Err(_) => {}
        }
    }
    Err(why)
}

fn is_executable(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("does not exist".to_owned()),
        Err(error) => Err(format!("cannot be looked at: {error}")),
        Ok(metadata) if !metadata.is_file() => Err("is not a file".to_owned()),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Err("is not executable".to_owned()),
        Ok(_) => Ok(()),
    }
}
