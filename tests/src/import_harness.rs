//! Imports the files of other systems, and runs the results.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use gaggled_core::{base::time::Millis, config::Config};
use tempfile::TempDir;

use crate::harness::{Daemon, DaemonOptions, binary, directory};

/// A directory with the fixtures of one system, in which `@DIR@` and `@USER@` are replaced.
pub fn with_fixtures(system: &str) -> Arc<TempDir> {
    let directory = Arc::new(directory());
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(system), directory.path(), directory.path());
    directory
}

fn copy(from: &Path, to: &Path, root: &Path) {
    for entry in fs::read_dir(from).expect("fixtures").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            fs::create_dir_all(&target).expect("a directory");
            copy(&path, &target, root);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a fixture");
        let user =
            nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map_or("root".into(), |user| user.name);
        let text = text.replace("@DIR@", &root.display().to_string()).replace("@USER@", &user);
        fs::write(&target, text).expect("a file");
        fs::set_permissions(&target, fs::metadata(&path).expect("a fixture").permissions()).expect("rights");
    }
}

/// Runs the importer.
pub fn import(format: &str, file: &Path) -> Output {
    Command::new(binary("gaggled")).args(["import", format]).arg(file).output().expect("gaggled")
}

/// The configuration that the importer makes of a file, with sockets in the directory.
pub fn imported(format: &str, file: &Path) -> String {
    let output = import(format, file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut config = Config::parse(&text).expect("it is correct").config;
    let place = |name: &str| format!("ipc://{}/{name}.ipc", file.parent().expect("a directory").display());
    config.gaggled.eventurl = Some(place("events"));
    config.gaggled.controlurl = Some(place("control"));
    config.gaggled.killwait = Millis(2000);
    for (_, program) in &mut config.programs.0 {
        program.killwait = None;
    }
    config.print().expect("it can be written")
}

/// A gaggled that runs an imported file.
pub fn run(format: &str, directory: &Arc<TempDir>, file: &str) -> Daemon {
    let text = imported(format, &directory.path().join(file));
    Daemon::with(&text, directory.clone(), &DaemonOptions::default())
}

/// The lines of a file in a directory; none if it is not there.
pub fn lines(directory: &Arc<TempDir>, file: &str) -> Vec<String> {
    let text = fs::read_to_string(directory.path().join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The exit status of a tool, and its output.
pub fn said(output: &Output) -> (i32, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// Moves a group to a level, and waits until it has reached it.
pub fn tell(daemon: &Daemon, group: &str, level: &str) -> (i32, String) {
    said(&daemon.tool("gaggled_controller", &["tell", group, level]))
}

/// Imports a changed file over the configuration, as its user would, and reloads.
pub fn reload(daemon: &Daemon, format: &str, file: &Path) -> (i32, String) {
    let path = daemon.directory.path().join("system.ron");
    let state = format!("{}/state", daemon.directory.path().display());
    let mut config = Config::parse(&imported(format, file)).expect("it is correct").config;
    config.gaggled.state_directory = Some(state);
    let new = path.with_extension("new");
    fs::write(&new, config.print().expect("it can be written")).expect("a file");
    fs::rename(&new, &path).expect("a file");
    said(&daemon.tool("gaggled_controller", &["reload"]))
}

/// Imports and reloads a changed file of the directory, and waits until it is in force.
pub fn must_reload(daemon: &mut Daemon, format: &str, file: &str) {
    let before = daemon.daemon_pid();
    let (code, text) = reload(daemon, format, &daemon.directory.path().join(file));
    assert_eq!(code, 0, "{file}: {text}");
    daemon.wait_for_another(before);
}

/// The path of a file in a directory.
pub fn in_directory(directory: &Arc<TempDir>, file: &str) -> PathBuf {
    directory.path().join(file)
}
