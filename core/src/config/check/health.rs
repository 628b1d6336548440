//! Semantic errors in readiness probes, health checks and time limits.

use crate::{
    base::time::Millis,
    host::probe::{Probe, ReadinessProbe},
};

use super::{Diagnostic, ProgramConfig, SpanIndex};

/// The texts of probes that are passed to the operating system.
pub(super) fn texts(program: &ProgramConfig) -> impl Iterator<Item = &String> {
    let ready = program.ready.as_ref().and_then(|ready| match ready {
        ReadinessProbe::Notify | ReadinessProbe::Fd(_) => None,
        ReadinessProbe::LogLine(text)
        | ReadinessProbe::Command(text)
        | ReadinessProbe::Tcp(text)
        | ReadinessProbe::Http(text) => Some(text),
    });
    let health = program.health.as_ref().map(|health| match &health.probe {
        Probe::Command(text) | Probe::Tcp(text) | Probe::Http(text) => text,
    });
    ready.into_iter().chain(health)
}

pub(super) fn check(name: &str, program: &ProgramConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut error = |field: &str, what: &str, help: &str| {
        let error = Diagnostic::error(format!("program \"{name}\" {what}"));
        found.push(error.at(locator.nearest(&["programs", name, field])).help(help));
    };
    let health = program.health();
    let looked_after = health.readiness.is_some() || health.check.is_some() || health.watchdog.is_some();
    if program.effective_mode().is_gate() && looked_after {
        let field = if program.ready.is_some() { "ready" } else { "health" };
        error(
            field,
            "is to run to its end, so readiness and health checks have no effect",
            "remove the field, or the mode",
        );
    }
    match &program.ready {
        Some(ReadinessProbe::Fd(fd)) if !(3..=1023).contains(fd) => {
            error("ready", "is to notify through a descriptor out of range", "write a number from 3 to 1023");
        }
        Some(ReadinessProbe::LogLine(_)) if program.log.as_deref().is_none_or(|log| log == "/dev/null") => {
            error("ready", "is ready by a line of its log, and has no log", "add log: \"...\"");
        }
        Some(ReadinessProbe::LogLine(text)) if text.is_empty() => {
            error("ready", "is ready by an empty line", "write a part of the line");
        }
        Some(_) | None => {}
    }
    for (field, probe) in [
        ("ready", program.ready.as_ref().and_then(ReadinessProbe::probe)),
        ("health", program.health.as_ref().map(|health| health.probe.clone())),
    ] {
        if let Some((what, help)) = probe.as_ref().and_then(wrong) {
            error(field, what, help);
        }
    }
    if let Some(health) = &program.health {
        if health.interval == Millis(0) || health.timeout == Millis(0) {
            error("health", "is checked with a time of 0", "write for instance interval: \"10s\", timeout: \"5s\"");
        }
        if health.failure_threshold == 0 {
            error("health", "is unhealthy after 0 failures", "write failure_threshold: 1 or more");
        }
    }
    for (field, span) in [("start_timeout", program.start_timeout), ("watchdog", program.watchdog)] {
        if span == Some(Millis(0)) {
            error(field, "has a time of 0", "write for instance \"30s\"");
        }
    }
}

/// What is wrong with a probe, and the cure.
fn wrong(probe: &Probe) -> Option<(&'static str, &'static str)> {
    match probe {
        Probe::Command(line) => line.is_empty().then_some(("is checked by an empty command", "write a line of shell")),
        Probe::Tcp(address) => {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let fine = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
            let what = "is checked at an invalid address";
            (!fine).then_some((what, "write host:port, for instance \"127.0.0.1:5432\""))
        }
        Probe::Http(url) => {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
            // Colons within the brackets of an IPv6 address do not begin a port.
            let port = host.rsplit(']').next().and_then(|host| host.rsplit_once(':'));
            let has_port = port.is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
            let fine = !host.is_empty() && has_port;
            let what = "is checked at an invalid url";
            (!fine).then_some((what, "write for instance \"http://127.0.0.1:8080/health\""))
        }
    }
}
