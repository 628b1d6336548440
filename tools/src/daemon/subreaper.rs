//! The subreaper: the parent of the daemon, and of the processes that the daemon leaves behind when it dies.
//!
//! It starts the daemon, forwards signals to it, and reaps. When the daemon dies its programs become the subreaper's
//! children; the subreaper starts the daemon again, which finds them, and reports through a pipe how each of them ends.
//! As the first process of a container it also reaps all orphans.
//!
//! It knows nothing of programs, configurations or the journal, allocates next to nothing, and waits for signals in one
//! place. If it dies all the same, the daemon takes its place (see [`InheritedFds`]).

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::FileExt, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, ExitCode},
    str::FromStr,
};

use gaggled_actors::host;
use gaggled_core::process::ExitStatus;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
        signal::{SigSet, Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{Pid, alarm, pipe2},
};

/// A daemon that is up after this many seconds resets the count of early deaths.
const STABLE_AFTER: u32 = 10;
/// How many early deaths in a row are followed by an immediate restart.
const MAX_FAST_RESTARTS: u32 = 64;
/// The longest delay of later restarts, in seconds, for a daemon that never comes up.
const MAX_RESTART_DELAY: u32 = 30;

/// What the daemon gets from its subreaper: descriptors, and whether it is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritedFds {
    /// The pipe in which the subreaper reports the ends of processes.
    pub pipe: i32,
    /// The memory of the flight recorder.
    pub recorder: i32,
    /// The memory of the hand-off file that one daemon leaves for the next.
    pub handoff_file: i32,
    /// The ends of the stash: where sockets are put, and where they are taken from.
    pub stash: [i32; 2],
    /// Whether there was a daemon before this one, under the same subreaper.
    pub again: bool,
    /// The path that the binary of the daemon was found at. It may have been moved or replaced since.
    pub binary: PathBuf,
}

impl FromStr for InheritedFds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a list of descriptors of a subreaper");
        let words: Vec<&str> = text.splitn(7, ':').collect();
        let (numbers, binary) = words.split_at(words.len().min(6));
        let numbers: Vec<i32> =
            numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
        match numbers.as_slice() {
            [pipe, recorder, handoff_file, into, out_of, again] => Ok(Self {
                pipe: *pipe,
                recorder: *recorder,
                handoff_file: *handoff_file,
                stash: [*into, *out_of],
                again: *again != 0,
                binary: binary.concat().into(),
            }),
            _ => Err(wrong()),
        }
    }
}

/// The status of a daemon, as it has recorded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DaemonStatus {
    /// It starts, or has ended before it ran.
    #[default]
    Starting,
    /// It is up.
    Running,
    /// It ends so that another can follow.
    HandingOver,
    /// It ends for good, as it was asked to.
    Exiting,
}

/// What one run of the daemon leaves for the subreaper and the next daemon: four lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandoffFile {
    /// The directory of the journal.
    pub state: String,
    /// The binary of the next daemon, if it is another.
    pub binary: String,
    /// The status of the daemon.
    pub status: DaemonStatus,
    /// The id of the journal, which only gaggled may know: the directory may lose it.
    pub identity: String,
}

impl DaemonStatus {
    const WORDS: [(Self, &str); 4] = [
        (Self::Starting, "starting"),
        (Self::Running, "running"),
        (Self::HandingOver, "handing over"),
        (Self::Exiting, "exiting"),
    ];
}

impl HandoffFile {
    /// Reads what is in this memory file.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default();
        let (state, binary, status, identity) = (next().to_owned(), next().to_owned(), next(), next().to_owned());
        let known = DaemonStatus::WORDS.into_iter().find(|(_, word)| *word == status);
        let status = known.map_or(DaemonStatus::Starting, |(status, _)| status);
        Ok(Self { state, binary, status, identity })
    }

    /// Writes it, in one piece.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let word = DaemonStatus::WORDS.iter().find(|(status, _)| *status == self.status).map_or("", |(_, word)| word);
        let text = format!("{}\n{}\n{word}\n{}\n", self.state, self.binary, self.identity);
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }
}

/// What the first daemon resumes, if its subreaper takes the place of another.
#[derive(Debug, Default)]
pub struct Takeover {
    /// The directory of the journal.
    pub state: String,
    /// The ends of the stash, with the sockets that are in it.
    pub stash: Option<(OwnedFd, OwnedFd)>,
}

impl Takeover {
    /// The takeover with this directory and the numbers of these descriptors, which this process was started with.
    pub fn new(state: String, stash: Option<&str>) -> Self {
        let ends = stash.and_then(|stash| stash.split_once(':'));
        let open = |number: &str| number.parse().ok().and_then(host::inherited);
        Self { state, stash: ends.and_then(|(into, out_of)| open(into).zip(open(out_of))) }
    }
}

/// Starts the daemon with these arguments, again and again, until it ends for good. If this subreaper takes the place of
/// another, the first daemon resumes what that has left.
pub fn run(arguments: Vec<OsString>, takeover: Option<Takeover>) -> ExitCode {
    // A subreaper that takes the place of another was started as /proc/self/exe.
    let _ = nix::sys::prctl::set_name(c"gaggled");
    lower_oom_score();
    if let Some(limit) = too_few_descriptors() {
        eprintln!(
            "Error: gaggled needs at least {} descriptors, and may have {limit}: raise the limit (ulimit -n, LimitNOFILE)",
            host::DESCRIPTORS_MIN
        );
        return ExitCode::from(100);
    }
    match Subreaper::new(arguments, takeover).and_then(Subreaper::run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: gaggled cannot be started: {error}");
            ExitCode::from(100)
        }
    }
}

/// The most descriptors that gaggled may have, if they are not enough.
fn too_few_descriptors() -> Option<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (hard < host::DESCRIPTORS_MIN).then_some(hard)
}

/// The kernel should kill a supervisor last when memory runs out. Programs do not inherit that
/// score. A score that was set before is kept, and a failure to set it is ignored.
pub(crate) fn lower_oom_score() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if fs::read_to_string(SCORE).is_ok_and(|score| score.trim() == "0") {
        let _ = fs::write(SCORE, "-900");
    }
}

/// The signals that are handed on.
const FORWARDED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
/// Signals that are ignored, because they would end this process.
const IGNORED: [Signal; 3] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// A binary of gaggled, and the path that it was found at.
struct Binary {
    file: File,
    path: PathBuf,
}

impl Binary {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::open(&path)?, path })
    }
}

struct Subreaper {
    arguments: Vec<OsString>,
    signals: SigSet,
    /// The end of the pipe to which ends of processes are reported, and the end that the daemon gets.
    tell: File,
    hear: OwnedFd,
    recorder: File,
    handoff_file: File,
    /// A pair of sockets; what is in its queue outlives the daemon.
    stash: (OwnedFd, OwnedFd),
    /// The current binary, and the previous one until the current one has come up.
    binary: Binary,
    fallback_binary: Option<Binary>,
    daemon: Option<Pid>,
    again: bool,
    /// The signal that asked gaggled to end: the next daemon gets it, too, if this one dies before it has ended.
    stop_signal: Option<Signal>,
    /// The number of early deaths in a row.
    deaths: u32,
}

impl Subreaper {
    fn new(arguments: Vec<OsString>, takeover: Option<Takeover>) -> io::Result<Self> {
        host::ignore_file_limit();
        let signals = signals();
        // The daemon inherits the blocked signals, and unblocks them when it can handle them.
        signals.thread_block()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        let (hear, tell) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&tell, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&hear, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let memory = |name| memfd_create(name, MFdFlags::empty()).map(File::from);
        let handoff_file = memory(c"gaggled handoff")?;
        let again = takeover.is_some();
        let Takeover { state, stash } = takeover.unwrap_or_default();
        HandoffFile { state, ..HandoffFile::default() }.write(&handoff_file)?;
        let new_stash = || socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::empty());
        Ok(Self {
            arguments,
            signals,
            tell: tell.into(),
            hear,
            recorder: memory(c"gaggled recorder")?,
            handoff_file,
            stash: stash.map_or_else(new_stash, Ok)?,
            binary: Binary { file: File::open("/proc/self/exe")?, path: std::env::current_exe()? },
            fallback_binary: None,
            daemon: None,
            again,
            stop_signal: None,
            deaths: 0,
        })
    }

    fn run(mut self) -> io::Result<ExitCode> {
        self.spawn()?;
        loop {
            match self.signals.wait()? {
                Signal::SIGCHLD => {
                    if let Some(code) = self.reap() {
                        return Ok(code);
                    }
                }
                Signal::SIGALRM if self.daemon.is_some() => self.stabilize(),
                Signal::SIGALRM => self.start(),
                signal if FORWARDED.contains(&signal) => {
                    self.stop_signal = self.stop_signal.or(Some(signal).filter(|signal| *signal != Signal::SIGHUP));
                    if self.daemon.is_none() {
                        self.start();
                    }
                    if let Some(daemon) = self.daemon {
                        let _ = kill(daemon, signal);
                    }
                }
                _ => {}
            }
        }
    }

    /// The daemon has run for a while. A new binary that is not up by then is killed, and replaced by the previous one:
    /// it may hang even though it was checked before.
    fn stabilize(&mut self) {
        if self.handoff_file().status == DaemonStatus::Running {
            self.deaths = 0;
            self.fallback_binary = None;
            return;
        }
        if let Some(daemon) = self.daemon.filter(|_| self.fallback_binary.is_some()) {
            eprintln!("Error: the new version of gaggled is not up after {STABLE_AFTER} s: the old one goes on");
            let _ = kill(daemon, Signal::SIGKILL);
        }
        alarm::set(STABLE_AFTER);
    }

    /// The hand-off file of the daemon; empty if it cannot be read.
    fn handoff_file(&self) -> HandoffFile {
        HandoffFile::read(&self.handoff_file).unwrap_or_default()
    }

    /// Starts the daemon; if that fails, it is tried again a little later.
    fn start(&mut self) {
        if let Err(error) = self.spawn() {
            eprintln!("Error: gaggled cannot be started again ({error}); it will be tried again");
            if let Some(fallback_binary) = self.fallback_binary.take() {
                self.binary = fallback_binary;
            }
            alarm::set(1);
        } else if let (Some(daemon), Some(signal)) = (self.daemon, self.stop_signal) {
            let _ = kill(daemon, signal);
        }
    }

    fn spawn(&mut self) -> io::Result<()> {
        alarm::set(STABLE_AFTER);
        let (into, out_of) = &self.stash;
        let given = [self.hear.as_fd(), self.recorder.as_fd(), self.handoff_file.as_fd(), into.as_fd(), out_of.as_fd()];
        let given = given.map(|descriptor| descriptor.as_raw_fd());
        let position = given.into_iter().chain([i32::from(self.again)]);
        let numbers = position.map(|number| number.to_string()).collect::<Vec<_>>().join(":");
        let mut position = OsString::from(format!("{numbers}:"));
        position.push(&self.binary.path);
        let child = Command::new(format!("/proc/self/fd/{}", self.binary.file.as_raw_fd()))
            .arg0("gaggled")
            .args(&self.arguments)
            .arg("--inherit")
            .arg(position)
            // SIGINT of the terminal is for the subreaper, which forwards it.
            .process_group(0)
            .spawn()?;
        self.daemon = i32::try_from(child.id()).ok().map(Pid::from_raw);
        self.again = true;
        Ok(())
    }

    /// Reaps every child that has ended. An end is reported to the daemon before the process is reaped.
    fn reap(&mut self) -> Option<ExitCode> {
        while let Some((pid, ended)) = host::peek_exited() {
            let daemon = self.daemon.is_some_and(|daemon| daemon.as_raw() == pid);
            if !daemon {
                // If the pipe is full, with five thousand unread statuses, this one is lost.
                let _ = self.tell.write_all(&host::encode_reaped(pid, ended));
            }
            host::reap(pid);
            if daemon && let Some(code) = self.daemon_ended(ended) {
                return Some(code);
            }
        }
        None
    }

    /// The daemon has ended: for good, or to be started again.
    fn daemon_ended(&mut self, ended: ExitStatus) -> Option<ExitCode> {
        self.daemon = None;
        let handoff_file = self.handoff_file();
        let never_ran = handoff_file.status == DaemonStatus::Starting;
        // A daemon that exited before it was up has printed why. One that was killed has not, and programs of an
        // earlier subreaper may still run, so it is started again. A daemon that cannot start does not keep gaggled
        // from ending when asked.
        let killed = matches!(ended, ExitStatus::Signal(_) | ExitStatus::Core(_));
        let over = handoff_file.state.is_empty() && !killed
            || never_ran && self.stop_signal.is_some() && self.deaths > MAX_FAST_RESTARTS;
        if handoff_file.status == DaemonStatus::Exiting || over {
            return Some(code(ended));
        }
        if never_ran {
            // A new binary that never came up: go back to the previous one.
            if let Some(fallback_binary) = self.fallback_binary.take() {
                self.binary = fallback_binary;
            }
        } else if let Ok(next) = Binary::open(handoff_file.binary.clone().into()) {
            self.fallback_binary = Some(std::mem::replace(&mut self.binary, next));
        }
        let (was_well, handed_over) =
            (handoff_file.status == DaemonStatus::Running, handoff_file.status == DaemonStatus::HandingOver);
        let next = HandoffFile { binary: String::new(), status: DaemonStatus::Starting, ..handoff_file };
        // If this fails the previous contents remain, which serve as well.
        let _ = next.write(&self.handoff_file);
        self.deaths += u32::from(!handed_over);
        if self.deaths <= MAX_FAST_RESTARTS {
            self.start();
        } else {
            let doublings = if was_well { 0 } else { (self.deaths - MAX_FAST_RESTARTS - 1).min(5) };
            alarm::set((1 << doublings).min(MAX_RESTART_DELAY));
        }
        None
    }
}

/// The exit code of the subreaper after the daemon has ended with this status.
fn code(ended: ExitStatus) -> ExitCode {
    ExitCode::from(match ended {
        ExitStatus::Code(code) => u8::try_from(code).unwrap_or(100),
        ExitStatus::Signal(signal) | ExitStatus::Core(signal) => u8::try_from(128 + signal).unwrap_or(100),
        ExitStatus::OutOfMemory | ExitStatus::Unknown => 100,
    })
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGALRM].into_iter().chain(FORWARDED).chain(IGNORED).collect()
}

/// Makes this process, which was the daemon, the subreaper of the next: its programs stay its children.
pub fn take_its_place(takeover: &Takeover) -> io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let kept = arguments.iter().position(|word| word == "--inherit").unwrap_or(arguments.len());
    let arguments = arguments.get(..kept).unwrap_or_default();
    // Signals that arrive before the subreaper can handle them stay pending.
    let _ = signals().thread_block();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("gaggled").arg("--resume").arg(&takeover.state);
    if let Some((into, out_of)) = &takeover.stash {
        for end in [into, out_of] {
            // Without the stash, messages that programs have sent meanwhile are lost.
            let _ = fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()));
        }
        command.arg("--stash").arg(format!("{}:{}", into.as_raw_fd(), out_of.as_raw_fd()));
    }
    command.args(arguments).exec()
}
