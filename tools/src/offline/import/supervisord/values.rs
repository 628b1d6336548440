//! Values as supervisord reads them.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    str::FromStr,
};

use gaggled_core::config::OrderedMap;

use crate::offline::import::{
    imported::SourceLocation,
    ini::{Section, Setting},
};

/// The widest that a number is written.
const WIDEST: usize = 64;

/// What `%(...)s` stands for.
#[derive(Clone, Debug)]
pub(super) struct Expansions {
    file: PathBuf,
    known: Vec<(&'static str, String)>,
    /// The variables of the configuration itself.
    environment: OrderedMap<String>,
    /// Notes about values that depend on the machine and environment of the import.
    frozen: RefCell<BTreeSet<String>>,
}

impl Expansions {
    /// Those of a file, with the variables that every program gets.
    pub(super) fn new(file: &Path, environment: &OrderedMap<String>) -> Self {
        Self { file: file.to_owned(), known: Vec::new(), environment: environment.clone(), frozen: RefCell::default() }
    }

    /// The same, with one more.
    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.known.push((name, value.to_string()));
        self
    }

    /// The same, with a program's own variables.
    #[must_use]
    pub(super) fn and_environment(mut self, own: &OrderedMap<String>) -> Self {
        self.environment.0.retain(|(known, _)| own.get(known).is_none());
        self.environment.0.extend(own.0.iter().cloned());
        self
    }

    /// The notes about values that depend on the machine and environment of the import.
    pub(super) fn frozen(&self) -> BTreeSet<String> {
        self.frozen.borrow().clone()
    }

    fn freeze(&self, place: &SourceLocation, what: &str) {
        self.frozen.borrow_mut().insert(format!("{place}: {what} is replaced by its present value on this machine"));
    }

    /// Replaces `%(here)s`, `%(program_name)s`, `%(process_num)02d`, `%(ENV_X)s` and so on.
    pub(super) fn expand(&self, text: &str, place: &SourceLocation) -> Result<String, String> {
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
            let end = after.find(|c: char| c.is_ascii_alphabetic());
            let (width, form) = end.map_or((after, ""), |end| after.split_at(end));
            let written = self.value(name, place)?;
            let written = formatted(&written, width, form.get(..1).unwrap_or_default());
            expanded
                .push_str(&written.ok_or(format!("{place}: the form of %({name}) is not known: write %({name})s"))?);
            rest = form.get(1..).unwrap_or_default();
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn value(&self, name: &str, place: &SourceLocation) -> Result<String, String> {
        if let Some((_, value)) = self.known.iter().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        if name == "here" {
            let file = std::path::absolute(&self.file).ok();
            return Ok(file.and_then(|file| Some(file.parent()?.display().to_string())).unwrap_or_default());
        }
        if name == "host_node_name" {
            self.freeze(place, "%(host_node_name)s");
            return Ok(nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
        }
        let unknown = || format!("{place}: %({name}) is not known here");
        let variable = name.strip_prefix("ENV_").ok_or_else(unknown)?;
        if let Some(value) = self.environment.get(variable) {
            return Ok(value.clone());
        }
        self.freeze(place, &format!("%(ENV_{variable})s"));
        std::env::var(variable).map_err(|_| format!("{}: set {variable} while importing", unknown()))
    }
}

/// A value as Python formats it.
fn formatted(value: &str, width: &str, form: &str) -> Option<String> {
    let wide: usize = if width.is_empty() { 0 } else { width.parse().ok()? };
    let wide = wide.min(WIDEST);
    let number = || value.parse::<u64>().ok();
    let written = match form {
        "s" => return Some(format!("{value:>wide$}")),
        "d" | "i" | "u" => number()?.to_string(),
        "x" => format!("{:x}", number()?),
        "X" => format!("{:X}", number()?),
        "o" => format!("{:o}", number()?),
        _ => return None,
    };
    Some(if width.starts_with('0') { format!("{written:0>wide$}") } else { format!("{written:>wide$}") })
}

/// The options of a section, read as what they are to be.
pub(super) struct Options<'a> {
    pub(super) section: &'a Section,
    pub(super) words: &'a Expansions,
}

impl Options<'_> {
    /// The value of an option.
    pub(super) fn text(&self, option: &str) -> Result<Option<String>, String> {
        let found = self.section.get(option);
        found.map(|found| self.words.expand(&found.value(), &found.place)).transpose()
    }

    /// Says that an option is wrong, and where it stands.
    pub(super) fn wrong(&self, option: &str, why: &str) -> String {
        format!("{}: {option} {why}", self.place(option))
    }

    /// Where an option stands, or its section.
    pub(super) fn place(&self, option: &str) -> &SourceLocation {
        self.section.get(option).map_or(&self.section.place, |found: &Setting| &found.place)
    }

    /// A number, or its default.
    pub(super) fn number<T: FromStr>(&self, option: &str, default: T) -> Result<T, String> {
        let read = |text: String| text.trim().parse().map_err(|_| self.wrong(option, "is no number"));
        self.text(option)?.map_or(Ok(default), read)
    }

    /// Yes or no, in any of supervisord's words for that.
    pub(super) fn boolean(&self, option: &str) -> Result<Option<bool>, String> {
        let Some(text) = self.text(option)? else { return Ok(None) };
        truth(&text).map(Some).ok_or_else(|| self.wrong(option, "is neither true nor false"))
    }
}

/// Yes or no, in any of supervisord's words for that.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// `KEY=value,KEY2="value, with a comma"`: names, signs and values, in words as Python's `shlex` finds them.
pub(super) fn variables(text: &str, place: &SourceLocation) -> Result<OrderedMap<String>, String> {
    let mut variables = OrderedMap::default();
    let words = words(text).ok_or(format!("{place}: environment has a quote that is not closed"))?;
    for pair in words.chunks(4) {
        let wrong = || format!("{place}: environment is no list of KEY=\"value\", with commas between");
        let [name, equals, value, between @ ..] = pair else { return Err(wrong()) };
        let goes_on = between.iter().all(|between| between == "," || between == ";");
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if equals != "=" || !goes_on || !is_name {
            return Err(wrong());
        }
        let value = value.trim_matches(['"', '\'']).to_owned();
        variables.0.retain(|(known, _)| known != name);
        variables.0.push((name.clone(), value));
    }
    Ok(variables)
}

/// The words of a line: quoted text is one, and so is every other character outside words; `None` if a quote is not
/// closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let in_word = |c: char| c.is_alphanumeric() || "_/.+-():\"'".contains(c);
        let length = match first {
            '"' | '\'' => rest.get(1..)?.find(first)? + 2,
            '#' => rest.find('\n').unwrap_or(rest.len()),
            _ if in_word(first) => rest.find(|c| !in_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (word, behind) = rest.split_at(length);
        if first != '#' {
            words.push(word.to_owned());
        }
        rest = behind.trim_start();
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> SourceLocation {
        SourceLocation::new(Path::new("x"), 1)
    }

    #[test]
    fn environments_are_read_as_supervisord_reads_them() {
        for (text, expected) in [
            ("A=1,B=\"2, 3\"", &[("A", "1"), ("B", "2, 3")][..]),
            ("A=\"1\";B='2'", &[("A", "1"), ("B", "2")]),
            ("A=\"1\",\n  B=/x/y:z-(w)", &[("A", "1"), ("B", "/x/y:z-(w)")]),
            ("A=1,A=2,", &[("A", "2")]),
            ("A=\"'x'\"", &[("A", "x")]),
            ("A=\"#1\" # a comment", &[("A", "#1")]),
            ("", &[]),
        ] {
            let read = variables(text, &place()).expect(text);
            let read: Vec<(&str, &str)> = read.0.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(read, expected, "{text}");
        }
        for text in ["A", "A=", "A=1 B=2", "\"A=1\"", "A=x y", "A=\"x", "D=\"q\\\"q\",E=\"1\"", "A=1,,B=2"] {
            assert!(variables(text, &place()).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let words =
            Expansions::new(Path::new("/d/x"), &OrderedMap(vec![("OWN".into(), "o".into())])).with("process_num", 11);
        let written = |text: &str| words.expand(text, &place());
        assert_eq!(written("%(process_num)03d-%(process_num)x %(process_num)s%% %(here)s"), Ok("011-b 11% /d".into()));
        assert_eq!(written("%(ENV_OWN)s"), Ok("o".into()));
        for wrong in ["%(process_num)q", "%(process_num)", "%(nothing)s", "%x", "%(ENV_NO_SUCH_VARIABLE)s"] {
            assert!(written(wrong).is_err(), "{wrong}");
        }
    }
}
