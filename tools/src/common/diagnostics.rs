//! Findings about a configuration, shown with the lines they are about.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use ariadne::{CharSet, Color, Config as Style, IndexType, Label, Report, ReportKind, Source};
use gaggled_actors::safe_path::SafePath;
use gaggled_core::config::{Config, Diagnostic, Parsed, Severity};
use nix::{libc, unistd::geteuid};

/// Reads and checks a file; what is wrong with it has been printed when this returns an error.
pub fn load(path: &Path) -> Result<(Parsed, String), Rejected> {
    let text = read(path).map_err(|why| {
        eprintln!("Error: {}: {why}", path.display());
        Rejected
    })?;
    match Config::parse(&text) {
        Ok(parsed) => {
            show(path, &text, &parsed.warnings);
            Ok((parsed, text))
        }
        Err(found) => {
            show(path, &text, &found);
            Err(Rejected)
        }
    }
}

/// A configuration that cannot be used. The reasons have been printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected;

/// Reads a file; the error is in words.
pub fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    // Does not wait for the writer of a fifo. The file that is checked is the one that is read.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err("is not a file: give the path of a configuration".to_owned());
    }
    let limit = u64::try_from(Config::MAX_BYTES).unwrap_or(u64::MAX);
    if metadata.len() > limit {
        return Err(format!("has {} bytes, a configuration can have {limit}", metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = before.split(|byte| *byte == b'\n').count();
        format!("line {line} is not UTF-8: save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

/// Why a gaggled that runs as root must not use this file: a user other than root could have written it.
pub fn untrusted(path: &Path) -> Option<String> {
    if !geteuid().is_root() {
        return None;
    }
    let cure = "chown root:root it, and chmod go-w it and its directories";
    let found = match SafePath::find(path) {
        Ok(path) if path.directory.is_open_to_others() => {
            return Some(format!("is in a directory that a user other than root can change: {cure}"));
        }
        // In a directory of root's, an error of the file is reported when it is read.
        Ok(path) => path.read().and_then(|file| file.metadata()).ok()?,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Some(format!("is reached by a symbolic link that a user other than root can replace: {cure}"));
        }
        // A directory on the way is not there, or `..` is meant.
        Err(_) => return None,
    };
    match (found.uid(), found.mode() & 0o022) {
        (0, 0) => None,
        (0, _) => Some(format!("can be written by users other than root, and gaggled runs as root: {cure}")),
        (uid, _) => Some(format!("belongs to user {uid}, and gaggled runs as root: {cure}")),
    }
}

/// Longer lines are not shown with their findings.
const LINE_MAX: usize = 500;

/// Line and column of a place, counted from 1, and the length of the line.
fn place(text: &str, at: usize) -> (usize, usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(begin..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    (before.matches('\n').count() + 1, before.get(begin..).unwrap_or_default().chars().count() + 1, line.len())
}

/// A finding as one line.
pub fn line(path: &Path, text: &str, finding: &Diagnostic) -> String {
    let at = finding.span.as_ref().map_or_else(String::new, |span| {
        let (row, column, _) = place(text, span.start);
        format!(":{row}:{column}")
    });
    let help = finding.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
    format!("{}{at}: {}{help}", path.display(), finding.message)
}

/// Shows findings on standard error.
pub fn show(path: &Path, text: &str, found: &[Diagnostic]) {
    let file = path.display().to_string();
    let style = Style::default()
        .with_index_type(IndexType::Byte)
        .with_color(io::stderr().is_terminal())
        .with_char_set(CharSet::Unicode);
    for finding in found {
        let (kind, colour, word) = match finding.severity {
            Severity::Error => (ReportKind::Error, Color::Red, "Error"),
            Severity::Warning => (ReportKind::Warning, Color::Yellow, "Warning"),
        };
        let Some(span) = finding.span.clone() else {
            eprintln!("{word}: {file}: {}", finding.message);
            finding.help.iter().for_each(|help| eprintln!("  help: {help}"));
            continue;
        };
        let (row, column, length) = place(text, span.start);
        if length > LINE_MAX {
            eprintln!("{word}: {file}:{row}:{column}: {}", finding.message);
            finding.help.iter().for_each(|help| eprintln!("  help: {help}"));
            continue;
        }
        let mut report = Report::build(kind, (file.clone(), span.clone()))
            .with_config(style)
            .with_message(&finding.message)
            .with_label(Label::new((file.clone(), span)).with_message("here").with_color(colour));
        if let Some(help) = &finding.help {
            report = report.with_help(help);
        }
        // An error is ignored: the terminal may be gone.
        let _ = report.finish().eprint((file.clone(), Source::from(text)));
    }
}
