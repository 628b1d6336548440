//! Reloads and upgrades: checks a changed configuration or another binary, and leaves it for the next daemon.
//!
//! A running daemon is never changed. What the next daemon needs is left where it will look, completely or not at all;
//! then this daemon ends, and the next one begins as after a crash, while all programs keep running.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::Recipient;
use gaggled_actors::{
    control::{ControlRequest, HandoverPrepared, HandoverRequest, PrepareHandover},
    journal::writer_handle::JournalWriterHandle,
    spec,
};
use gaggled_core::{
    config::Config,
    event::Handover,
    journal::segment::ConfigSource,
    planning::plan::{Change, Plan},
    protocol::{
        Action, ErrorCode, Reply, ReplyError, Request,
        access::{Peer, Role},
    },
    state::State,
};
use serde_json::json;

use super::{loaded_config::LoadedConfig, published_config::PublishedConfig};
use crate::VERSION;

/// The end of a positive answer of another binary.
pub(super) const GOES_ON: &str = " can go on";

/// How long the disk may take.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// How much output of another binary is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// How long another binary may take to answer.
const BINARY_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepares the next daemon.
pub(super) struct HandoverManager {
    config: Config,
    text: ConfigSource,
    ignore_interrupts: bool,
    state: PathBuf,
    /// The id of the journal.
    identity: String,
    file: JournalWriterHandle,
    /// The path at which the subreaper found the binary, if there is a subreaper.
    started_from: Option<PathBuf>,
    binary: Arc<Mutex<Option<String>>>,
    /// The revision of the published configuration that is in force, if the programs come from there.
    published: Option<Arc<AtomicU64>>,
    /// The parts of a published configuration that have come so far.
    parts: Arc<Mutex<PublishedParts>>,
}

/// The parts of a published configuration that have come so far.
#[derive(Debug, Default)]
struct PublishedParts {
    revision: u64,
    next: u32,
    text: String,
}

impl HandoverManager {
    pub(super) fn new(
        system: &LoadedConfig,
        state: PathBuf,
        identity: &str,
        file: JournalWriterHandle,
        started_from: Option<PathBuf>,
    ) -> Self {
        Self {
            config: system.config.clone(),
            text: system.text.clone(),
            ignore_interrupts: system.ignore_interrupts,
            state,
            identity: identity.to_owned(),
            file,
            started_from,
            binary: Arc::default(),
            published: system.published.clone(),
            parts: Arc::default(),
        }
    }

    /// The binary of the next daemon, if it is another.
    pub(super) fn next_binary(&self) -> Option<String> {
        self.binary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The function that the control actor calls.
    pub(super) fn renewal(&self) -> PrepareHandover {
        let own = Self {
            config: self.config.clone(),
            text: self.text.clone(),
            state: self.state.clone(),
            identity: self.identity.clone(),
            file: self.file.clone(),
            started_from: self.started_from.clone(),
            binary: self.binary.clone(),
            published: self.published.clone(),
            parts: self.parts.clone(),
            ..*self
        };
        Arc::new(move |what, state| match what {
            HandoverRequest::Plan { file } => own.plan(file.as_deref(), None, state).map(|(plan, _)| told(&plan, None)),
            HandoverRequest::Configure { revision, part, parts, text } => {
                own.configure(revision, (part, parts), &text, state)
            }
            HandoverRequest::Reload { file } => own.reload(file.as_deref(), state),
            HandoverRequest::Upgrade { binary } => own.upgrade(binary.as_deref()),
        })
    }

    fn plan(
        &self,
        file: Option<&str>,
        published: Option<&PublishedConfig>,
        state: &State,
    ) -> Result<(Plan, LoadedConfig), ReplyError> {
        let path = file.unwrap_or(&self.text.path);
        let system = LoadedConfig::load(Path::new(path), self.ignore_interrupts, &self.state, published);
        let system = system.map_err(failed)?;
        if system.config.gaggled.state_directory != self.config.gaggled.state_directory {
            // The next gaggled would not find what this one has written.
            return Err(failed(format!(
                "{path}: gaggled.state_directory cannot be changed while gaggled runs: shut it down first"
            )));
        }
        Ok((Plan::new(&self.config, &system.config, state), system))
    }

    fn reload(&self, file: Option<&str>, state: &State) -> Result<HandoverPrepared, ReplyError> {
        let (plan, system) = self.plan(file, None, state)?;
        self.stage(&plan, system)
    }

    /// Takes a part of the published configuration, and loads it when all are there.
    fn configure(
        &self,
        revision: u64,
        (part, parts): (u32, u32),
        text: &str,
        state: &State,
    ) -> Result<HandoverPrepared, ReplyError> {
        let Some(in_force) = &self.published else {
            return Err(failed("this node has its programs from its own file (gaggled.cluster.config)".to_owned()));
        };
        let has = in_force.load(Ordering::Relaxed);
        if revision < has {
            return Err(failed(format!("revision {revision} is older than {has}, which is in force")));
        }
        let published = {
            let mut known = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            if part == 0 {
                *known = PublishedParts { revision, ..PublishedParts::default() };
            }
            let is_too_long = known.text.len() + text.len() > Config::PUBLISHED_MAX;
            if (known.revision, known.next) != (revision, part) || is_too_long {
                *known = PublishedParts::default();
                let why = if is_too_long { "is too long" } else { "does not follow the one before" };
                return Err(failed(format!("part {part} of revision {revision} {why}")));
            }
            known.text.push_str(text);
            known.next += 1;
            if known.next < parts {
                return Ok(HandoverPrepared { body: json!({"received": known.next}), handover: None });
            }
            PublishedConfig { revision, text: std::mem::take(&mut known.text) }
        };
        let (plan, system) = self.plan(None, Some(&published), state)?;
        let not_kept = |why| failed(format!("it cannot be kept in {}: {why}", self.state.display()));
        published.write(&self.state).map_err(not_kept)?;
        let prepared = self.stage(&plan, system)?;
        if let Err(why) = published.keep(&self.state) {
            // The present configuration goes on, also in the next daemon.
            let _ = self.journal().map(|journal| journal.stage_config(self.text.clone()));
            return Err(not_kept(why));
        }
        in_force.store(revision, Ordering::Relaxed);
        Ok(prepared)
    }

    /// Leaves a configuration to the next daemon, if it is another than the present one.
    fn stage(&self, plan: &Plan, system: LoadedConfig) -> Result<HandoverPrepared, ReplyError> {
        if system.text == self.text {
            return Ok(told(plan, None));
        }
        let journal = self.journal()?;
        if let Some(own) = system.cgroups(&self.identity) {
            spec::prepare_cgroups(&system.config, &own)
                .map_err(|why| failed(format!("nothing is changed, because {why}")))?;
        }
        journal.stage_config(system.text).and_then(|()| journal.flush(DISK_TIMEOUT)).map_err(|why| {
            failed(format!("nothing is changed, because the journal cannot take the configuration: {why}"))
        })?;
        let mut renewed = told(plan, Some(Handover::Reload));
        renewed.body["controlurl"] = json!(system.urls.control);
        Ok(renewed)
    }

    fn upgrade(&self, binary: Option<&str>) -> Result<HandoverPrepared, ReplyError> {
        let journal = self.journal()?;
        // A package manager may have put another binary in the place of the one that runs.
        let path = binary.map(PathBuf::from).or_else(|| self.started_from.clone()).unwrap_or_default();
        let path = std::fs::canonicalize(&path)
            .map_err(|error| failed(format!("{} cannot be found ({error}): this gaggled goes on", path.display())))?;
        let version = self.ask_binary(&path)?;
        journal.flush(DISK_TIMEOUT).map_err(|why| failed(format!("the journal cannot be written: {why}")))?;
        *self.binary.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.display().to_string());
        let body = json!({"from": VERSION, "to": version, "binary": path.display().to_string()});
        Ok(HandoverPrepared { body, handover: Some(Handover::Upgrade) })
    }

    fn journal(&self) -> Result<&JournalWriterHandle, ReplyError> {
        if self.started_from.is_none() {
            return Err(failed(
                "this gaggled was started without a subreaper, so no other daemon can follow".to_owned(),
            ));
        }
        Ok(&self.file)
    }

    /// Makes another binary read the journal and the configuration in force; returns its version.
    fn ask_binary(&self, path: &Path) -> Result<String, ReplyError> {
        let name = path.display();
        let child = Command::new(path)
            .arg("check-takeover")
            .arg(&self.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("{name} cannot be run ({error}): this gaggled goes on")))?;
        let said = listen(child, BINARY_TIMEOUT)
            .ok_or_else(|| failed(format!("{name} does not answer: this gaggled goes on")))?;
        let version = said.trim().strip_prefix("gaggled ").and_then(|rest| rest.strip_suffix(GOES_ON));
        version.map(str::to_owned).ok_or_else(|| {
            let why = said.lines().next().unwrap_or("it says nothing").to_owned();
            failed(format!("{name} is no gaggled that could go on here ({why}): this gaggled goes on"))
        })
    }
}

/// The output of a child, if it ends in time; otherwise it is killed. Its status is not known, because the reaper of
/// the daemon takes it.
fn listen(mut child: Child, within: Duration) -> Option<String> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let held = pid.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    let (out, err) = (child.stdout.take()?, child.stderr.take()?);
    let (done, ended) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        let mut said = String::new();
        let _ = out.take(ANSWER_MAX).read_to_string(&mut said);
        let _ = err.take(ANSWER_MAX).read_to_string(&mut said);
        let _ = done.send(said);
    });
    let said = ended.recv_timeout(within).ok();
    // By pidfd, so that another process with the same id is never killed.
    let running =
        held.is_some_and(|held| rustix::process::pidfd_send_signal(&held, rustix::process::Signal::KILL).is_ok());
    if let Some(pid) = pid.filter(|_| running) {
        // Also the processes that it has started.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
    said
}

fn told(plan: &Plan, handover: Option<Handover>) -> HandoverPrepared {
    let changes = plan.steps.iter().filter(|step| step.change != Change::Unchanged).count();
    HandoverPrepared { body: json!({"steps": plan.steps, "settings": plan.settings, "changes": changes}), handover }
}

fn failed(message: String) -> ReplyError {
    ReplyError { code: ErrorCode::Failed, message }
}

/// SIGHUP requests a reload, as an operator does.
pub(super) fn reload_by_signal(control: &Recipient<ControlRequest>) {
    let peer = Peer { who: "SIGHUP".to_owned(), role: Role::Admin };
    // There is no reply: a refusal is recorded as an event.
    let answer = Box::new(|_: Reply| ());
    let _ = control.try_send(ControlRequest { peer, request: Request::new("", Action::Reload { file: None }), answer });
}
