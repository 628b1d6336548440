//! The directories that a program needs: whether they are there, and who can change what is in them.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use gaggled_core::config::{Diagnostic, ProgramConfig};
use nix::{libc, unistd::geteuid};

use super::inside;
use crate::safe_path::SafeDirectory;

/// Warns of directories of a program that are not there now, and, if gaggled runs as root, of those that another user
/// can change.
pub(super) fn check(
    name: &str,
    program: &ProgramConfig,
    place: &impl Fn(&str) -> Option<Range<usize>>,
) -> Vec<Diagnostic> {
    let parent = |file: &str| {
        let file = program.wd.as_deref().map_or_else(|| PathBuf::from(file), |wd| Path::new(wd).join(file));
        file.parent().map(Path::to_owned)
    };
    let log = program.log.as_deref().and_then(|log| Path::new(log).parent().map(Path::to_owned));
    let pid_file = program.pid_file.as_ref().and_then(|file| parent(file.path()));
    let chroot = program.chroot.as_ref().map(PathBuf::from);
    let wd = program.wd.as_deref().map(|wd| inside(program, Path::new(wd)));
    [
        ("log", "the directory of the log", log, true),
        ("pid_file", "the directory of the pid file", pid_file, true),
        ("chroot", "the root", chroot, true),
        ("wd", "the working directory", wd, false),
    ]
    .into_iter()
    .filter_map(|(field, what, directory, is_opened)| {
        let directory = directory.filter(|directory| !directory.as_os_str().is_empty())?;
        let what = format!("{what} \"{}\" of program \"{name}\"", directory.display());
        let found = if directory.is_dir() {
            Diagnostic::warning(format!("{what} {}", exposure(&directory).filter(|_| is_opened)?))
                .help("use a directory that root owns and that only root can write to, such as a directory of its own in /run or /var/log")
        } else {
            Diagnostic::warning(format!("{what} does not exist now, or is not a directory"))
                .help("create it: the program cannot start without it")
        };
        Some(found.at(place(field)))
    })
    .collect()
}

/// How a user other than root can change what is in a directory, in words.
fn exposure(directory: &Path) -> Option<&'static str> {
    if !geteuid().is_root() {
        return None;
    }
    match SafeDirectory::find(directory) {
        Ok(found) if found.is_open_to_others() => Some("can be changed by a user other than root"),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            Some("is reached by a symbolic link that a user other than root can replace, and is refused at the start")
        }
        Ok(_) | Err(_) => None,
    }
}
