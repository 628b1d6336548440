//! The places of keys in the text of a configuration.
//!
//! The parser reports the place of a syntax error, but not that of a value it has read. So the text of a file that has
//! been read is scanned once more, for keys only.

use std::{collections::BTreeMap, ops::Range};

/// The deepest nesting of brackets that is scanned.
const DEPTH: usize = 128;

/// The places of all keys of a file.
#[derive(Clone, Debug, Default)]
pub struct SpanIndex {
    places: BTreeMap<Vec<String>, Vec<Range<usize>>>,
}

impl SpanIndex {
    /// Scans a text. Places in parts that are not valid RON may be wrong.
    pub fn new(text: &str) -> Self {
        let mut scanner = Scanner { text, at: 0, depth: 0, path: Vec::new(), places: BTreeMap::new() };
        scanner.items();
        Self { places: scanner.places }
    }

    /// The place of a key, given the keys around it.
    pub fn find(&self, path: &[&str]) -> Option<Range<usize>> {
        self.all(path).first().cloned()
    }

    /// All places of a key.
    pub fn all(&self, path: &[&str]) -> &[Range<usize>] {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        self.places.get(&path).map_or(&[], Vec::as_slice)
    }

    /// The last key that begins at or before a byte, with the keys around it.
    pub fn around(&self, at: usize) -> Option<String> {
        let starts = self.places.iter().flat_map(|(path, places)| places.iter().map(move |place| (place.start, path)));
        let (_, path) = starts.filter(|(start, _)| *start <= at).max_by_key(|(start, _)| *start)?;
        Some(path.join("."))
    }

    /// The place of a key or, if it is missing, of the nearest key around it.
    pub fn nearest(&self, path: &[&str]) -> Option<Range<usize>> {
        (1..=path.len()).rev().find_map(|length| self.find(path.get(..length)?))
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    path: Vec<String>,
    places: BTreeMap<Vec<String>, Vec<Range<usize>>>,
}

impl Scanner<'_> {
    /// Reads items up to the end of the bracket they are in.
    fn items(&mut self) {
        // The parser gives up at such a depth, too.
        if self.depth == DEPTH {
            self.at = self.text.len();
            return;
        }
        self.depth += 1;
        self.items_here();
        self.depth -= 1;
    }

    fn items_here(&mut self) {
        let mut key: Option<Range<usize>> = None;
        while let Some(token) = self.token() {
            match self.text.get(token.clone()).unwrap_or_default() {
                "(" | "[" | "{" => self.items(),
                ")" | "]" | "}" => return,
                ":" => {
                    if let Some(span) = key.take() {
                        self.value_of(span);
                    }
                }
                _ => key = Some(token),
            }
        }
    }

    fn value_of(&mut self, key: Range<usize>) {
        let name = self.text.get(key.clone()).unwrap_or_default().trim_matches('"').to_owned();
        self.path.push(name);
        self.places.entry(self.path.clone()).or_default().push(key);
        // The value is one token, or a name and a bracket; a comma or a closing bracket ends it.
        loop {
            let before = self.at;
            let Some(token) = self.token() else { break };
            match self.text.get(token).unwrap_or_default() {
                "(" | "[" | "{" => self.items(),
                ")" | "]" | "}" | "," => {
                    self.at = before;
                    break;
                }
                _ => {}
            }
        }
        self.path.pop();
        let before = self.at;
        if self.token().is_none_or(|token| self.text.get(token) != Some(",")) {
            self.at = before;
        }
    }

    fn token(&mut self) -> Option<Range<usize>> {
        self.skip_space();
        let start = self.at;
        let rest = self.text.get(start..)?;
        let first = rest.chars().next()?;
        let length = match first {
            '"' => quoted(rest, '"'),
            '\'' => quoted(rest, '\''),
            'r' if rest.trim_start_matches(['r', '#']).starts_with('"') => raw(rest),
            c if c.is_alphanumeric() || "_+-.#".contains(c) => {
                rest.find(|c: char| !(c.is_alphanumeric() || "_+-.#!".contains(c))).unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        self.at = start + length.max(first.len_utf8());
        Some(start..self.at)
    }

    fn skip_space(&mut self) {
        while let Some(rest) = self.text.get(self.at..) {
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            let comment = if trimmed.starts_with("//") {
                trimmed.find('\n').unwrap_or(trimmed.len())
            } else if trimmed.starts_with("/*") {
                nested(trimmed)
            } else {
                0
            };
            self.at += rest.len() - trimmed.len() + comment;
            if comment == 0 {
                return;
            }
        }
    }
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw(text: &str) -> usize {
    let hashes = text.chars().skip(1).take_while(|c| *c == '#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let open = hashes + 2;
    text.get(open..).and_then(|body| body.find(&end)).map_or(text.len(), |at| open + at + end.len())
}

fn nested(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_through_comments_strings_and_brackets() {
        let text = "#![enable(implicit_some)]\n(// \"a\": no\n gaggled: (env: {\"x\": \"y: (\"}), /* /* ( */ */ programs: {\n\"a\": (argv: [\"]\", r#\"\"}\"#], depends: {\"b\": (delay: 5)}), \"a\": ()})";
        let locator = SpanIndex::new(text);
        let text_at = |path: &[&str]| locator.find(path).map(|span| &text[span]);
        assert_eq!(text_at(&["gaggled", "env", "x"]), Some("\"x\""));
        assert_eq!(text_at(&["programs", "a", "depends", "b", "delay"]), Some("delay"));
        assert_eq!(locator.all(&["programs", "a"]).len(), 2);
        assert_eq!(locator.nearest(&["programs", "a", "command"]), locator.find(&["programs", "a"]));
        let at = |text_at: &str| locator.around(text.find(text_at).expect("it is there"));
        assert_eq!(at("5)"), Some("programs.a.depends.b.delay".to_owned()));
        assert_eq!(at("#!"), None);
    }

    #[test]
    fn no_text_makes_it_fail() {
        for text in ["", "(", "\"", "r#\"", "/*", "'", ")", ":", "a:", "(a:", "é: \"\\", "{\"a\":\"b\"", "r\"x", "rr##"]
        {
            let _ = SpanIndex::new(text);
        }
        for open in ["(", "[", "{", "(a:", "{\"a\":["] {
            let _ = SpanIndex::new(&open.repeat(100_000));
        }
    }
}
