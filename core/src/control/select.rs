//! Selection of programs and groups by names and patterns.

use std::collections::BTreeSet;

use globset::Glob;

use super::{operator::Operator, target::Targets};
use crate::{
    base::ids::{GroupId, ProgramId},
    config::{CLUSTERGATE, KEEPER, LOGGER},
    journal::Refusal,
    protocol::{ErrorCode, ReplyError},
    state::Tenancy,
};

/// The longest word that is accepted: no name is longer, and a pattern costs the more the longer it is.
const WORD_MAX: usize = 128;
/// How many patterns one request may have.
const PATTERNS_MAX: usize = 64;

impl Operator<'_> {
    /// The selected programs and the members of the selected groups, in the order of the configuration.
    ///
    /// # Errors
    ///
    /// Those of [`Operator::choose`].
    pub fn select(&self, wanted: &[String]) -> Result<Vec<ProgramId>, ReplyError> {
        Ok(self.with_members(&self.choose(wanted)?))
    }

    /// The programs of a selection and the members of its groups, in the order of the configuration.
    pub fn with_members(&self, chosen: &Targets) -> Vec<ProgramId> {
        let members = chosen.groups.iter().flat_map(|group| &self.state.graph.groups[*group].members);
        let all: BTreeSet<ProgramId> = chosen.programs.iter().chain(members).copied().collect();
        all.into_iter().collect()
    }

    /// The programs and groups that these words select. Without words: all groups, and all configured programs that are
    /// in no group, without the logger.
    ///
    /// # Errors
    ///
    /// A word that selects nothing, a pattern that is not valid, or too many patterns.
    pub fn choose(&self, wanted: &[String]) -> Result<Targets, ReplyError> {
        let graph = &self.state.graph;
        if wanted.is_empty() {
            // The logger stops when no program writes to it any more, and the cluster gateway when no program is exported any
            // more, not because every program is to stop.
            let serves = |id: ProgramId| [LOGGER, CLUSTERGATE, KEEPER].contains(&&*graph.programs[id].name);
            let free = |id: &ProgramId| {
                !self.is_retired(*id) && self.is_here(*id) && graph.programs[*id].group.is_none() && !serves(*id)
            };
            return Ok(Targets {
                programs: graph.programs.ids().filter(free).collect(),
                groups: graph.groups.ids().collect(),
            });
        }
        let mut chosen = Targets::default();
        let mut patterns = 0;
        for word in wanted {
            if let Some(id) = self.names.get(word.as_str()) {
                chosen.programs.insert(*id);
            } else if let Some(id) = graph.group(word) {
                chosen.groups.insert(id);
            } else if word.len() <= WORD_MAX && word.contains(['*', '?', '[', '{']) {
                patterns += 1;
                if patterns > PATTERNS_MAX {
                    let message = format!("more than {PATTERNS_MAX} patterns at once");
                    return Err(ReplyError { code: ErrorCode::BadRequest, message });
                }
                chosen.programs.extend(self.matching(word)?);
            } else {
                return Err(self.unknown(word));
            }
        }
        Ok(chosen)
    }

    /// The programs of this node and the groups that these words select, as [`Operator::choose`] does. A pattern leaves out
    /// programs of other nodes.
    ///
    /// # Errors
    ///
    /// Those of [`Operator::choose`], and a program of another node.
    pub fn choose_here(&self, wanted: &[String]) -> Result<Targets, ReplyError> {
        let refuse = |name: &str, id: ProgramId| {
            let external = self.state.graph.programs[id].external.as_ref()?;
            let (place, program) = (external.place(), &external.program);
            let message = format!("{name} runs {place}: give the command there, for {program}");
            Some(ReplyError { code: ErrorCode::RunsElsewhere, message })
        };
        let mut elsewhere = wanted.iter().filter_map(|word| refuse(word, *self.names.get(word.as_str())?));
        if let Some(error) = elsewhere.next() {
            return Err(error);
        }
        let mut chosen = self.choose(wanted)?;
        let graph = &self.state.graph;
        let group_of = |word: &String| match self.names.get(word.as_str()) {
            Some(id) => graph.programs[*id].group,
            None => graph.group(word),
        };
        wanted.iter().filter_map(group_of).try_for_each(|group| self.refuse_not_held(group))?;
        let is_held = |group: &GroupId| self.state.groups[*group].may_run();
        chosen.groups.retain(is_held);
        chosen.programs.retain(|id| self.is_here(*id) && graph.programs[*id].group.as_ref().is_none_or(is_held));
        if !wanted.is_empty() && chosen == Targets::default() {
            let message = "only programs of other nodes match: give the command there".to_owned();
            return Err(ReplyError { code: ErrorCode::RunsElsewhere, message });
        }
        Ok(chosen)
    }

    /// The group of this name.
    ///
    /// # Errors
    ///
    /// There is no such group.
    pub fn find_group(&self, name: &str) -> Result<GroupId, ReplyError> {
        let graph = &self.state.graph;
        graph.group(name).ok_or_else(|| {
            let known = graph.groups.values().map(|group| &*group.name);
            let message = format!("there is no group {}{}", shown(name), nearest(name, known));
            ReplyError { code: ErrorCode::NoSuchGroup, message }
        })
    }

    /// Refuses a command for a group that another node runs.
    pub(super) fn refuse_not_held(&self, id: GroupId) -> Result<(), ReplyError> {
        let group = self.state.graph.groups[id].name.clone();
        let holder = match &self.state.groups[id].tenancy {
            None | Some(Tenancy::Held { .. }) => return Ok(()),
            Some(Tenancy::Away { holder, .. }) => holder.clone(),
            Some(Tenancy::Claiming { .. } | Tenancy::Leaving { .. }) => None,
        };
        let message = Refusal::NotHeld { group, holder }.to_string();
        Err(ReplyError { code: ErrorCode::RunsElsewhere, message })
    }

    pub(super) fn is_here(&self, id: ProgramId) -> bool {
        self.state.graph.programs[id].is_here()
    }

    fn is_retired(&self, id: ProgramId) -> bool {
        self.state.graph.programs[id].unconfigured
    }

    fn matching(&self, pattern: &str) -> Result<Vec<ProgramId>, ReplyError> {
        let glob = Glob::new(pattern).map_err(|why| ReplyError {
            code: ErrorCode::BadRequest,
            message: format!("pattern {pattern:?} is not understood: {}", why.kind()),
        })?;
        let matcher = glob.compile_matcher();
        let all = self.state.graph.programs.iter();
        let found: Vec<ProgramId> = all
            .filter(|(_, policy)| !policy.unconfigured && matcher.is_match(&*policy.name))
            .map(|(id, _)| id)
            .collect();
        if found.is_empty() {
            let message = format!("no program matches {pattern:?}");
            return Err(ReplyError { code: ErrorCode::NoSuchProgram, message });
        }
        Ok(found)
    }

    fn unknown(&self, name: &str) -> ReplyError {
        if name.len() > WORD_MAX {
            let message = format!("there is no program with a name of {} bytes", name.len());
            return ReplyError { code: ErrorCode::NoSuchProgram, message };
        }
        let groups = self.state.graph.groups.values().map(|group| &*group.name);
        let hint = nearest(name, self.names.keys().map(|known| &**known).chain(groups));
        ReplyError { code: ErrorCode::NoSuchProgram, message: format!("there is no program {name:?}{hint}") }
    }
}

/// The beginning of a client's word, at most [`WORD_MAX`] characters, in quotes.
fn shown(word: &str) -> String {
    let start: String = word.chars().take(WORD_MAX).collect();
    format!("{start:?}")
}

/// A hint with the known name most similar to a wrong one; empty if none is similar.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let wrong: String = wrong.chars().take(WORD_MAX).collect();
    match known.map(|known| (strsim::levenshtein(&wrong, known), known)).min() {
        Some((distance, known)) if distance <= 1 + wrong.len() / 3 => format!("; did you mean \"{known}\"?"),
        _ => String::new(),
    }
}
