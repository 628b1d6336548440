//! Reads information about processes from `/proc`.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    time::Duration,
};

use gaggled_core::process::StartTime;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `Z` for one that has ended and has not been reaped.
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub start_time: StartTime,
    /// The wait status, while it is a zombie.
    pub exit_code: i32,
}

/// How much is read at first, in bytes.
const FIRST_READ: usize = 4096;

/// Reads a file with few system calls: the kernel does not tell the sizes of these. In a file of one record, `stat` or
/// `environ`, a short read is the last; in a list only an empty one is.
fn read(path: &str, is_list: bool) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let (mut bytes, mut length) = (vec![0; FIRST_READ], 0);
    loop {
        let count = file.read(bytes.get_mut(length..)?).ok()?;
        length += count;
        if count == 0 || !is_list && length < bytes.len() {
            bytes.truncate(length);
            return Some(bytes);
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
}

/// The fields of a process; `None` if there is none.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let bytes = read(&format!("/proc/{pid}/stat"), false)?;
    let text = String::from_utf8_lossy(&bytes);
    // The name stands in brackets and may hold anything.
    let fields: Vec<&str> = text.trim_end().rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<i32>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        start_time: StartTime(fields.get(19)?.parse().ok()?),
        exit_code: number(49).unwrap_or(0),
    })
}

impl Stat {
    /// Whether it has ended and was not reaped by its parent. Some parents never reap.
    pub(crate) fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

/// When a process began; unknown if there is none.
pub(crate) fn start_time(pid: i32) -> StartTime {
    stat(pid).map_or_else(StartTime::default, |stat| stat.start_time)
}

/// This moment, as the kernel counts the start times of processes.
pub(crate) fn now() -> StartTime {
    ticks(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
}

/// The moment this long ago, as the kernel counts the start times of processes.
pub(crate) fn ago(span: Duration) -> StartTime {
    before(now(), span)
}

/// The moment this long before another one.
pub(crate) fn before(moment: StartTime, span: Duration) -> StartTime {
    StartTime(moment.0.saturating_sub(ticks(span).0))
}

fn ticks(span: Duration) -> StartTime {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    StartTime(u64::try_from(span.as_millis()).unwrap_or(u64::MAX).saturating_mul(ticks) / 1000)
}

/// The real user id of a process.
pub(crate) fn uid(pid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// The name of a process.
pub(crate) fn name(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned())
}

/// All processes.
pub(crate) fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The children of one thread of a process. An orphan becomes the child of the first thread of a subreaper.
pub(crate) fn children(pid: i32, thread: i32) -> Vec<i32> {
    let list = read(&format!("/proc/{pid}/task/{thread}/children"), true).unwrap_or_default();
    let text = String::from_utf8_lossy(&list);
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The children of all threads of a process.
pub(crate) fn all_children(pid: i32) -> Vec<i32> {
    let folder = format!("/proc/{pid}/task");
    // The links of this directory are two and one for each thread.
    if fs::metadata(&folder).is_ok_and(|folder| folder.nlink() == 3) {
        return children(pid, pid);
    }
    let threads = fs::read_dir(folder).into_iter().flatten().flatten();
    let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    threads.flat_map(|thread| children(pid, thread)).collect()
}

/// The processes of a group that have not ended.
pub(crate) fn members(group: i32) -> Vec<i32> {
    all().filter(|pid| stat(*pid).is_some_and(|stat| stat.group == group && !stat.is_zombie())).collect()
}

/// The values of variables in the environment that a process was started with.
pub(crate) fn variables<const N: usize>(pid: i32, names: [&str; N]) -> [Option<String>; N] {
    let environment = read(&format!("/proc/{pid}/environ"), false).unwrap_or_default();
    names.map(|name| {
        environment.split(|byte| *byte == 0).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(std::str::from_utf8(value).ok()?.to_owned())
        })
    })
}

/// The value of a variable in the environment that a process was started with.
pub(crate) fn variable(pid: i32, name: &str) -> Option<String> {
    let [value] = variables(pid, [name]);
    value
}
