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
    host::{ExecStage, Launch, Log},
    ids::{InstanceId, ProgramId, Table},
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    kernel::{self, Plan, SpawnError, Stack},
    linux::{Environment, Shared},
    proc,
    recorder::Slot,
    token::{self, Token},
};

/// The name of the thread; a child has it, too, until it executes its command.
pub(super) const THREAD: &str = "starter";

/// What the thread is to do.
pub(super) enum Order {
    /// Start this run of a program.
    Start(ProgramId, InstanceId),
    /// Say that everything before this has been done.
    Mark(Sender<()>),
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
                Order::Start(program, instance) => match self.start(program, instance) {
                    // Its start time is read before it can be reaped: it is the reaper that waits for the table.
                    Ok(pid) => self.shared.register(pid, proc::birth(pid), program, instance),
                    Err(error) => self.shared.failed(program, instance, error),
                },
                Order::Mark(reached) => drop(reached.send(())),
            }
        }
    }

    fn start(&mut self, program: ProgramId, instance: InstanceId) -> Result<i32, SpawnError> {
        let Some(launch) = self.launches.get(program) else {
            return Err(SpawnError { stage: ExecStage::Exec, errno: libc::ENOENT });
        };
        let nul = |_| SpawnError { stage: ExecStage::Exec, errno: libc::EINVAL };
        let candidates = candidates(&launch.command, &self.search).map_err(nul)?;
        let argv0 = CString::new(launch.command.as_str()).map_err(nul)?;
        let arguments: Result<Vec<CString>, _> = launch.argv.iter().map(|word| CString::new(word.as_str())).collect();
        let argv: Vec<CString> = [argv0].into_iter().chain(arguments.map_err(nul)?).collect();
        let token = variable(token::VARIABLE, &Token::write(&self.journal, &launch.name, instance));
        let own: Vec<CString> =
            launch.env.iter().filter_map(|(name, value)| variable(name, value)).chain(token).collect();
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
        let plan = Plan {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            wd: wd.as_deref(),
            stdin: &self.stdin,
            output: output.as_ref(),
            keep_ignored: &self.keep_ignored,
            record: self
                .shared
                .recorder
                .place(program, instance)
                .map(|(file, at)| (file, at, Slot { instance, pid: 0, ended: None }.encode())),
        };
        kernel::spawn(&plan, &mut self.stack, &self.shared.in_flight)
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
