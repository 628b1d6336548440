//! The one place where time is read.

use gaggled_core::base::time::{Instant, WallTime};

/// A monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// An instant of tokio, and the reading of this clock at that instant.
    origin: (tokio::time::Instant, Instant),
    wall: Wall,
}

#[derive(Clone, Copy, Debug)]
enum Wall {
    /// The time of day.
    Real,
    /// The monotonic time again, so that a run in virtual time is the same every time.
    Virtual,
}

/// The real time, for timeouts on the kernel or a disk: these pass in real time even where programs run in virtual
/// time.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn real_now() -> std::time::Instant {
    std::time::Instant::now()
}

impl Clock {
    /// The clock of this machine, which is the same for every process since the machine was booted.
    pub fn real() -> Self {
        let run = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let micros = run.map_or(0, |run| run.tv_sec().saturating_mul(1_000_000).saturating_add(run.tv_nsec() / 1000));
        let run = Instant::from_micros(u64::try_from(micros).unwrap_or(0));
        Self { origin: (tokio::time::Instant::now(), run), wall: Wall::Real }
    }

    /// A clock that begins now, and whose wall time is the time since its beginning.
    pub fn simulated() -> Self {
        Self { origin: (tokio::time::Instant::now(), Instant::default()), wall: Wall::Virtual }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        let (origin, run) = self.origin;
        let since = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(run.as_micros().saturating_add(since))
    }

    /// The time of day for people.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn wall(&self) -> WallTime {
        let micros = match self.wall {
            Wall::Virtual => u128::from(self.now().as_micros()),
            Wall::Real => {
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros())
            }
        };
        WallTime(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}
