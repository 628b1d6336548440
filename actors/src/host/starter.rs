//! Starts processes, one after the other, in a thread of its own.

use std::{
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender};
use gaggled_core::{
    host::{ExecStage, Launch, Log, PidFile},
    ids::{InstanceId, ProgramId, Table},
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    kernel::{self, Confinement, Plan, SpawnError, Stack},
    linux::{Environment, Shared},
    pid_file, proc,
    recorder::Slot,
    token::{self, Token},
};

/// The name of the thread; a child has it, too, until it executes its command.
pub(super) const THREAD: &str = "starter";

/// What the thread is to do.
pub(super) enum Order {
    /// Start this run of a program.
    Start(ProgramId, InstanceId),
    /// Run the stop command of a program as the process of this run, which has ended.
    Undo(ProgramId, InstanceId),
    /// Run the stop command of a program beside this run, whose main process has this id.
    Help(ProgramId, InstanceId, i32),
    /// Say that everything before this has been done.
    Mark(Sender<()>),
}

/// What is started of a program.
#[derive(Clone, Copy)]
enum What {
    Command,
    /// Its stop command, as its process.
    Stop,
    /// Its stop command, beside its main process of this id.
    Help(i32),
}

/// Starts processes.
pub(super) struct Starter {
    launches: Table<ProgramId, Launch>,
    variables: Vec<(String, CString)>,
    search: Vec<String>,
    journal: String,
    keep_ignored: Vec<i32>,
    stdin: OwnedFd,
    stack: Stack,
    shared: Arc<Shared>,
}

impl Starter {
    pub(super) fn new(
        launches: Table<ProgramId, Launch>,
        environment: Environment,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let variables =
            environment.variables.iter().filter_map(|(name, value)| Some((name.clone(), variable(name, value)?)));
        Ok(Self {
            launches,
            variables: variables.collect(),
            search: environment.search,
            journal: environment.journal,
            keep_ignored: environment.keep_ignored,
            stdin: File::open("/dev/null")?.into(),
            stack: Stack::new()?,
            shared,
        })
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        for order in orders {
            match order {
                Order::Start(program, instance) | Order::Undo(program, instance) => {
                    let what = if matches!(order, Order::Start(..)) { What::Command } else { What::Stop };
                    match self.start(program, instance, what) {
                        // Its start time is read before it can be reaped: it is the reaper that waits for the table.
                        Ok(pid) => self.shared.register(pid, proc::birth(pid), program, instance),
                        Err(error) => self.shared.failed(program, instance, error),
                    }
                }
                Order::Help(program, instance, main) => match self.start(program, instance, What::Help(main)) {
                    Ok(pid) => self.shared.register_helper(pid, program),
                    Err(_) => self.shared.no_helper(program, instance),
                },
                Order::Mark(reached) => drop(reached.send(())),
            }
        }
    }

    fn start(&mut self, program: ProgramId, instance: InstanceId, what: What) -> Result<i32, SpawnError> {
        let missing = SpawnError { stage: ExecStage::Exec, errno: libc::ENOENT };
        let launch = self.launches.get(program).ok_or(missing)?;
        let nul = |_| SpawnError { stage: ExecStage::Exec, errno: libc::EINVAL };
        let words: Vec<&str> = match what {
            What::Command => [&launch.command].into_iter().chain(&launch.argv).map(String::as_str).collect(),
            What::Stop | What::Help(_) => vec!["/bin/sh", "-c", launch.stop.as_deref().ok_or(missing)?],
        };
        let candidates = candidates(words[0], &self.search).map_err(nul)?;
        let argv: Vec<CString> = words.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(nul)?;
        let mark = match what {
            // What only helps is not part of the run that the token speaks of.
            What::Help(main) => variable("GAGGLED_PROGRAM_PID", &main.to_string()),
            What::Command | What::Stop => {
                variable(token::VARIABLE, &Token::write(&self.journal, &launch.name, instance))
            }
        };
        let own: Vec<CString> =
            launch.env.iter().filter_map(|(name, value)| variable(name, value)).chain(mark).collect();
        let replaced = |name: &str| launch.env.iter().any(|(own, _)| own == name);
        let env: Vec<&CStr> = self
            .variables
            .iter()
            .filter(|(name, _)| !replaced(name))
            .map(|(_, text)| text.as_c_str())
            .chain(own.iter().map(CString::as_c_str))
            .collect();
        let wd = launch.wd.as_deref().map(CString::new).transpose().map_err(nul)?;
        let output = match &launch.log {
            Log::Inherit => None,
            Log::File(path) => Some(open_log(path)?),
        };
        let is_part = !matches!(what, What::Help(_));
        let user = SpawnError { stage: ExecStage::User, errno: libc::EINVAL };
        let confinement = launch.confines.as_ref().and_then(Confinement::new).ok_or(user)?;
        let pid_file = match &launch.pid_file {
            Some(PidFile::Write(path)) if matches!(what, What::Command) => Some(pid_file::create(path)?),
            Some(_) | None => None,
        };
        let place = is_part.then(|| self.shared.recorder.place(program, instance)).flatten();
        let plan = Plan {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            wd: wd.as_deref(),
            stdin: &self.stdin,
            output: output.as_ref(),
            pid_file: pid_file.as_ref().map(pid_file::Created::plan),
            confinement: &confinement,
            keep_ignored: &self.keep_ignored,
            record: place.map(|(file, at)| (file, at, Slot { instance, pid: 0, ended: None }.encode())),
        };
        let spawned = kernel::spawn(&plan, &mut self.stack, &self.shared.in_flight);
        if let (Err(SpawnError { stage, .. }), Some(created)) = (&spawned, pid_file) {
            created.abandon(*stage);
        }
        spawned
    }
}

fn variable(name: &str, value: &str) -> Option<CString> {
    CString::new(format!("{name}={value}")).ok()
}

/// The paths that a command may stand for.
fn candidates(command: &str, search: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    if command.contains('/') {
        return Ok(vec![CString::new(command)?]);
    }
    search.iter().map(|directory| CString::new(format!("{directory}/{command}"))).collect()
}

fn open_log(path: &str) -> Result<OwnedFd, SpawnError> {
    let failed = |errno| SpawnError { stage: ExecStage::Log, errno };
    // Not to wait for the reader of a fifo; the program itself gets a descriptor that waits as usual.
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(|errno| failed(errno as i32))?;
    Ok(file.into())
}
