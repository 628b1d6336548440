//! Boost INFO, the syntax of the original's files: keys, values, and sections in braces.
//!
//! Its peculiarities are kept, so that a file means what the original read: a value that is not quoted ends at white
//! space, and what follows it on the line is another key; `;` begins a comment even within a word.

use std::{fs, path::Path};

/// A key with its value and what is in its section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The key.
    pub key: String,
    /// The value, empty if there is none.
    pub value: String,
    /// The keys of its section.
    pub children: Vec<Node>,
    /// Where it stands: file and line.
    pub place: String,
    /// Whether another key stands before it on the same line, outside braces.
    pub trails: bool,
}

impl Node {
    /// The first of a name, which is the one that the original looked at.
    pub fn first(&self, key: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.key == key)
    }
}

/// How deep files may include each other.
const DEPTH: usize = 100;

/// Reads a file, with those it includes.
pub fn read(path: &Path) -> Result<Node, String> {
    let mut reader = Reader { stack: vec![Node::default()], depth: 0 };
    reader.file(path)?;
    match reader.stack.as_slice() {
        [_] => Ok(reader.stack.remove(0)),
        [.., open] => Err(format!("{}: unmatched {{", open.place)),
        [] => Err(format!("{}: unmatched }}", path.display())),
    }
}

struct Reader {
    /// The sections that are open; the first is the file itself.
    stack: Vec<Node>,
    depth: usize,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<(), String> {
        let name = path.display();
        if self.depth > DEPTH {
            return Err(format!("{name}: files include each other without end"));
        }
        let text =
            fs::read_to_string(path).map_err(|error| format!("{name}: cannot open file for reading: {error}"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let place = format!("{name}:{}", number + 1);
            let mut continuation = || lines.next().map(|(_, line)| line);
            self.line(line, &place, &mut continuation)?;
        }
        Ok(())
    }

    fn line<'a>(
        &mut self,
        line: &'a str,
        place: &str,
        next: &mut dyn FnMut() -> Option<&'a str>,
    ) -> Result<(), String> {
        let mut rest = line.trim_start();
        let mut trails = false;
        while !rest.is_empty() && !rest.starts_with(';') {
            if let Some(directive) = rest.strip_prefix('#') {
                return self.directive(directive, place);
            }
            if let Some(after) = rest.strip_prefix('{') {
                let section = self.stack.last_mut().and_then(|open| open.children.pop());
                self.stack.push(section.ok_or_else(|| format!("{place}: unexpected {{"))?);
                (rest, trails) = (after.trim_start(), false);
                continue;
            }
            if let Some(after) = rest.strip_prefix('}') {
                self.close(place)?;
                (rest, trails) = (after.trim_start(), false);
                continue;
            }
            let (key, after) = string(rest, place, next)?;
            let (value, after) = match after.chars().next() {
                None | Some(';' | '{' | '}') => (String::new(), after),
                Some(_) => string(after, place, next)?,
            };
            let node = Node { key, value, children: Vec::new(), place: place.to_owned(), trails };
            self.stack.last_mut().into_iter().for_each(|open| open.children.push(node.clone()));
            (rest, trails) = (after, true);
        }
        Ok(())
    }

    fn close(&mut self, place: &str) -> Result<(), String> {
        if self.stack.len() < 2 {
            return Err(format!("{place}: unmatched }}"));
        }
        let closed = self.stack.pop();
        self.stack.last_mut().into_iter().for_each(|open| open.children.extend(closed.clone()));
        Ok(())
    }

    fn directive(&mut self, directive: &str, place: &str) -> Result<(), String> {
        let Some(name) = directive.strip_prefix("include") else {
            return Err(format!("{place}: unknown directive: a comment begins with ;"));
        };
        let (file, _) = string(name.trim_start(), place, &mut || None)?;
        self.depth += 1;
        let read =
            self.file(Path::new(&file)).map_err(|why| format!("{place}: cannot open include file {file}: {why}"));
        self.depth -= 1;
        read
    }
}

/// Reads a word or a quoted text; returns it with what follows the white space behind it.
fn string<'a>(
    text: &'a str,
    place: &str,
    next: &mut dyn FnMut() -> Option<&'a str>,
) -> Result<(String, &'a str), String> {
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(text.len());
        return Ok((unescape(&text[..end]), text[end..].trim_start()));
    };
    let mut all = String::new();
    loop {
        let end =
            closing_quote(quoted).ok_or_else(|| format!("{place}: unexpected end of line: a quote is not closed"))?;
        all.push_str(&unescape(&quoted[..end]));
        let rest = quoted[end + 1..].trim_start();
        // A backslash at the end of the line goes on with the quoted text on the next.
        let Some("") = rest.strip_prefix('\\').map(str::trim_start) else { return Ok((all, rest)) };
        let line = next().map(str::trim_start).and_then(|line| line.strip_prefix('"'));
        quoted = line.ok_or_else(|| format!("{place}: a quoted text must follow the \\ at the end of the line"))?;
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| match c {
        _ if escaped => {
            escaped = false;
            None
        }
        '\\' => {
            escaped = true;
            None
        }
        '"' => Some(at),
        _ => None,
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.extend(chars.next().map(|c| match c {
            '0' => '\0',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            c => c,
        }));
    }
    out
}
