//! What a test asks the machine: processes, ports, exit codes and the time.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

/// The parent of a process. That of the daemon is its subreaper, which may not be the process that the test has
/// started.
pub fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let parent = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok());
    parent.expect("a process has a parent")
}

/// Whether a process is one of gaggled's own.
pub(super) fn is_gaggled(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "gaggled")
}

/// Whether a command succeeds on this machine; prints a notice if not.
pub fn possible(words: &[&str]) -> bool {
    let done = Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success());
    if !done {
        eprintln!("skipped: {} is not possible here", words.join(" "));
    }
    done
}

/// Whether a process exists.
pub fn exists(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A tcp port that is free now and is not given to others: it is below the range from which the kernel takes the ports
/// of outgoing connections, and no other test of this process gets the same.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    (0..COUNT)
        .map(|_| FIRST + (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// The exit code of a tool.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "end-to-end tests live in real time")]
pub fn now() -> Instant {
    Instant::now()
}
