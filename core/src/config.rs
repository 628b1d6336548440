//! The configuration file: RON in, a checked [`Config`] out, or everything that is wrong with it.
//!
//! A file is accepted or refused as a whole. Of syntax errors only the first is reported, of semantic errors all, each
//! with its place in the file and a remedy.

mod check;
mod cluster;
pub mod log_policy;
mod model;
pub mod node_sets;
mod ordered_map;
mod placement;
mod projection;
mod published;
pub mod sandbox;
mod settings;
mod spans;

use std::ops::Range;

use ron::{error::SpannedError, extensions::Extensions, options::Options};

pub use self::{
    check::{LOGGER, SMTPGATE, own_externals},
    cluster::{CLUSTERGATE, ClusterConfig, ConfigFrom, KEEPER},
    model::{Config, DependsConfig, GroupConfig, NodesPlace, ProgramConfig},
    ordered_map::OrderedMap,
    placement::{HostOverride, Placement},
    settings::{AccessConfig, JournalConfig, Settings, SmtpgateConfig, Tls},
    spans::SpanIndex,
};

/// Whether a file with this finding may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It may not.
    Error,
    /// It may, but a part of it does not have the effect that one would expect.
    Warning,
}

/// An error or a warning about a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the file may be used.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where, as bytes of the text; `None` for something that is missing altogether.
    pub span: Option<Range<usize>>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error: the file cannot be used.
    pub fn error(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), span: None, help: None }
    }

    /// A warning: the file can be used.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// The same, with its place.
    #[must_use]
    pub fn at(self, span: Option<Range<usize>>) -> Self {
        Self { span, ..self }
    }

    /// The same, with the remedy.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// A configuration that can be used, with its warnings.
#[derive(Debug)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// The places of its keys in the text.
    pub locator: SpanIndex,
    /// The warnings about it.
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// The largest file that is read, in bytes.
    pub const MAX_BYTES: usize = 64 << 20;

    /// Reads and checks the text of a file.
    ///
    /// ```
    /// use gaggled_core::config::Config;
    ///
    /// let text = r#"(programs: {"db": (command: "postgres"), "web": (command: "web", depends: {"db": ()})})"#;
    /// let graph = Config::parse(text).expect("it is correct").config.graph();
    /// assert_eq!((graph.programs.len(), graph.dependencies.len()), (2, 1));
    ///
    /// let wrong = Config::parse(r#"(programs: {"web": (command: "web", depends: {"db": ()})})"#).unwrap_err();
    /// assert!(wrong[0].message.contains("\"db\""));
    /// ```
    ///
    /// # Errors
    ///
    /// All errors of the file, each with its place and a remedy.
    pub fn parse(text: &str) -> Result<Parsed, Vec<Diagnostic>> {
        let config: Self = dialect().from_str(text).map_err(|error| vec![spelling(text, &error)])?;
        let locator = SpanIndex::new(text);
        let (errors, warnings): (Vec<_>, Vec<_>) =
            check::check(&config, &locator).into_iter().partition(|found| found.severity == Severity::Error);
        if errors.is_empty() { Ok(Parsed { config, locator, warnings }) } else { Err(errors) }
    }

    /// All errors of a configuration that was derived from a file with these places, as a projection is.
    pub fn errors(&self, locator: &SpanIndex) -> Vec<Diagnostic> {
        let found = check::check(self, locator).into_iter();
        found.filter(|found| found.severity == Severity::Error).collect()
    }

    /// Writes the configuration as a file that [`Config::parse`] reads.
    pub fn print(&self) -> Result<String, ron::Error> {
        let pretty = ron::ser::PrettyConfig::new().indentor("    ").struct_names(false);
        dialect().to_string_pretty(self, pretty)
    }
}

fn dialect() -> Options {
    Options::default().with_default_extension(Extensions::IMPLICIT_SOME)
}

fn spelling(text: &str, error: &SpannedError) -> Diagnostic {
    if text.trim().is_empty() {
        return Diagnostic::error("the file is empty")
            .help("write for instance (programs: {\"web\": (command: \"web\")})");
    }
    let offset = |line: usize, col: usize| {
        let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let row = text.get(start..).unwrap_or_default();
        start + row.chars().take(col.saturating_sub(1)).map(char::len_utf8).sum::<usize>()
    };
    let start = offset(error.span.start.line, error.span.start.col).min(text.len());
    let end = offset(error.span.end.line, error.span.end.col).clamp(start, text.len());
    let whose = SpanIndex::new(text).around(start).map_or_else(String::new, |key| format!("{key}: "));
    let found = Diagnostic::error(format!("{whose}{}", error.code)).at(Some(start..end));
    let early = error.code == ron::Error::Eof || text.get(start..).is_some_and(|rest| rest.trim().is_empty());
    if early {
        return found.help("the text ends too early: a bracket or a quote that was opened is not closed");
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "for most mistakes the message of the parser is enough")]
    match &error.code {
        ron::Error::NoSuchStructField { expected, found: wrong, .. } => {
            let meant = check::nearest_name(wrong, expected.iter().copied());
            found.help(meant.unwrap_or_else(|| "remove the field, or correct its name".to_owned()))
        }
        ron::Error::NoSuchEnumVariant { expected, found: wrong, .. } => {
            let meant = check::nearest_name(wrong, expected.iter().copied());
            found.help(meant.unwrap_or_else(|| format!("write one of {}", expected.join(", "))))
        }
        ron::Error::ExpectedOptionEnd | ron::Error::ExpectedOption => {
            found.help("write the value itself, without Some(..)")
        }
        ron::Error::MissingStructField { .. } => found.help("add the field"),
        ron::Error::ExpectedString => found.help("write a text in quotes, such as \"text\""),
        ron::Error::ExpectedBoolean => found.help("write true or false"),
        ron::Error::ExpectedInteger | ron::Error::IntegerOutOfBounds => {
            found.help("write a whole number that is not too large")
        }
        ron::Error::ExpectedArray => found.help("write a list in square brackets, such as [\"one\", \"two\"]"),
        ron::Error::ExpectedMap => found.help("write names and values in braces, such as {\"name\": value}"),
        ron::Error::ExpectedComma => found.help("put a comma between this and what is before it"),
        ron::Error::ExpectedIdentifier => found.help("write one of the values that the README lists, without quotes"),
        ron::Error::ExpectedStructLike | ron::Error::ExpectedNamedStructLike(_) => {
            found.help("write its fields in round brackets, such as (field: value)")
        }
        _ => found,
    }
}

#[cfg(test)]
mod tests;
