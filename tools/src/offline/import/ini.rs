//! Files of sections, as Python's configuration parsers read them: `[section]`, `name = value`, and continuation lines,
//! which are indented further than the name.

use std::path::Path;

use super::imported::{SourceLocation, read};

/// A section.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub place: SourceLocation,
    /// Its options, in order.
    pub options: Vec<Setting>,
}

/// An option.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// The lines of its value, trimmed, each with its location.
    pub lines: Vec<(SourceLocation, String)>,
    /// Where it begins.
    pub place: SourceLocation,
}

impl Setting {
    /// The whole value.
    pub fn value(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(|(_, line)| line.as_str()).collect();
        lines.join("\n").trim().to_owned()
    }
}

impl Section {
    /// The last option of this name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.options.iter().rev().find(|option| option.name == name)
    }
}

/// Reads a file. `comment` returns where in a line a comment begins.
pub fn parse(path: &Path, comment: impl Fn(&str) -> Option<usize>) -> Result<Vec<Section>, String> {
    let mut sections: Vec<Section> = Vec::new();
    let mut indent = 0;
    for (line, number) in read(path)?.lines().zip(1..) {
        let place = SourceLocation::new(path, number);
        let whole = comment(line).map_or(line, |at| line.get(..at).unwrap_or_default());
        let text = whole.trim();
        if text.is_empty() {
            continue;
        }
        let last = sections.last_mut().and_then(|section| section.options.last_mut());
        let is_in = whole.len() - whole.trim_start().len();
        if let Some(option) = last.filter(|_| is_in > indent) {
            option.lines.push((place, text.to_owned()));
        } else if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            sections.push(Section { name: name.trim().to_owned(), place, options: Vec::new() });
        } else {
            let section = sections.last_mut().ok_or(format!("{place}: stands before the first [section]"))?;
            let at = text.find(['=', ':']).ok_or(format!("{place}: is neither [section] nor name = value"))?;
            let (name, value) = text.split_at(at);
            let lines = vec![(place.clone(), value.get(1..).unwrap_or_default().trim().to_owned())];
            indent = is_in;
            section.options.push(Setting { name: name.trim().to_owned(), lines, place });
        }
    }
    Ok(sections)
}
