//! Turns a configuration into what the host needs, and checks whether this machine can provide it.

mod cgroups;
mod directories;
mod sandbox;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub use self::cgroups::prepare as prepare_cgroups;
use gaggled_core::{
    base::ids::{IdVec, ProgramId},
    config::{Config, Diagnostic, LOGGER, ProgramConfig, SpanIndex, log_policy::LogRoute, sandbox::Cgroup},
    graph::{Graph, Policy, STOP},
    host::{ExitPolicy, LaunchSpec, LogTarget, PidFile},
    process::Signal,
};
use nix::unistd::geteuid;

/// The launch specification of each program of a graph. A program that is no longer configured is stopped as the
/// previous configuration says, if that is known, and never started again.
pub fn specs(
    config: &Config,
    before: Option<&Config>,
    graph: &Graph,
    log_routes: &[LogRoute],
    cgroups: Option<&Path>,
) -> IdVec<ProgramId, LaunchSpec> {
    let log_routes: BTreeMap<&str, &LogRoute> =
        log_routes.iter().map(|outlet| (outlet.program.as_str(), outlet)).collect();
    let mut configured: BTreeMap<&str, &ProgramConfig> =
        before.map(|before| before.programs.iter().collect()).unwrap_or_default();
    configured.extend(config.programs.iter());
    let launch = |policy: &Policy| match configured.get(&*policy.name) {
        Some(program) => {
            let name = &*policy.name;
            let cgroup = cgroups.map(|own| Cgroup { parent: own.display().to_string(), settings: settings(program) });
            let exit = ExitPolicy::from(policy);
            let mut spec = LaunchSpec { cgroup, exit, ..launch(name, program, log_routes.get(name).copied()) };
            let shared = policy.group.and_then(|id| Some((id, graph.groups[id].tenancy.as_ref()?)));
            if let Some((id, tenancy)) = shared {
                let group = graph.groups[id].name.to_string();
                spec.permit = Some(group.clone()).filter(|_| !policy.names(STOP));
                spec.env.extend([
                    ("GAGGLED_GROUP".to_owned(), group),
                    ("GAGGLED_NODE".to_owned(), tenancy.node.to_string()),
                ]);
                spec.shared_group = Some(id);
            }
            spec
        }
        None => LaunchSpec { name: policy.name.to_string(), ..LaunchSpec::default() },
    };
    graph.programs.values().map(launch).collect()
}

fn launch(name: &str, program: &ProgramConfig, outlet: Option<&LogRoute>) -> LaunchSpec {
    let (command, argv) = match (&program.command, &program.shell) {
        (Some(command), _) => (command.clone(), program.argv.clone()),
        (None, shell) => ("/bin/sh".to_owned(), vec!["-c".to_owned(), shell.clone().unwrap_or_default()]),
    };
    let (sandbox, mut env) = match sandbox::resolve(program) {
        Ok(resolved) => (Some(resolved.sandbox), resolved.variables),
        Err(_) => (None, Vec::new()),
    };
    env.retain(|(name, _)| program.env.get(name).is_none());
    env.extend(program.env.iter().map(|(name, value)| (name.to_owned(), value.clone())));
    env.push(("GAGGLED_PROGRAM_NAME".to_owned(), name.to_owned()));
    LaunchSpec {
        name: name.to_owned(),
        command,
        argv,
        stop_command: program.stop_command.clone(),
        stop_signal: program.stop_signal.as_deref().and_then(Signal::parse),
        exit: ExitPolicy::default(),
        env,
        wd: program.wd.clone(),
        log: match (outlet.and_then(|outlet| outlet.pipe.clone()), program.log.clone()) {
            (Some(pipe), file) => LogTarget::Pipe { pipe, file },
            (None, Some(file)) => LogTarget::File(file),
            (None, None) => LogTarget::Inherit,
        },
        pid_file: program.pid_file.as_ref().map(|file| in_directory(file, program.wd.as_deref())),
        ready: program.ready.clone(),
        health: program.health.clone(),
        watchdog: program.watchdog,
        cgroup: None,
        shared_group: None,
        permit: None,
        sandbox,
    }
}

/// The users that programs run as.
pub fn users(config: &Config) -> BTreeSet<u32> {
    let user = |program: &ProgramConfig| Some(sandbox::resolve(program).ok()?.sandbox.identity?.uid);
    config.enabled_programs().filter_map(|(_, program)| user(program)).chain([geteuid().as_raw()]).collect()
}

fn settings(program: &ProgramConfig) -> Vec<(String, String)> {
    program.cgroup.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// Where the output of each program goes; the pipes are in a directory of gaggled's own.
pub fn log_routes(config: &Config, pipes: &Path) -> Vec<LogRoute> {
    let outlet = |(name, program): (&str, &ProgramConfig)| {
        let merged = config.gaggled.prefix_output && program.log.is_none();
        let taken = name != LOGGER && (merged || program.rotate.is_some());
        let pipe = taken.then(|| pipes.join(format!("{name}.pipe")).display().to_string());
        // Absolute, because the readers of the file may run in other directories than gaggled.
        let whole =
            |log: &String| std::path::absolute(log).map_or_else(|_| log.clone(), |log| log.display().to_string());
        LogRoute { program: name.to_owned(), file: program.log.as_ref().map(whole), pipe, rotate: program.rotate }
    };
    config.enabled_programs().map(outlet).collect()
}

/// The pid files of the programs that make daemons of themselves, by their names.
pub fn daemon_files(config: &Config) -> BTreeMap<String, String> {
    let file = |program: &ProgramConfig| match in_directory(program.pid_file.as_ref()?, program.wd.as_deref()) {
        PidFile::Read(path) => Some(path),
        PidFile::Write(_) => None,
    };
    config.enabled_programs().filter_map(|(name, program)| Some((name.to_owned(), file(program)?))).collect()
}

/// A pid file with a relative path is looked for in the working directory of the program.
fn in_directory(file: &PidFile, wd: Option<&str>) -> PidFile {
    let whole = |path: &String| wd.map_or_else(|| path.clone(), |wd| Path::new(wd).join(path).display().to_string());
    match file {
        PidFile::Write(path) => PidFile::Write(whole(path)),
        PidFile::Read(path) => PidFile::Read(whole(path)),
    }
}

/// The directories in which commands are looked for: those of the configuration, then those of `$PATH`.
pub fn search_path(config: &Config, path: &str) -> Vec<String> {
    let all = config.gaggled.path.split(':').chain(path.split(':'));
    all.filter(|directory| !directory.is_empty()).map(str::to_owned).collect()
}

/// The variables that every program gets: gaggled's own, those of the configuration, and those about gaggled.
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

/// Whether a variable changes what any program does, because the loader, the C library or an interpreter reads it. Such
/// variables of root are not passed to programs of other users.
fn is_dangerous(name: &str) -> bool {
    const NAMES: [&str; 22] = [
        "BASH_ENV",
        "CDPATH",
        "ENV",
        "GCONV_PATH",
        "GETCONF_DIR",
        "GLIBC_TUNABLES",
        "HOSTALIASES",
        "IFS",
        "LOCALDOMAIN",
        "LOCPATH",
        "MALLOC_TRACE",
        "NIS_PATH",
        "NLSPATH",
        "NODE_OPTIONS",
        "PERL5LIB",
        "PERL5OPT",
        "PYTHONHOME",
        "PYTHONPATH",
        "RESOLV_HOST_CONF",
        "RES_OPTIONS",
        "RUBYLIB",
        "RUBYOPT",
    ];
    name.starts_with("LD_") || name.starts_with("BASH_FUNC_") || NAMES.contains(&name)
}

/// The variables of gaggled's own environment that programs of other users do not get, unless the configuration gives
/// them.
pub fn withheld(config: &Config, own: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    own.into_iter().filter(|name| is_dangerous(name) && config.gaggled.env.get(name).is_none()).collect()
}

/// The users, commands and directories that enabled programs need and this machine does not have.
pub fn check(config: &Config, locator: &SpanIndex, search: &[String]) -> Vec<Diagnostic> {
    let mut found = cgroups::check(config, locator);
    for (name, program) in config.enabled_programs() {
        let place = |field: &str| locator.nearest(&["programs", name, field]);
        if let Err(why) = sandbox::resolve(program) {
            let error = Diagnostic::error(format!("program \"{name}\" {}", why.why));
            found.push(error.at(place(why.field)).help(why.help));
        }
        if let Some(command) = &program.command
            && let Err(why) = executable(command, program, search)
        {
            let root = program.chroot.as_ref().map_or_else(String::new, |root| format!(" in its root {root}"));
            found.push(
                Diagnostic::error(format!("command \"{command}\" of program \"{name}\" {why}{root}"))
                    .at(place("command"))
                    .help("correct the command or the path, install what is missing, or set enabled: false"),
            );
        }
        found.extend(directories::check(name, program, &place));
    }
    found
}

/// The path at which gaggled finds a path of a program, which may have another root.
fn inside(program: &ProgramConfig, path: &Path) -> PathBuf {
    match &program.chroot {
        Some(root) => Path::new(root).join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}

fn executable(command: &str, program: &ProgramConfig, search: &[String]) -> Result<(), String> {
    if command.contains('/') {
        let path =
            program.wd.as_deref().map_or_else(|| Path::new(command).to_owned(), |wd| Path::new(wd).join(command));
        return is_executable(&inside(program, &path));
    }
    let mut why =
        format!("is not found in {}", if search.is_empty() { "an empty path".to_owned() } else { search.join(":") });
    for directory in search {
        match is_executable(&inside(program, &Path::new(directory).join(command))) {
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
