//! Which programs are meant by names and patterns.

use gaggled_core::{
    ids::ProgramId,
    wire::{ErrorCode, ReplyError},
};
use globset::Glob;

use super::ControlActor;

/// Longer words mean nothing: no name is so long, and a pattern costs by its length.
const WORD_MAX: usize = 128;
/// How many patterns may be looked for at once.
const PATTERNS_MAX: usize = 64;

impl ControlActor {
    /// The programs that are meant, in the order of the configuration; all for none.
    ///
    /// Each name and each pattern must mean at least one.
    pub(super) fn select(&self, wanted: &[String]) -> Result<Vec<ProgramId>, ReplyError> {
        if wanted.is_empty() {
            return Ok(self.state.graph.programs.ids().filter(|id| !self.is_retired(*id)).collect());
        }
        let mut chosen = std::collections::BTreeSet::new();
        let mut patterns = 0;
        for word in wanted {
            if let Some(id) = self.names.get(word.as_str()) {
                chosen.insert(*id);
            } else if word.len() <= WORD_MAX && word.contains(['*', '?', '[', '{']) {
                patterns += 1;
                if patterns > PATTERNS_MAX {
                    let message = format!("more than {PATTERNS_MAX} patterns at once");
                    return Err(ReplyError { code: ErrorCode::BadRequest, message });
                }
                chosen.extend(self.matching(word)?);
            } else {
                return Err(self.unknown(word));
            }
        }
        Ok(chosen.into_iter().collect())
    }

    fn is_retired(&self, id: ProgramId) -> bool {
        self.state.graph.programs[id].retired
    }

    fn matching(&self, pattern: &str) -> Result<Vec<ProgramId>, ReplyError> {
        let glob = Glob::new(pattern).map_err(|why| ReplyError {
            code: ErrorCode::BadRequest,
            message: format!("pattern {pattern:?} is not understood: {}", why.kind()),
        })?;
        let matcher = glob.compile_matcher();
        let all = self.state.graph.programs.iter();
        let found: Vec<ProgramId> =
            all.filter(|(_, policy)| !policy.retired && matcher.is_match(&*policy.name)).map(|(id, _)| id).collect();
        if found.is_empty() {
            let message = format!("no program matches {pattern:?}");
            return Err(ReplyError { code: ErrorCode::NoSuchProgram, message });
        }
        Ok(found)
    }

    fn unknown(&self, name: &str) -> ReplyError {
        if name.len() > WORD_MAX {
            let message = format!("a name of {} bytes means no program", name.len());
            return ReplyError { code: ErrorCode::NoSuchProgram, message };
        }
        let nearest = self.names.keys().map(|known| (strsim::levenshtein(name, known), known)).min();
        let hint = match nearest {
            Some((distance, known)) if distance <= 1 + name.len() / 3 => format!("; did you mean \"{known}\"?"),
            _ => String::new(),
        };
        ReplyError { code: ErrorCode::NoSuchProgram, message: format!("there is no program {name:?}{hint}") }
    }
}
