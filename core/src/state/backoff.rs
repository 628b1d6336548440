//! How the starts of a program that keeps ending are spaced.

use crate::{
    base::{
        ids::{EpochId, InstanceId},
        time::{Instant, Millis},
    },
    graph::{Backoff, Policy},
};

impl Backoff {
    /// The space between starts: `initial`, doubled for each attempt after the first, at most `max`; varied by up to a
    /// tenth.
    pub(super) fn delay(self, attempts: u32, jitter: i64) -> Millis {
        let doublings = attempts.saturating_sub(1).min(40);
        let plain = self.initial.0.saturating_mul(1 << doublings).min(self.max.0);
        let stretch = i64::try_from(plain / 10).unwrap_or(i64::MAX).saturating_mul(jitter) / 1000;
        Millis(plain.saturating_add_signed(stretch))
    }

    pub(super) fn next_start(self, began: Instant, now: Instant, attempts: u32, jitter: i64) -> Option<Instant> {
        let spaced = match attempts {
            0 | 1 => began,
            more => began + self.delay(more - 1, jitter),
        };
        (spaced > now).then_some(spaced)
    }
}

/// A number from -1000 to 1000 that depends only on the epoch, the program and its run.
pub(super) fn jitter(epoch: EpochId, policy: &Policy, instance: InstanceId) -> i64 {
    let mut hash = epoch.0 ^ instance.0.rotate_left(32);
    for byte in policy.name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    i64::try_from((hash ^ (hash >> 31)) % 2001).unwrap_or(0) - 1000
}
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        base::ids::Seq,
        event::ProgramEvent,
        process::{ExitStatus, StartTime},
        state::ProgramState,
    };

    fn starts_in_first_minute(backoff: Backoff, lifetime: Millis) -> (u32, Millis) {
        let policy = Policy { backoff, ..Policy::new("a") };
        let mut program = ProgramState::new(&policy, 0);
        let (mut now, mut starts, mut space) = (Instant::default(), 0, Millis(0));
        for run in 1..200 {
            let began = now;
            let instance = InstanceId(run);
            let mut apply = |at, event| program.apply(&policy, EpochId(7), Seq(run), at, &event);
            apply(now, ProgramEvent::Starting { instance });
            apply(now, ProgramEvent::Started { instance, pid: 1, start_time: StartTime(1) });
            now = now + lifetime;
            apply(now, ProgramEvent::Exited { instance, status: ExitStatus::Code(1), orphans: 0, remains: false });
            starts += u32::from(began < Instant::default() + Millis(60_000));
            now = program.not_before.unwrap_or(now);
            space = began.until(now);
        }
        (starts, space)
    }

    #[test]
    fn a_crash_loop_is_bounded_and_a_settled_program_is_not_held_back() {
        let (starts, space) = starts_in_first_minute(Backoff::default(), Millis(0));
        assert!(starts <= 20, "{starts} starts in the first minute");
        assert!((54_000..=66_000).contains(&space.0), "space in the long run: {space}");

        let (_, space) = starts_in_first_minute(Backoff::default(), Millis(60_000));
        assert_eq!(space, Millis(60_000), "an instance that stayed up is followed at once");

        let free = Backoff { max: Millis(0), ..Backoff::default() };
        assert_eq!(starts_in_first_minute(free, Millis(1)).1, Millis(1));
    }

    #[test]
    fn jitter_stays_within_a_tenth_and_differs_between_programs() {
        let backoff = Backoff::default();
        let seen: BTreeSet<u64> =
            (1..100).map(|run| backoff.delay(20, jitter(EpochId(1), &Policy::new("web"), InstanceId(run))).0).collect();
        assert!(seen.len() > 50);
        assert!(seen.iter().all(|space| (54_000..=66_000).contains(space)));
    }
}
