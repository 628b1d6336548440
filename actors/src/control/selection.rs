//! Which programs are meant by names and patterns.

use gaggled_core::{
    ids::ProgramId,
    wire::{ErrorCode, ReplyError},
};
use globset::Glob;

use super::ControlActor;

impl ControlActor {
    /// The programs that are meant, in the order of the configuration; all for none.
    ///
    /// Each name and each pattern must mean at least one.
    pub(super) fn select(&self, wanted: &[String]) -> Result<Vec<ProgramId>, ReplyError> {
        if wanted.is_empty() {
            return Ok(self.state.graph.programs.ids().collect());
        }
        let mut chosen = std::collections::BTreeSet::new();
        for word in wanted {
            let before = chosen.len();
            match self.names.get(word.as_str()) {
                Some(id) => {
                    chosen.insert(*id);
                }
                None if word.contains(['*', '?', '[', '{']) => chosen.extend(self.matching(word)?),
                None => return Err(self.unknown(word)),
            }
            if chosen.len() == before && !self.names.contains_key(word.as_str()) && self.matching(word)?.is_empty() {
                let message = format!("no program matches {word:?}");
                return Err(ReplyError { code: ErrorCode::NoSuchProgram, message });
            }
        }
        Ok(chosen.into_iter().collect())
    }

    fn matching(&self, pattern: &str) -> Result<Vec<ProgramId>, ReplyError> {
        let glob = Glob::new(pattern).map_err(|why| ReplyError {
            code: ErrorCode::BadRequest,
            message: format!("pattern {pattern:?} is not understood: {}", why.kind()),
        })?;
        let matcher = glob.compile_matcher();
        let all = self.state.graph.programs.iter();
        Ok(all.filter(|(_, policy)| matcher.is_match(&*policy.name)).map(|(id, _)| id).collect())
    }

    fn unknown(&self, name: &str) -> ReplyError {
        let nearest = self.names.keys().map(|known| (strsim::levenshtein(name, known), known)).min();
        let hint = match nearest {
            Some((distance, known)) if distance <= 1 + name.len() / 3 => format!("; did you mean \"{known}\"?"),
            _ => String::new(),
        };
        ReplyError { code: ErrorCode::NoSuchProgram, message: format!("there is no program {name:?}{hint}") }
    }
}
