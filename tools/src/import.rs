//! Configurations of other programs, printed as one of gaggled.

use std::{path::Path, process::ExitCode};

use clap::ValueEnum;
use gaggled_core::config::Config;

use crate::output;

mod info;
mod original;

pub use self::original::import as import_original;

/// The program that a file is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// The original gaggled (2011), Boost INFO
    Gaggled,
}

/// What came of reading a foreign file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The configuration.
    pub config: Config,
    /// What could not be kept, or means something else here, each with its place.
    pub notes: Vec<String>,
}

/// Prints a foreign file as a configuration; what could not be kept goes to standard error, and into comments.
pub fn run(format: Format, file: &Path) -> ExitCode {
    let imported = match format {
        Format::Gaggled => import_original(file),
    };
    let imported = match imported {
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
