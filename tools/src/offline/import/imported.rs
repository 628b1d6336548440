//! What every importer makes: a configuration, and notes on what could not be kept.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs,
    path::Path,
};

use gaggled_core::{
    base::text::as_name,
    config::{ClusterConfig, Config, Diagnostic, Parsed, ProgramConfig, Settings},
};

/// The result of importing a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The configuration.
    pub config: Config,
    /// What could not be kept, or means something else here, each with its place.
    pub notes: Vec<String>,
}

impl Imported {
    pub(super) fn note(&mut self, place: impl Display, text: impl Display) {
        self.notes.push(format!("{place}: {text}"));
    }

    /// Adds a program, under a name that can be used here.
    pub(super) fn program(&mut self, place: &SourceLocation, name: &str, program: ProgramConfig) -> Result<(), String> {
        let own = usable(name);
        if own != name {
            self.note(
                place,
                format!("{name:?} is called {own:?} here: a name has 1 to 64 of a-z, A-Z, 0-9, and . _ -"),
            );
        }
        if self.config.programs.get(&own).is_some() {
            return Err(format!("{place}: \"{name}\" is there twice: rename one of the two"));
        }
        self.config.programs.0.push((own, program));
        Ok(())
    }

    /// Checks that the printed configuration can be read again.
    pub(super) fn checked(self, path: &Path) -> Result<Self, String> {
        self.checked_by(path, Config::parse)
    }

    /// The same for a configuration that is to be published to the nodes of a cluster.
    pub(super) fn checked_for_cluster(self, path: &Path) -> Result<Self, String> {
        let (name, etcd) = ("cluster".to_owned(), vec!["http://127.0.0.1:2379".to_owned()]);
        let cluster = Some(ClusterConfig { name, etcd, ..ClusterConfig::default() });
        let settings = Settings { cluster, ..Settings::default() };
        self.checked_by(path, |text| Config::parse_published(text, &settings))
    }

    fn checked_by(self, path: &Path, parse: impl Fn(&str) -> Result<Parsed, Vec<Diagnostic>>) -> Result<Self, String> {
        let printed = self.config.print().map_err(|why| why.to_string())?;
        match parse(&printed) {
            Ok(_) => Ok(self),
            Err(found) => {
                let found: BTreeSet<String> = found.into_iter().map(|found| found.message).collect();
                let found: Vec<String> = found.into_iter().collect();
                Err(format!("{}: {}", path.display(), found.join("; ")))
            }
        }
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceLocation {
    pub file: String,
    pub line: usize,
}

impl SourceLocation {
    pub(super) fn new(file: &Path, line: usize) -> Self {
        Self { file: file.display().to_string(), line }
    }
}

impl Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The same line with one word replaced, if it contains that word: `init.d/web stop` for `init.d/web start`. In control
/// scripts, `stop` ends what `start` leaves running.
pub(super) fn counterpart(line: &str, word: &str, instead: &str) -> Option<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let replaced: Vec<&str> = words.iter().map(|own| if *own == word { instead } else { own }).collect();
    (replaced != words).then(|| replaced.join(" "))
}

/// A name that can be used here.
pub(super) fn usable(name: &str) -> String {
    as_name(name, '_')
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{}: is not UTF-8", path.display()))?;
    // Some editors of Windows begin a file with a mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
