//! The questions that change nothing, and their answers.

use std::sync::atomic::Ordering;

use gaggled_core::{
    control::Operator,
    protocol::{Dump, InfoBody, Reply, ReplyError, View},
    state::Phase,
};

use super::ControlActor;

/// The most programs on one page of a dump.
const DUMP_PAGE: usize = 10_000;

impl ControlActor {
    pub(super) fn dump(
        &self,
        id: &str,
        programs: &[String],
        from: usize,
        limit: Option<usize>,
    ) -> Result<Reply, ReplyError> {
        let limit = limit.unwrap_or(DUMP_PAGE).min(DUMP_PAGE);
        let view = View::at(&self.state, self.clock.now());
        let dump = selected(&self.operator(), view.dump(self.clock.wall(), from, limit), view, programs)?;
        Ok(Reply::done(id, &dump))
    }

    pub(super) fn status(&self, id: &str) -> Reply {
        let up = self.state.running.iter().filter(|id| self.state.programs[**id].phase == Phase::Up).count();
        let status = InfoBody {
            version: self.info.version.to_owned(),
            pid: self.info.pid,
            binary: self.info.binary.clone(),
            epoch: self.state.epoch,
            seq: self.state.seq,
            uptime_ms: self.clock.now().since(self.began).0,
            programs: self.state.graph.programs.values().filter(|policy| policy.is_here()).count(),
            up,
            shutting_down: self.state.shutdown.is_some(),
            groups: View::at(&self.state, self.clock.now()).groups(),
            eventurl: self.info.eventurl.clone(),
            controlurl: self.info.controlurl.clone(),
            state_directory: self.info.state.clone(),
            journal: self.info.journal.clone(),
            published: self.info.published.as_ref().map(|revision| revision.load(Ordering::Relaxed)),
        };
        Reply::done(id, &status)
    }
}

/// A dump of what these words select, or of everything.
pub(super) fn selected<'a>(
    operator: &Operator<'_>,
    mut dump: Dump<'a>,
    view: View<'a>,
    words: &[String],
) -> Result<Dump<'a>, ReplyError> {
    if !words.is_empty() {
        let targets = operator.choose(words)?;
        let programs = operator.with_members(&targets);
        dump.groups = targets.groups.iter().map(|id| view.group(*id)).collect();
        dump.programs = programs.iter().map(|id| view.program(*id)).collect();
        dump.dependencies = programs.iter().flat_map(|id| view.dependencies(*id)).collect();
        dump.next = None;
    }
    Ok(dump)
}
