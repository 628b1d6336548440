//! Configurations of other programs, printed as one of gaggled.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs,
    path::Path,
    process::ExitCode,
};

use clap::ValueEnum;
use gaggled_core::config::{Config, ProgramConfig};

use crate::common::output;

mod cltab;
mod clusterit;
mod diprocd;
mod info;
mod ini;
mod original;
mod plone;
mod procfile;
mod supervisord;

pub use self::{clusterit::describe_errors as cluster_in_words, original::import as import_original};

/// The program that a file is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// The original gaggled (2011), Boost INFO
    Gaggled,
    /// `Cluster::Init`, cltab
    Cltab,
    /// diprocd, the JSON of a worker; of a master, with --node
    Diprocd,
    /// plone.recipe.cluster, a buildout configuration
    Plone,
    /// ClusterIt, a cluster file
    Clusterit,
    /// supervisord, its configuration
    Supervisord,
    /// foreman and others, a Procfile
    Procfile,
}

/// The result of importing a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The configuration.
    pub config: Config,
    /// What could not be kept, or means something else here, each with its place.
    pub notes: Vec<String>,
}

impl Imported {
    fn note(&mut self, place: impl Display, text: impl Display) {
        self.notes.push(format!("{place}: {text}"));
    }

    /// Adds a program, under a name that can be used here.
    fn program(&mut self, place: &SourceLocation, name: &str, program: ProgramConfig) -> Result<(), String> {
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
    fn checked(self, path: &Path) -> Result<Self, String> {
        let printed = self.config.print().map_err(|why| why.to_string())?;
        match Config::parse(&printed) {
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
struct SourceLocation {
    file: String,
    line: usize,
}

impl SourceLocation {
    fn new(file: &Path, line: usize) -> Self {
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
fn counterpart(line: &str, word: &str, instead: &str) -> Option<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let replaced: Vec<&str> = words.iter().map(|own| if *own == word { instead } else { own }).collect();
    (replaced != words).then(|| replaced.join(" "))
}

/// A name that can be used here.
fn usable(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' });
    letters.take(64).collect()
}

/// The text of a file.
fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{}: is not UTF-8", path.display()))?;
    // Some editors of Windows begin a file with a mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Reads a foreign file.
///
/// # Errors
/// What is wrong with it, with its place.
pub fn import_file(format: Format, file: &Path, node: Option<&str>) -> Result<Imported, String> {
    match format {
        Format::Gaggled => import_original(file),
        Format::Cltab => cltab::import(file),
        Format::Diprocd => diprocd::import(file, node),
        Format::Plone => plone::import(file),
        Format::Clusterit => clusterit::import(file),
        Format::Supervisord => supervisord::import(file),
        Format::Procfile => procfile::import(file),
    }
}

/// Prints a foreign file as a configuration; what could not be kept goes to standard error, and into comments.
pub fn run(format: Format, file: &Path, node: Option<&str>) -> ExitCode {
    let imported = match import_file(format, file, node) {
        Ok(imported) => imported,
        Err(why) => {
            eprintln!("Error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let printed = match imported.config.print() {
        Ok(printed) => printed,
        Err(why) => {
            eprintln!("Error: {}: cannot be written: {why}", file.display());
            return ExitCode::FAILURE;
        }
    };
    imported.notes.iter().for_each(|note| eprintln!("Note: {note}"));
    let notes: Vec<String> = imported.notes.iter().map(|note| format!("// {note}")).collect();
    let heading = format!("// Imported from {}.", file.display());
    let lines = [vec![heading], notes, vec![printed]].concat();
    output::end(output::line(&lines.join("\n")))
}
