//! Deliberate defects of the rules between nodes. The invariants must find each of them.

use std::sync::Arc;

use gaggled_core::cluster::{PublishedState, Sight, claims::ClaimsInStore};

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMutant {
    /// A gateway whose watch was cancelled watches on, without reading what it has missed.
    ResumeWatch,
    /// Ends that lie between two reports are forgotten: a program that is up both times counts as the same run.
    ForgetMissedFalls,
    /// A node that has opened another session counts as lost at once.
    LoseOnReregistration,
    /// A node whose session has ended counts as if it had one.
    IgnoreEndOfSession,
    /// A session that is shown before the states that were written in it counts as one without them.
    TakeSessionForWithdrawal,
    /// A node that is cut off does not notice it.
    IgnoreSilence,
    /// The states of a session are not written again in the next one.
    KeepOldSession,
    /// A group is taken over as soon as the session of its holder is gone.
    TakeAtOnce,
    /// The time is forgotten that a group may take to stop.
    ForgetStopTime,
    /// A permit never ends.
    NeverEndPermit,
    /// A claim is overwritten although it has changed.
    OverwriteClaim,
    /// A claim is released before its group has stopped.
    ReleaseWhileStopping,
    /// The claims that a node holds are not written with its next session.
    ForgetClaimsInSession,
    /// An order to move is carried out again whenever the group is elsewhere.
    RepeatMove,
    /// It is not seen that a node is drained.
    IgnoreDrain,
    /// A gateway looks for the programs of a group on the first node that has held it.
    FollowFirstHolder,
    /// Orders to go to a level are not seen.
    IgnoreLevelOrder,
    /// Nothing kills what a daemon that stands still does not stop.
    NoKeeper,
}

impl ClusterMutant {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::ResumeWatch,
        Self::ForgetMissedFalls,
        Self::LoseOnReregistration,
        Self::IgnoreEndOfSession,
        Self::TakeSessionForWithdrawal,
        Self::IgnoreSilence,
        Self::KeepOldSession,
        Self::TakeAtOnce,
        Self::ForgetStopTime,
        Self::NeverEndPermit,
        Self::OverwriteClaim,
        Self::ReleaseWhileStopping,
        Self::ForgetClaimsInSession,
        Self::RepeatMove,
        Self::IgnoreDrain,
        Self::FollowFirstHolder,
        Self::IgnoreLevelOrder,
        Self::NoKeeper,
    ];

    /// What a gateway has read of the claims, with the defect.
    pub fn reads(self, store: &mut ClaimsInStore) {
        match self {
            Self::RepeatMove => store.orders.moves.values_mut().for_each(|(ordered_at, _)| *ordered_at = u64::MAX),
            Self::IgnoreLevelOrder => store.orders.levels.clear(),
            Self::IgnoreDrain => store.orders.drained.clear(),
            _ => {}
        }
    }

    /// What is reported in place of a sight, after the last one that was.
    pub fn reports(self, sight: Sight, last: Option<&Sight>) -> Sight {
        match (self, &sight, last) {
            (Self::ForgetMissedFalls, Sight::Seen(Some(state)), Some(Sight::Seen(Some(last))))
                if state.phase.is_up() && last.phase.is_up() =>
            {
                let source = gaggled_core::cluster::RemoteSource { falls: last.source.falls, ..state.source.clone() };
                let same = PublishedState { source, instance: last.instance, ..(**state).clone() };
                Sight::Seen(Some(Arc::new(same)))
            }
            _ => sight,
        }
    }
}
