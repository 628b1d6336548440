//! The one place where time is read.

use gaggled_core::time::{Instant, WallTime};

/// A clock that counts from the moment at which it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: tokio::time::Instant,
    wall: Wall,
}

#[derive(Clone, Copy, Debug)]
enum Wall {
    /// The time of day.
    Real,
    /// The monotonic time again, so that a run in virtual time is the same every time.
    Virtual,
}

impl Clock {
    /// The clock of this machine, beginning now.
    pub fn real() -> Self {
        Self { origin: tokio::time::Instant::now(), wall: Wall::Real }
    }

    /// A clock whose wall time is the time since its beginning.
    pub fn simulated() -> Self {
        Self { wall: Wall::Virtual, ..Self::real() }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        let since = self.origin.elapsed().as_micros();
        Instant::from_micros(u64::try_from(since).unwrap_or(u64::MAX))
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
