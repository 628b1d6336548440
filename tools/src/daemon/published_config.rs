//! The last published configuration that this node has taken, in the state directory: the node starts with it when the cluster
//! cannot be reached.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::common::diagnostics;

/// The name of the file of one that is not in force yet.
const NEW: &str = "published.new";

/// A published configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishedConfig {
    /// Its revision.
    pub revision: u64,
    /// Its text.
    pub text: String,
}

impl PublishedConfig {
    /// The file of a revision.
    pub(super) fn path(state: &Path, revision: u64) -> PathBuf {
        state.join(format!("published-{revision}.ron"))
    }

    /// The last one in a state directory; `None` if nothing has been published yet.
    ///
    /// # Errors
    ///
    /// It cannot be read; in words.
    pub(super) fn last(state: &Path) -> Result<Option<Self>, String> {
        let Some(revision) = revisions(state).into_iter().max() else { return Ok(None) };
        let path = Self::path(state, revision);
        let text = diagnostics::read(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Some(Self { revision, text }))
    }

    /// Writes it beside the one that is in force.
    ///
    /// # Errors
    ///
    /// The disk does not take it.
    pub(super) fn write(&self, state: &Path) -> io::Result<()> {
        let mut file = File::create(state.join(NEW))?;
        file.write_all(self.text.as_bytes())?;
        file.sync_all()
    }

    /// Puts what was written in the place of earlier ones.
    ///
    /// # Errors
    ///
    /// The disk does not take it.
    pub(super) fn keep(&self, state: &Path) -> io::Result<()> {
        fs::rename(state.join(NEW), Self::path(state, self.revision))?;
        File::open(state)?.sync_all()?;
        for earlier in revisions(state).into_iter().filter(|revision| *revision < self.revision) {
            // The newest one counts, so that one which stays does no harm.
            let _ = fs::remove_file(Self::path(state, earlier));
        }
        Ok(())
    }
}

/// The revisions of which a state directory has a file.
fn revisions(state: &Path) -> Vec<u64> {
    let entries = fs::read_dir(state).into_iter().flatten().flatten();
    let revision = |name: &str| name.strip_prefix("published-")?.strip_suffix(".ron")?.parse().ok();
    entries.filter_map(|entry| revision(entry.file_name().to_str()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_configuration_takes_the_place_of_earlier_ones() {
        let state = tempfile::tempdir().expect("a directory");
        assert_eq!(PublishedConfig::last(state.path()), Ok(None));
        for revision in [9, 10] {
            let kept = PublishedConfig { revision, text: format!("(programs: {{}}) // {revision}") };
            kept.write(state.path()).and_then(|()| kept.keep(state.path())).expect("there is space");
            assert_eq!(PublishedConfig::last(state.path()), Ok(Some(kept)));
        }
        assert_eq!(fs::read_dir(state.path()).expect("a directory").count(), 1);
        fs::write(PublishedConfig::path(state.path(), 11), [0xff]).expect("a file");
        assert!(PublishedConfig::last(state.path()).expect_err("it is no text").contains("published-11.ron"));
    }
}
