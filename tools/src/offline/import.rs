//! Configurations of other programs, printed as one of gaggled.

use std::{path::Path, process::ExitCode};

use clap::ValueEnum;

use crate::common::output;

mod cltab;
mod clusterit;
mod diprocd;
mod imported;
mod info;
mod ini;
mod original;
mod plone;
mod procfile;
mod supervisord;

pub use self::{
    clusterit::describe_errors as cluster_in_words, imported::Imported, original::import as import_original,
};

/// The program that a file is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// The original gaggled (2011), Boost INFO
    Gaggled,
    /// `Cluster::Init`, cltab
    Cltab,
    /// diprocd, the JSON of a worker or of a master
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
