//! A program to be run by tests: it does what its arguments say, and nothing else.
//!
//! `sleep MS` · `exit MS CODE` · `raise MS SIGNO` · `stubborn` (ignores TERM and INT) · `slowterm MS CODE` (takes that
//! long to end after a TERM) · `spawn` (leaves a child in its group) · `count FILE MS CODE` (adds a line to the file) ·
//! `report FILE` (writes what it was given: status, descriptors, variables) · `daemonise` (leaves a child in its group and
//! ends well) · `escape` (has a child that makes a session of its own) · `stray` (has a grandchild that is nobody's)

use std::{
    fs::{self, OpenOptions},
    io::Write,
    process::{Child, Command, exit},
    time::Duration,
};

use nix::{
    sys::signal::{SigSet, Signal, raise},
    unistd::{pause, setsid},
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<i32>().ok()).unwrap_or(0);
    let rest = |at: usize| Duration::from_millis(u64::try_from(number(at)).unwrap_or(0));
    match words.first().map_or("", String::as_str) {
        "sleep" => wait(rest(1)),
        "exit" => {
            wait(rest(1));
            exit(number(2));
        }
        "raise" => {
            wait(rest(1));
            let signal = Signal::try_from(number(2)).expect("a signal");
            // The runtime catches the first of some signals.
            loop {
                raise(signal).expect("a signal to itself");
            }
        }
        "stubborn" => {
            ignore(&[Signal::SIGTERM, Signal::SIGINT]);
            wait_for_ever();
        }
        "slowterm" => {
            let terminate = only(Signal::SIGTERM);
            terminate.thread_block().expect("a mask");
            terminate.wait().expect("a signal");
            wait(rest(1));
            exit(number(2));
        }
        "spawn" => {
            child(&["sleep", "1000000"]).wait().expect("its end");
        }
        "daemonise" => drop(child(&["sleep", "1000000"])),
        "escape" => drop(child(&["hide"]).wait()),
        "hide" => {
            setsid().expect("a session");
            wait_for_ever();
        }
        "stray" => {
            child(&["parent"]).wait().expect("its end");
            wait_for_ever();
        }
        "parent" => drop(child(&["exit", "300", "0"])),
        "count" => {
            let path = &words[1];
            let mut file = OpenOptions::new().append(true).create(true).open(path).expect("a file");
            writeln!(file, "{}", std::process::id()).expect("a line");
            wait(rest(2));
            exit(number(3));
        }
        "report" => {
            fs::write(&words[1], report()).expect("a file");
            wait_for_ever();
        }
        other => panic!("{other:?} is no part for a puppet"),
    }
}

/// Another puppet.
fn child(words: &[&str]) -> Child {
    let own = std::env::current_exe().expect("a path");
    Command::new(own).args(words).spawn().expect("a child")
}

/// What this process was given.
fn report() -> String {
    let mut text = fs::read_to_string("/proc/self/status").expect("a status");
    let stat = fs::read_to_string("/proc/self/stat").expect("a status");
    let session = stat.rsplit_once(") ").expect("fields").1.split(' ').nth(3).expect("a session");
    text.push_str(&format!("Session:\t{session}\nOwn:\t{}\n", std::process::id()));
    for fd in fs::read_dir("/proc/self/fd").expect("descriptors").flatten() {
        let target = fs::read_link(fd.path()).map_or_else(|_| "gone".into(), |path| path.display().to_string());
        if !target.ends_with("/fd") {
            text.push_str(&format!("Fd:\t{} {target}\n", fd.file_name().display()));
        }
    }
    for (name, value) in std::env::vars() {
        text.push_str(&format!("Env:\t{name}={value}\n"));
    }
    text
}

fn only(signal: Signal) -> SigSet {
    let mut set = SigSet::empty();
    set.add(signal);
    set
}

fn ignore(signals: &[Signal]) {
    for signal in signals {
        only(*signal).thread_block().expect("a mask");
    }
}

fn wait_for_ever() -> ! {
    loop {
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "to take time is what a puppet is for")]
fn wait(span: Duration) {
    std::thread::sleep(span);
}
