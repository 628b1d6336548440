//! Which published configuration a node takes, and what it says about it.
//!
//! A node takes the newer one of the configuration for all nodes and that which it is to try. A revision is taken at most once,
//! and never one that is older than what the node has: that is a store which was restored from a backup.

use super::store::{Applied, Pointer};

/// What became of a configuration that was given to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force: it is the text that was.
    Applied,
    /// It is in force in the next daemon, which is about to follow.
    HandedOver,
    /// It was refused, for this reason.
    Refused(String),
    /// The daemon or the store did not answer: it is tried again when they do.
    Unanswered,
}

/// What a node knows about published configurations.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// Whether the store was read since the connection to it was made.
    is_read: bool,
    current: Option<Pointer>,
    canary: Option<Pointer>,
    /// The revision that the daemon has; `None` if it takes none, or is not known.
    applied: Option<u64>,
    refused: Option<(u64, String)>,
    /// The revision that is being taken.
    under_way: Option<u64>,
    /// Whether there was no answer about it.
    unanswered: bool,
    /// What the store has about this node.
    written: Option<Applied>,
}

impl Rollout {
    /// The daemon has this revision; `None` if it does not take any.
    pub fn daemon_has(&mut self, revision: Option<u64>) {
        self.applied = revision;
        // It may be another daemon, which has heard of nothing.
        self.under_way = None;
        self.refused = None;
    }

    /// The revision for all nodes, as it is in the store.
    pub fn current(&mut self, pointer: Option<Pointer>) {
        self.current = pointer;
    }

    /// The revision that this node is to try.
    pub fn canary(&mut self, pointer: Option<Pointer>) {
        self.canary = pointer;
    }

    /// What the store has about this node; everything has been read by now.
    pub fn read(&mut self, written: Option<Applied>) {
        self.is_read = true;
        self.written = written;
    }

    /// The connection to the store is lost.
    pub fn disconnect(&mut self) {
        let Self { applied, refused, .. } = std::mem::take(self);
        *self = Self { applied, refused, ..Self::default() };
    }

    /// The newest revision that is meant for this node.
    fn wanted(&self) -> Option<&Pointer> {
        self.current.iter().chain(&self.canary).max_by_key(|pointer| pointer.revision)
    }

    /// The revision that is to be taken now, once.
    pub fn take_next(&mut self) -> Option<Pointer> {
        let has = self.applied.filter(|_| self.is_read && self.under_way.is_none())?;
        let is_refused =
            |pointer: &&Pointer| self.refused.as_ref().is_some_and(|(refused, _)| *refused == pointer.revision);
        let next = self.wanted().filter(|pointer| pointer.revision > has && !is_refused(pointer)).cloned()?;
        self.under_way = Some(next.revision);
        Some(next)
    }

    /// What became of a revision that was taken.
    pub fn finished(&mut self, revision: u64, outcome: Outcome) {
        if self.under_way != Some(revision) {
            return;
        }
        match outcome {
            Outcome::Applied => self.applied = Some(revision),
            Outcome::Refused(why) => self.refused = Some((revision, why)),
            Outcome::HandedOver => return,
            Outcome::Unanswered => {
                self.unanswered = true;
                return;
            }
        }
        self.under_way = None;
    }

    /// Time has passed: what was not answered may be tried again.
    pub fn try_again(&mut self) {
        if std::mem::take(&mut self.unanswered) {
            self.under_way = None;
        }
    }

    /// Why the revision in the store is not taken although nothing is wrong with it.
    pub fn is_behind(&self) -> Option<String> {
        let (has, wanted) = (self.applied?, self.wanted()?.revision);
        (self.is_read && wanted < has).then(|| {
            format!(
                "this node has revision {has}, and etcd only {wanted}: it was restored from a backup; publish again"
            )
        })
    }

    /// What is to be written about this node, if the store has something else.
    pub fn take_report(&mut self) -> Option<Applied> {
        let has = self.applied.filter(|_| self.is_read)?;
        let behind = self.is_behind();
        let refused = self.refused.as_ref().map(|(revision, why)| (*revision, why.as_str()));
        let of_store = || Some((self.wanted()?.revision, behind.as_deref()?));
        let report = Applied::new(has, refused.filter(|(revision, _)| *revision > has).or_else(of_store));
        if self.written.as_ref() == Some(&report) {
            return None;
        }
        self.written = Some(report.clone());
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(revision: u64) -> Pointer {
        Pointer::new(revision, String::new(), 1, 1)
    }

    fn known(current: u64, has: u64) -> Rollout {
        let mut rollout = Rollout::default();
        rollout.current(Some(pointer(current)));
        rollout.daemon_has(Some(has));
        assert_eq!(rollout.take_next(), None, "nothing is taken before everything is read");
        rollout.read(None);
        rollout
    }

    #[test]
    fn a_revision_is_taken_once_and_the_outcome_is_told() {
        let mut rollout = known(8, 7);
        assert_eq!(rollout.take_report(), Some(Applied::new(7, None)));
        assert_eq!(rollout.take_next(), Some(pointer(8)));
        assert_eq!(rollout.take_next(), None, "it is under way");
        rollout.finished(8, Outcome::Refused("no user www".to_owned()));
        assert_eq!(rollout.take_report(), Some(Applied::new(7, Some((8, "no user www")))));
        assert_eq!((rollout.take_next(), rollout.take_report()), (None, None), "it is not tried again by itself");
        rollout.daemon_has(Some(7));
        assert_eq!(rollout.take_next(), Some(pointer(8)), "another daemon may take it");
        rollout.finished(8, Outcome::Applied);
        assert_eq!(rollout.take_report(), Some(Applied::new(8, None)));
        assert_eq!(rollout.take_next(), None);
    }

    #[test]
    fn the_newer_one_of_all_and_the_canary_is_wanted() {
        let mut rollout = known(7, 7);
        rollout.canary(Some(pointer(8)));
        assert_eq!(rollout.take_next(), Some(pointer(8)));
        rollout.finished(8, Outcome::HandedOver);
        assert_eq!((rollout.take_next(), rollout.take_report()), (None, Some(Applied::new(7, None))));
        rollout.daemon_has(Some(8));
        assert_eq!(rollout.take_report(), Some(Applied::new(8, None)), "when the next daemon runs");
        rollout.canary(Some(pointer(9)));
        assert_eq!(rollout.take_next(), Some(pointer(9)), "how a publisher takes it back");
        rollout.finished(9, Outcome::Applied);
        rollout.current(Some(pointer(10)));
        assert_eq!(rollout.take_next(), Some(pointer(10)));
    }

    #[test]
    fn an_older_store_is_not_followed_and_said() {
        let mut rollout = known(5, 8);
        assert_eq!(rollout.take_next(), None);
        let told = rollout.take_report().and_then(|report| report.refused).expect("it is said");
        assert!(told.revision == 5 && told.why.contains("restored"), "{told:?}");
        rollout.current(Some(pointer(9)));
        assert_eq!(rollout.take_next(), Some(pointer(9)));
    }

    #[test]
    fn what_is_not_answered_is_tried_again() {
        let mut rollout = known(8, 7);
        assert!(rollout.take_next().is_some());
        rollout.finished(8, Outcome::Unanswered);
        assert_eq!(rollout.take_next(), None);
        rollout.try_again();
        assert_eq!(rollout.take_next(), Some(pointer(8)));
        rollout.disconnect();
        rollout.current(Some(pointer(8)));
        rollout.read(None);
        assert_eq!(rollout.take_next(), Some(pointer(8)));
    }
}
