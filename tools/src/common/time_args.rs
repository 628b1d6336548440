//! Parses times and durations in arguments.

use std::time::Duration;

use gaggled_core::{
    base::{
        ids::Seq,
        time::{Millis, WallTime},
    },
    protocol::PointInTime,
};
use jiff::{Timestamp, Zoned, civil};

/// Reads a duration, which must have a unit: a number alone could mean seconds or milliseconds.
pub fn span(text: &str) -> Result<Millis, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("\"{text}\" has no unit: write \"{text}s\", or \"{text}ms\""));
    }
    Millis::parse(text)
}

/// Reads the number of an event, or a time: `2026-11-20 14:03:07`, `14:03` today, or `10m` ago.
pub fn parse(text: &str) -> Result<PointInTime, String> {
    if let Ok(seq) = text.parse() {
        return Ok(PointInTime::Seq(Seq(seq)));
    }
    time(text, &Zoned::now()).map(PointInTime::Time)
}

fn time(text: &str, now: &Zoned) -> Result<WallTime, String> {
    let of = |time: Timestamp| WallTime(time.as_microsecond());
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(of(time));
    }
    let civil = text
        .parse::<civil::DateTime>()
        .or_else(|_| text.parse::<civil::Time>().map(|time| now.date().to_datetime(time)));
    if let Ok(civil) = civil {
        let zoned =
            civil.to_zoned(now.time_zone().clone()).map_err(|why| format!("\"{text}\" is no time here: {why}"))?;
        return Ok(of(zoned.timestamp()));
    }
    let span = text.strip_suffix("ago").unwrap_or(text);
    let ago: Duration = humantime::parse_duration(span).map_err(|_| {
        format!("\"{text}\" is neither the number of an event nor a time: write for instance 42, 14:03:07, \"2026-11-20 14:03\" or 10m")
    })?;
    now.timestamp().checked_sub(ago).map(of).map_err(|why| format!("\"{text}\" is too long ago: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_spans_are_told_apart() {
        let now: Zoned = "2026-11-20T15:00:00+01:00[+01:00]".parse().expect("a time");
        let micros = |text: &str| text.parse::<Timestamp>().expect("a time").as_microsecond();
        for (text, expected) in [
            ("2026-11-20T13:00:00Z", "2026-11-20T13:00:00Z"),
            ("2026-11-20 14:03:07", "2026-11-20T13:03:07Z"),
            ("2026-11-19T08:00", "2026-11-19T07:00:00Z"),
            ("14:03", "2026-11-20T13:03:00Z"),
            ("14:03:07.5", "2026-11-20T13:03:07.5Z"),
            ("10m", "2026-11-20T13:50:00Z"),
            ("10m ago", "2026-11-20T13:50:00Z"),
            ("1h 30s", "2026-11-20T12:59:30Z"),
        ] {
            assert_eq!(time(text, &now), Ok(WallTime(micros(expected))), "{text}");
        }
        assert_eq!(parse("42"), Ok(PointInTime::Seq(Seq(42))));
        for wrong in ["", "yesterday", "25:99", "-3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
