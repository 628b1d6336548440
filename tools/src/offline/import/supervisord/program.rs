//! One `[program:x]`, as a program of gaggled's.

use gaggled_core::{
    base::{bytes::Bytes, time::Millis},
    config::{OrderedMap, ProgramConfig, log_policy::Rotate, sandbox::Umask},
    graph::{Backoff, Mode, StartLimit},
    process::Signal,
};

use super::values::{Options, truth};

/// Options of a program that mean nothing here.
const UNUSED: [&str; 9] = [
    "stderr_logfile_maxbytes",
    "stderr_logfile_backups",
    "stdout_capture_maxbytes",
    "stderr_capture_maxbytes",
    "stdout_events_enabled",
    "stderr_events_enabled",
    "stdout_syslog",
    "stderr_syslog",
    "serverurl",
];

/// Options that are kept.
const KEPT: [&str; 23] = [
    "stdout_logfile_maxbytes",
    "stdout_logfile_backups",
    "command",
    "process_name",
    "numprocs",
    "numprocs_start",
    "autostart",
    "startsecs",
    "startretries",
    "autorestart",
    "exitcodes",
    "stopsignal",
    "stopwaitsecs",
    "stopasgroup",
    "killasgroup",
    "user",
    "redirect_stderr",
    "stdout_logfile",
    "stderr_logfile",
    "environment",
    "directory",
    "umask",
    "priority",
];

/// Where output goes.
enum Output {
    /// To gaggled's own.
    Inherited,
    EndpointError,
    Syslog,
    File(String),
}

impl Output {
    /// As supervisord reads it: some words are no files, however they are written.
    fn read(text: Option<String>) -> Self {
        let Some(text) = text else { return Self::Inherited };
        match text.to_ascii_lowercase().as_str() {
            "none" | "off" => Self::EndpointError,
            "syslog" => Self::Syslog,
            "auto" | "/dev/stdout" | "/dev/stderr" | "/dev/fd/1" | "/dev/fd/2" => Self::Inherited,
            _ => Self::File(text.strip_prefix("~/").map_or(text.clone(), at_home)),
        }
    }
}

fn at_home(path: &str) -> String {
    format!("{}/{path}", std::env::var("HOME").unwrap_or_default().trim_end_matches('/'))
}

/// The program that a section describes.
pub(super) fn program(options: &Options<'_>, env: OrderedMap<String>) -> Result<ProgramConfig, String> {
    let Options { section, .. } = options;
    let line = options.text("command")?.ok_or(format!("{}: [{}] has no command", section.place, section.name))?;
    let open = "has a quote that is not closed; \" ;\" begins a comment, also in quotes";
    let line = shell_words::split(&line).map_err(|_| options.wrong("command", open))?;
    let (command, argv) = line.split_first().ok_or_else(|| options.wrong("command", "is empty"))?;
    let any_is_wrong = options.text("exitcodes")?.is_some_and(|codes| codes.is_empty());
    let (mode, retry) = match options.text("autorestart")?.as_deref() {
        // With an empty list of exit codes, none is expected.
        text if any_is_wrong && text.is_none_or(|text| text.eq_ignore_ascii_case("unexpected")) => (None, false),
        None => (Some(Mode::Once), true),
        // It is left down only when it has ended as expected.
        Some(text) if text.eq_ignore_ascii_case("unexpected") => (Some(Mode::Once), true),
        Some(text) => match truth(text) {
            Some(true) => (None, false),
            Some(false) => (Some(Mode::Once), false),
            None => return Err(options.wrong("autorestart", "is not true, false or unexpected")),
        },
    };
    let lasts = Millis(1000 * options.number::<u32>("startsecs", 1).map(u64::from)?);
    let retries = options.number::<u32>("startretries", 3)?;
    let umask = options.text("umask")?.map(|text| u16::from_str_radix(&text, 8));
    let umask = umask.transpose().ok().filter(|umask| umask.is_none_or(|umask| umask <= 0o777));
    let umask = umask.ok_or_else(|| options.wrong("umask", "is no octal number"))?;
    options.boolean("redirect_stderr")?;
    let log = log(options)?;
    let (stop_signal, stop_command) = stop(options)?;
    Ok(ProgramConfig {
        command: Some(command.clone()),
        argv: argv.to_vec(),
        wd: options.text("directory")?,
        env,
        user: options.text("user")?,
        umask: umask.map(Umask),
        rotate: rotation(options, log.as_deref())?,
        log,
        mode,
        retry,
        autostart: options.boolean("autostart")?.unwrap_or(true),
        success_exit_codes: exit_codes(options)?,
        stop_signal,
        stop_command,
        killwait: Some(Millis(1000 * options.number::<u32>("stopwaitsecs", 10).map(u64::from)?)),
        start_limit: if mode == Some(Mode::Once) && !retry { None } else { limit(retries, lasts) },
        backoff: Some(spacing(retries, lasts)),
        ..ProgramConfig::default()
    })
}

fn exit_codes(options: &Options<'_>) -> Result<Vec<i32>, String> {
    let codes = options.text("exitcodes")?.filter(|codes| !codes.is_empty()).unwrap_or_else(|| "0".to_owned());
    let code = |code: &str| code.trim().parse().ok().filter(|code| (0..=255).contains(code));
    let codes: Option<Vec<i32>> = codes.split(',').map(code).collect();
    let codes = codes.ok_or_else(|| options.wrong("exitcodes", "is no list of numbers from 0 to 255"))?;
    Ok(if codes == [0] { Vec::new() } else { codes })
}

/// The stop signal if that is not TERM and goes to the whole group, as gaggled's own does, or else a stop command that sends
/// it to the main process.
fn stop(options: &Options<'_>) -> Result<(Option<String>, Option<String>), String> {
    let signal = options.text("stopsignal")?.unwrap_or_else(|| "TERM".to_owned());
    Signal::parse(&signal).ok_or_else(|| options.wrong("stopsignal", "is no signal"))?;
    let upper = signal.to_ascii_uppercase();
    let name = upper.trim_start_matches("SIG");
    let group = options.boolean("stopasgroup")?.unwrap_or(false);
    options.boolean("killasgroup")?;
    let is_other = !["TERM", "15"].contains(&name);
    let signal = (is_other && group).then(|| name.to_owned());
    let command = (is_other && !group).then(|| format!("kill -s {name} \"$GAGGLED_PROGRAM_PID\""));
    Ok((signal, command))
}

/// supervisord gives up after so many starts in a row none of which lasted.
fn limit(retries: u32, lasts: Millis) -> Option<StartLimit> {
    let starts = retries.checked_add(1).filter(|starts| *starts <= StartLimit::MAX_BURST)?;
    // Long enough for all starts, because supervisord counts starts in a row.
    let within = Millis(u64::from(starts) * (60_000 + lasts.0));
    Some(StartLimit { burst: starts, interval: within, retry_after: None, reset: Some(lasts) })
}

/// supervisord waits a second longer before each start in a row, and one second if every start counts as good.
fn spacing(retries: u32, lasts: Millis) -> Backoff {
    let max = if lasts.0 == 0 { Millis(1000) } else { Millis(1000 * u64::from(retries.clamp(1, 60))) };
    Backoff { initial: Millis(1000), max, reset: lasts.max(Millis(1000)) }
}

fn log(options: &Options<'_>) -> Result<Option<String>, String> {
    Ok(match Output::read(options.text("stdout_logfile")?) {
        Output::Inherited | Output::Syslog => None,
        Output::File(path) => Some(path),
        // A program has one log here: if its output is discarded, that for its errors.
        Output::EndpointError => Some(match Output::read(options.text("stderr_logfile")?) {
            Output::File(path) => path,
            Output::Inherited | Output::EndpointError | Output::Syslog => "/dev/null".to_owned(),
        }),
    })
}

/// supervisord rotates a log at 50 MB by default, and keeps ten.
fn rotation(options: &Options<'_>, log: Option<&str>) -> Result<Option<Rotate>, String> {
    let size = options.text("stdout_logfile_maxbytes")?.map_or(Some(Bytes(50 << 20)), |text| Bytes::read(&text));
    let size = size.ok_or_else(|| options.wrong("stdout_logfile_maxbytes", "is no size"))?;
    let keep = options.number::<u32>("stdout_logfile_backups", 10)?;
    let rotates = log.is_some_and(|log| !log.starts_with("/dev/")) && size.0 > 0;
    let (size, keep) = (size.max(Rotate::SMALLEST), keep.clamp(1, Rotate::MOST));
    Ok(rotates.then(|| Rotate { size, max_files: keep, ..Rotate::default() }))
}

/// Options that are left out or mean something else here, each with a note.
pub(super) fn remarks(options: &Options<'_>, program: &ProgramConfig) -> Vec<(String, String)> {
    let given = |option: &str| options.section.get(option).is_some();
    let mut remarks: Vec<(String, String)> = Vec::new();
    let mut remark = |option: &str, what: &str| remarks.push((option.to_owned(), what.to_owned()));
    for option in &options.section.options {
        match option.name.as_str() {
            "priority" => remark("priority", "is left out: programs start at once, unless they depend on each other"),
            unused if UNUSED.contains(&unused) => remark(unused, "is left out"),
            known if KEPT.contains(&known) => {}
            unknown => remark(unknown, "is no setting, and was ignored"),
        }
    }
    let merged = options.boolean("redirect_stderr").ok().flatten().unwrap_or(false);
    let has_log = program.log.as_deref().is_some_and(|log| !log.starts_with("/dev/"));
    if given("stderr_logfile") && !merged {
        remark("stderr_logfile", "is left out: a program has one log, for both");
    } else if has_log && !merged {
        remark("stdout_logfile", "gets its errors, too: a program has one log, for both");
    }
    if matches!(Output::read(options.text("stdout_logfile").ok().flatten()), Output::Syslog) {
        remark("stdout_logfile", "is gaggled's own output: gaggled writes to no syslog");
    }
    for option in ["stdout_logfile_maxbytes", "stdout_logfile_backups"] {
        let value = options.text(option).ok().flatten();
        let size = value.as_deref().and_then(Bytes::read).map_or(0, |size| size.0);
        let rotates = program.rotate.is_some();
        match option {
            _ if value.is_none() => {}
            _ if !has_log => remark(option, "is left out: the output is gaggled's own, or is discarded"),
            "stdout_logfile_maxbytes" if rotates && size < Rotate::SMALLEST.0 => remark(option, "is 4096, the least"),
            "stdout_logfile_backups" if rotates && size == 0 => remark(option, "is 1, the least"),
            "stdout_logfile_backups" if rotates && size > u64::from(Rotate::MOST) => {
                remark(option, "is 1000, the most");
            }
            _ => {}
        }
    }
    if program.start_limit.is_none() && program.mode.is_none_or(|_| program.retry) {
        remark("startretries", "is left out, as there are so many: it is started for ever");
    }
    remarks
}
