//! A Procfile: `name: command`, a line each, and the variables in a `.env` beside it.

use std::{fs, path::Path};

use gaggled_core::{config::ProgramConfig, graph::Mode};

use super::imported::{Imported, SourceLocation, read};

/// The first port, and the distance to that of the next program, as in foreman.
const PORTS: (u16, usize) = (5000, 100);

/// Reads a Procfile.
pub fn import(path: &Path) -> Result<Imported, String> {
    let mut imported = Imported::default();
    variables(&path.with_file_name(".env"), &mut imported);
    let first = imported.config.gaggled.env.get("PORT").and_then(|port| port.parse().ok()).unwrap_or(PORTS.0);
    let mut ports = (first..=u16::MAX).step_by(PORTS.1);
    let directory = std::path::absolute(path).ok().and_then(|path| Some(path.parent()?.to_owned()));
    for (line, number) in read(path)?.lines().zip(1..) {
        let place = SourceLocation::new(path, number);
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let named = text.split_once(':').map(|(name, command)| (name.trim(), command.trim()));
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        let Some((name, command)) = named.filter(|(name, command)| is_name(name) && !command.is_empty()) else {
            imported.note(&place, "is no \"name: command\", and was ignored");
            continue;
        };
        let port = ports.next().ok_or(format!("{place}: there is no PORT left for it: write a smaller one in .env"))?;
        let mut program = ProgramConfig {
            shell: Some(command.to_owned()),
            wd: directory.as_ref().map(|directory| directory.display().to_string()),
            ..ProgramConfig::default()
        };
        program.env.0.push(("PORT".to_owned(), port.to_string()));
        if name == "release" {
            program.mode = Some(Mode::Once);
            imported.note(&place, "a release is run once, when gaggled starts, and not before each deployment; let others depend on it condition: Completed");
        }
        imported.program(&place, name, program)?;
    }
    if imported.config.programs.is_empty() {
        return Err(format!("{}: has no line with \"name: command\"", path.display()));
    }
    let whole = SourceLocation::new(path, 1);
    imported.note(&whole, "each program got the PORT that foreman gives: 5000, or that of .env, and 100 more for each");
    imported.note(&whole, "foreman ends everything when one program ends; here that one is started again (essential: true ends everything)");
    imported.checked(path)
}

/// A value of a `.env`. Only between double quotes is a backslash an escape character.
fn unquoted(value: &str) -> String {
    let between =
        |quote: char| value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)).map(|(inner, _)| inner);
    if let Some(inner) = between('\'') {
        return inner.to_owned();
    }
    let Some(rest) = value.strip_prefix('"') else {
        let comment = value.find(" #").unwrap_or(value.len());
        return value.get(..comment).unwrap_or(value).trim_end().to_owned();
    };
    let mut text = String::new();
    let mut rest = rest.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => return text,
            '\\' => match rest.next() {
                Some('n') => text.push('\n'),
                Some(c @ ('"' | '\\' | '$')) => text.push(c),
                Some(c) => text.extend(['\\', c]),
                None => text.push('\\'),
            },
            c => text.push(c),
        }
    }
    // An unclosed quote is an ordinary character.
    value.to_owned()
}

/// The variables of a `.env`, if there is one.
fn variables(path: &Path, imported: &mut Imported) {
    let Ok(text) = fs::read_to_string(path) else { return };
    for (line, number) in text.lines().zip(1..) {
        let place = SourceLocation::new(path, number);
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() && !name.starts_with("GAGGLED_") => {
                let value = unquoted(value.trim());
                let env = &mut imported.config.gaggled.env.0;
                env.retain(|(known, _)| known != name.trim());
                env.push((name.trim().to_owned(), value));
            }
            Some(_) | None => imported.note(&place, "is no variable, and was ignored"),
        }
    }
    imported.note(SourceLocation::new(path, 1), "its variables are copied: the new file is as secret as this one");
}
