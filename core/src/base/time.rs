//! Monotonic instants, spans, and wall time for people.
//!
//! Time enters the rules only as `now`. Wall time is stamped on envelopes so that people can read them, and is never
//! compared.

use std::{
    fmt,
    ops::{Add, Sub},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A monotonic instant: microseconds on the machine's own clock, which is the same for every run of the daemon within
/// one boot, and means nothing in another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(u64);

impl Instant {
    /// The instant so many microseconds after the beginning of the clock.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the beginning of the clock.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the beginning of the clock.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1000
    }

    /// The span since an earlier instant in whole milliseconds; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0) / 1000)
    }

    /// The span until a later instant, rounded up to whole milliseconds, so that waiting for it is never too short.
    pub const fn until(self, later: Self) -> Millis {
        Millis(later.0.saturating_sub(self.0).div_ceil(1000))
    }
}

impl Add<Millis> for Instant {
    type Output = Self;
    fn add(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0.saturating_mul(1000)))
    }
}

impl Sub<Millis> for Instant {
    type Output = Self;
    fn sub(self, span: Millis) -> Self {
        Self(self.0.saturating_sub(span.0.saturating_mul(1000)))
    }
}

/// A span in milliseconds. In a configuration it is a number of milliseconds, or a text with units: `"500ms"`, `"1m 30s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// The longest span a configuration may name: ten years.
    pub const MAX: Self = Self(10 * 365 * 24 * 3600 * 1000);

    /// Half of the span.
    #[must_use]
    pub const fn half(self) -> Self {
        Self(self.0 / 2)
    }

    /// The same span for the standard library.
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }

    /// Reads a text with units, such as `500ms`, `10s` or `1m 30s`.
    ///
    /// ```
    /// use gaggled_core::base::time::Millis;
    ///
    /// assert_eq!(Millis::parse("1m 30s"), Ok(Millis(90_000)));
    /// assert!(Millis::parse("soon").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// The text is not a time span; the error says so in one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!(
                "duration \"{text}\" has no unit: write a number without quotes for milliseconds, or a unit as in \"{}s\"",
                text.trim()
            ));
        }
        let span = humantime::parse_duration(text)
            .map_err(|why| format!("duration \"{text}\" is not understood ({why}): write for instance 500, \"500ms\", \"10s\" or \"1m 30s\""))?;
        Self::checked(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    fn checked(millis: u64) -> Result<Self, String> {
        if millis <= Self::MAX.0 { Ok(Self(millis)) } else { Err("duration is longer than ten years".to_owned()) }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 1000 => write!(f, "{ms} ms"),
            ms if ms < 60_000 => write!(f, "{}.{:01} s", ms / 1000, ms % 1000 / 100),
            ms => {
                let seconds = ms / 1000;
                write!(f, "{}", humantime::format_duration(std::time::Duration::from_secs(seconds)))
            }
        }
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Millis;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration: milliseconds as a number, or a text such as \"500ms\" or \"10s\"")
            }
            fn visit_u64<E: de::Error>(self, millis: u64) -> Result<Millis, E> {
                Millis::checked(millis).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, millis: i64) -> Result<Millis, E> {
                let millis = u64::try_from(millis).map_err(|_| E::custom("duration is negative: write 0 or more"))?;
                self.visit_u64(millis)
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Millis, E> {
                Err(E::custom(format!("duration {number} is not whole milliseconds: write for instance \"{number}s\"")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Millis, E> {
                Millis::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Wall time, for people: microseconds since 1970 in UTC. On the wire it is an RFC 3339 text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallTime(pub i64);

impl WallTime {
    /// The time as a timestamp that can be printed.
    pub fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.timestamp()))
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(Self(time.as_microsecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_units_and_refused_without_sense() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("1m 30s", 90_000), ("2h", 7_200_000)] {
            assert_eq!(Millis::parse(text), Ok(Millis(millis)), "{text}");
        }
        for text in ["", "10", "soon", "-5s", "5 parsecs", "11years"] {
            assert!(Millis::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn waiting_until_is_rounded_up() {
        let now = Instant::from_micros(1);
        assert_eq!(now.until(Instant::from_micros(1001)), Millis(1));
        assert_eq!(now.until(Instant::from_micros(1002)), Millis(2));
        assert_eq!(Instant::from_micros(5).until(now), Millis(0));
    }
}
