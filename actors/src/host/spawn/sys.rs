//! The system calls that have no safe interface: starting a process, and waiting for any child.
//!
//! Starting a process costs the same whatever the size of the daemon. `fork` copies the page tables of the parent,
//! which takes a hundred milliseconds once it holds some gigabytes. So the child is created as `posix_spawn` does it:
//! it shares the memory of the parent, which is suspended until the child has executed its command or ended. Unlike
//! `posix_spawn` this makes a session, reports which step failed, and gives the reaper the process id before the child
//! runs.
//!
//! Until the exec the child only makes system calls, on data that was prepared before. It does not allocate, log, lock
//! or panic, and never returns.

#![expect(unsafe_code, reason = "clone with shared memory, and waitid with every signal, have no safe interface")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use gaggled_core::process::SpawnStage;

mod sandbox;
mod wait;

pub use self::{
    sandbox::PreparedSandbox,
    wait::{ExitInfo, exit_info, of_wait_status, peek_exited, reap, wait_for_any},
};
use crate::host::recover::flight_recorder::{RunSlot, SlotBytes};
use crate::safe_path::SafeDirectory;

/// Why a process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnError {
    /// The step that failed.
    pub stage: SpawnStage,
    /// The error of the system call.
    pub errno: i32,
}

/// What the child needs, laid out before it is made.
#[derive(Debug)]
pub struct SpawnPlan<'a> {
    /// The paths to try in order.
    pub candidates: &'a [CString],
    /// The arguments, beginning with the command.
    pub argv: &'a [CString],
    /// The variables.
    pub env: &'a [&'a CStr],
    /// Where to run.
    pub wd: Option<&'a CStr>,
    /// The file through which it enters its cgroup.
    pub cgroup: Option<&'a File>,
    /// What becomes its standard input.
    pub stdin: &'a OwnedFd,
    /// What becomes its standard output and error, if they are not the daemon's.
    pub output: Option<&'a OwnedFd>,
    /// A file, and the descriptor number under which the child has it open.
    pub descriptor: Option<(&'a File, c_int)>,
    /// The pid file that the child writes.
    pub pid_file: Option<PidFilePlan<'a>>,
    /// The restrictions that the child applies to itself.
    pub confinement: &'a PreparedSandbox,
    /// The signals that the child ignores if the daemon does; all others do what they do by default.
    pub keep_ignored: &'a [c_int],
    /// The flight recorder and the offset at which the child records itself, and the record without its process id.
    pub record: Option<(RawFd, i64, SlotBytes)>,
}

/// A pid file that is written under a temporary name and then renamed.
#[derive(Debug)]
pub struct PidFilePlan<'a> {
    /// The file, open for writing.
    pub file: &'a File,
    /// The directory that it is in.
    pub directory: &'a SafeDirectory,
    /// Its temporary name.
    pub new: &'a CStr,
    /// Its final name.
    pub name: &'a CStr,
}

/// The stack that a child runs on until it has executed its command. One is enough: the parent is suspended meanwhile.
#[derive(Debug)]
pub struct Stack {
    base: *mut c_void,
}

// SAFETY: the memory belongs to this value alone, and only one thread at a time can own it.
unsafe impl Send for Stack {}

impl Stack {
    const BYTES: usize = 128 * 1024;
    const GUARD: usize = 4096;

    /// Maps a stack with a page below it that must not be touched.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping overlaps nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first page of the mapping just made, which is not used.
        if unsafe { libc::mprotect(base, Self::GUARD, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn top(&self) -> *mut c_void {
        self.base.wrapping_byte_add(Self::BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, and no child runs on it: the parent stood still until each had left it.
        unsafe { libc::munmap(self.base, Self::BYTES) };
    }
}

/// The data that the child reads, and the error that it reports.
struct Child {
    candidates: *const *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    wd: *const c_char,
    cgroup: c_int,
    descriptor: c_int,
    descriptor_as: c_int,
    pid_file: c_int,
    pid_file_directory: c_int,
    pid_file_new: *const c_char,
    pid_file_name: *const c_char,
    confinement: *const PreparedSandbox,
    stdin: c_int,
    output: c_int,
    recorder: c_int,
    record_at: i64,
    record: SlotBytes,
    reset: *const c_int,
    reset_len: usize,
    failed_stage: SpawnStage,
    failed_errno: c_int,
}

/// Starts a process. `pid` holds its process id from before it runs until this returns.
///
/// All signals are blocked in the calling thread meanwhile, so that no handler of the daemon runs in the child.
pub fn spawn(plan: &SpawnPlan<'_>, stack: &mut Stack, pid: &AtomicI32) -> Result<i32, SpawnError> {
    let candidates = pointers(plan.candidates.iter().map(CString::as_c_str));
    let argv = pointers(plan.argv.iter().map(CString::as_c_str));
    let envp = pointers(plan.env.iter().copied());
    // Also signals that the daemon handles: one that comes before the exec must not run the daemon's handler.
    let fixed = [libc::SIGKILL, libc::SIGSTOP];
    let reset: Vec<c_int> =
        (1..=64).filter(|signal| !fixed.contains(signal) && !plan.keep_ignored.contains(signal)).collect();
    let mut child = Child {
        candidates: candidates.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        wd: plan.wd.map_or(ptr::null(), CStr::as_ptr),
        cgroup: plan.cgroup.map_or(-1, AsRawFd::as_raw_fd),
        descriptor: plan.descriptor.map_or(-1, |(file, _)| file.as_raw_fd()),
        descriptor_as: plan.descriptor.map_or(-1, |(_, number)| number),
        pid_file: plan.pid_file.as_ref().map_or(-1, |pid_file| pid_file.file.as_raw_fd()),
        pid_file_directory: plan.pid_file.as_ref().map_or(-1, |pid_file| pid_file.directory.as_fd().as_raw_fd()),
        pid_file_new: plan.pid_file.as_ref().map_or(ptr::null(), |pid_file| pid_file.new.as_ptr()),
        pid_file_name: plan.pid_file.as_ref().map_or(ptr::null(), |pid_file| pid_file.name.as_ptr()),
        confinement: ptr::from_ref(plan.confinement),
        stdin: plan.stdin.as_raw_fd(),
        output: plan.output.map_or(-1, AsRawFd::as_raw_fd),
        recorder: plan.record.map_or(-1, |(file, _, _)| file),
        record_at: plan.record.map_or(0, |(_, at, _)| at),
        record: plan.record.map_or_else(SlotBytes::default, |(_, _, bytes)| bytes),
        reset: reset.as_ptr(),
        reset_len: reset.len(),
        failed_stage: SpawnStage::Fork,
        failed_errno: 0,
    };
    let mask = block_all_signals();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    // SAFETY: `run` only makes system calls on what `child` points to, which lives until this function returns; and
    // because of CLONE_VFORK the call returns only after the child has executed its command or ended, so neither
    // `child` nor the stack is used after that. The kernel writes the process id to `pid`, an aligned i32 of ours.
    let made = unsafe { libc::clone(run, stack.top(), flags, (&raw mut child).cast(), pid.as_ptr()) };
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    restore_signals(&mask);
    if made < 0 {
        return Err(SpawnError { stage: SpawnStage::Fork, errno });
    }
    // SAFETY: the child may have written it, through the memory that was shared; it is a plain read of a local.
    let failed_errno = unsafe { ptr::read_volatile(&raw const child.failed_errno) };
    if failed_errno != 0 {
        // SAFETY: as above.
        let stage = unsafe { ptr::read_volatile(&raw const child.failed_stage) };
        reap_failed_child(made);
        return Err(SpawnError { stage, errno: failed_errno });
    }
    pid.store(made, Ordering::SeqCst);
    Ok(made)
}

/// The child. It must only make system calls, and never return.
extern "C" fn run(child: *mut c_void) -> c_int {
    let child = child.cast::<Child>();
    // SAFETY: `child` is the value of `spawn`, which stands still; everything it points to was laid out there, and the
    // lists end with a null pointer. Only functions that are safe after vfork are called: each is one system call.
    unsafe {
        let me = &mut *child;
        if me.recorder >= 0 {
            let pid = libc::getpid().to_le_bytes();
            ptr::copy_nonoverlapping(pid.as_ptr(), me.record.as_mut_ptr().add(RunSlot::PID), pid.len());
            // Memory that cannot be written costs a status at worst.
            libc::syscall(libc::SYS_pwrite64, me.recorder, me.record.as_ptr(), me.record.len(), me.record_at);
        }
        if me.cgroup >= 0 && libc::write(me.cgroup, c"0".as_ptr().cast(), 1) != 1 {
            fail(me, SpawnStage::Cgroup);
        }
        if libc::setsid() < 0 {
            fail(me, SpawnStage::Session);
        }
        for at in 0..me.reset_len {
            let default = KernelAction::default();
            if rt_sigaction(*me.reset.add(at), &raw const default) != 0 {
                fail(me, SpawnStage::Session);
            }
        }
        if libc::dup2(me.stdin, 0) < 0 {
            fail(me, SpawnStage::Session);
        }
        if me.output >= 0 && (libc::dup2(me.output, 1) < 0 || libc::dup2(me.output, 2) < 0) {
            fail(me, SpawnStage::Log);
        }
        // Kernels before 5.11 do not know this; the daemon's own descriptors are closed on exec all the same.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if me.pid_file >= 0 && !write_pid(me) {
            fail(me, SpawnStage::PidFile);
        }
        if me.descriptor >= 0 && !give_descriptor(me) {
            fail(me, SpawnStage::Session);
        }
        if let Err(stage) = (*me.confinement).apply() {
            fail(me, stage);
        }
        if !me.wd.is_null() && libc::chdir(me.wd) < 0 {
            fail(me, SpawnStage::WorkingDirectory);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        execute(me)
    }
}

/// Opens the descriptor under its number, and keeps it open when the command is executed.
///
/// # Safety
/// As for [`run`].
unsafe fn give_descriptor(me: &Child) -> bool {
    // SAFETY: only numbers are passed.
    unsafe { libc::dup2(me.descriptor, me.descriptor_as) >= 0 && libc::fcntl(me.descriptor_as, libc::F_SETFD, 0) >= 0 }
}

/// Writes the process id into the pid file, and gives that its name.
///
/// # Safety
/// As for [`run`].
unsafe fn write_pid(me: &Child) -> bool {
    let mut digits = [b'\n'; 12];
    let mut at = digits.len() - 1;
    // SAFETY: takes nothing, and cannot fail.
    let mut left = unsafe { libc::getpid() }.unsigned_abs();
    while left > 0 || at == digits.len() - 1 {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    let length = digits.len() - at;
    // SAFETY: the bytes are a local, and the names end with a null byte.
    unsafe {
        let written = libc::write(me.pid_file, digits.as_ptr().add(at).cast(), length);
        let directory = me.pid_file_directory;
        written == length.cast_signed() && libc::renameat(directory, me.pid_file_new, directory, me.pid_file_name) == 0
    }
}

/// Tries the candidates. An error other than that a file does not exist takes precedence.
///
/// # Safety
/// As for [`run`].
unsafe fn execute(me: &mut Child) -> ! {
    let mut worst = libc::ENOENT;
    // SAFETY: the lists end with a null pointer, and were laid out by `spawn`.
    unsafe {
        let mut candidate = me.candidates;
        while !(*candidate).is_null() {
            libc::execve(*candidate, me.argv, me.envp);
            let errno = *libc::__errno_location();
            if worst == libc::ENOENT && errno != libc::ENOTDIR {
                worst = errno;
            }
            candidate = candidate.add(1);
        }
        *libc::__errno_location() = worst;
        fail(me, SpawnStage::Exec)
    }
}

/// Tells the parent which step failed, and ends.
///
/// # Safety
/// Only in the child.
unsafe fn fail(me: &mut Child, stage: SpawnStage) -> ! {
    me.failed_stage = stage;
    // SAFETY: the location is valid in every thread; the child shares that of its parent, which stands still.
    unsafe {
        me.failed_errno = *libc::__errno_location();
        libc::_exit(127)
    }
}

fn pointers<'a>(texts: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    texts.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

fn block_all_signals() -> libc::sigset_t {
    // SAFETY: both sets are locals, and the calls cannot fail with these arguments.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask is one that was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, ptr::from_ref(mask), ptr::null_mut()) };
}

/// Reaps the child of a failed start.
fn reap_failed_child(pid: i32) {
    // SAFETY: no memory is passed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
}

/// A signal action, as the kernel stores it. The first word is the handler; all zero is the default.
type KernelAction = [u64; 4];

/// The raw system call: the function of the C library refuses the signals that it uses itself, which may be ignored as
/// well.
///
/// # Safety
/// The pointer must point to an action.
unsafe fn rt_sigaction(signal: c_int, new: *const KernelAction) -> libc::c_long {
    // SAFETY: as for this function; the last argument is the size of the kernel's set of signals.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, ptr::null_mut::<KernelAction>(), 8_usize) }
}

/// Sends a signal of any number, also of those that have no name.
pub fn send(pid: i32, signal: c_int) {
    // SAFETY: no memory is passed.
    unsafe { libc::kill(pid, signal) };
}

/// Makes this process ignore the interrupt of the terminal.
pub fn ignore_interrupts() {
    ignore(libc::SIGINT);
}

/// Makes this process ignore SIGXFSZ, so that a write beyond the file size limit fails instead.
pub fn ignore_file_limit() {
    ignore(libc::SIGXFSZ);
}

fn ignore(signal: c_int) {
    // SAFETY: no handler is installed, so none can run at a bad moment.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Takes a descriptor that this process was started with; `None` if nothing is open under this number. Each can be taken
/// once.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: only the flags are read; a descriptor that is not open is answered with an error.
    let is_open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and by the contract of this function nothing else in this process owns it.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets close-on-exec on a descriptor that any code may have opened.
pub fn set_close_on_exec(fd: c_int) {
    // SAFETY: only the flag is set; a descriptor that is not open is answered with an error.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}
