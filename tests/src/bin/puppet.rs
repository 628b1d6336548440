//! A program to be run by tests: it does what its arguments say, and nothing else.
//!
//! `sleep MS` · `exit MS CODE` · `raise MS SIGNO` · `stubborn` (ignores TERM and INT) · `slowterm MS CODE` (takes that
//! long to end after a TERM) · `spawn` (leaves a child in its group) · `count FILE MS CODE` (adds a line to the file) ·
//! `report FILE` (writes what it was given: status, descriptors, variables) · `daemonise` (leaves a child in its group and
//! ends well) · `forker FILE HOW` (leaves a daemon in a session of its own, and its process id in the file; HOW is what
//! the daemon does) · `notify MS TEXT..` (sends each text to `$NOTIFY_SOCKET`, with a pause before each) · `alive MS`
//! (sends `READY=1`, and then watchdog pings) · `serve PORT FILE`
//! (answers HTTP with the status in the file) · `race HOME VICTIM` (replaces what is in the first directory by links to the
//! second, fifos and hard links, for ever) · `escape` (has a child that makes a session of its own) · `stray` (has a
//! grandchild that loses its parent)
//!
//! As the binary of an upgrade it passes the takeover check, and then hangs.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::symlink,
            net::{SocketAddr, UnixDatagram},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Child, Command, exit},
    time::Duration,
};

use nix::{
    sys::{
        signal::{SigSet, Signal, raise},
        stat::Mode,
    },
    unistd::{mkfifo, pause, setsid},
};

#[expect(clippy::zombie_processes, reason = "to leave its children to others is a part that a puppet plays")]
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<i32>().ok()).unwrap_or(0);
    let rest = |at: usize| Duration::from_millis(u64::try_from(number(at)).unwrap_or(0));
    if words.iter().any(|word| word == "--inherit") {
        hang();
    }
    match words.first().map_or("", String::as_str) {
        "check-takeover" => check_takeover(&words),
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
        "forker" => {
            let what: Vec<&str> = ["hide"].into_iter().chain(words[2..].iter().map(String::as_str)).collect();
            let daemon = child(&what);
            // As daemons do, the pid file is replaced atomically.
            let new = format!("{}.new", words[1]);
            fs::write(&new, format!("{}\n", daemon.id())).expect("a file");
            fs::rename(new, &words[1]).expect("a file");
        }
        "notify" => {
            for text in &words[2..] {
                wait(rest(1));
                notify(text);
            }
            wait_for_ever();
        }
        "alive" => {
            notify("READY=1");
            loop {
                wait(rest(1));
                notify("WATCHDOG=1");
            }
        }
        "serve" => serve(&words[1], &words[2]),
        "race" => race(Path::new(&words[1]), Path::new(&words[2])),
        "daemonise" => drop(child(&["sleep", "1000000"])),
        "escape" => drop(child(&["hide"]).wait()),
        "hide" => {
            setsid().expect("a session");
            match words.get(1).map_or("", String::as_str) {
                "scrubbed" => scrubbed(&["hidden"]),
                "short" => wait(rest(2)),
                _ => wait_for_ever(),
            }
        }
        "hidden" => wait_for_ever(),
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

/// Continues as a puppet without environment variables, like a daemon that overwrites its environment.
fn scrubbed(words: &[&str]) -> ! {
    let own = std::env::current_exe().expect("a path");
    let error = Command::new(own).args(words).env_clear().exec();
    panic!("cannot go on: {error}");
}

fn notify(text: &str) {
    let address = std::env::var("NOTIFY_SOCKET").expect("a notify socket");
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).expect("a name"),
        None => SocketAddr::from_pathname(address).expect("a path"),
    };
    let socket = UnixDatagram::unbound().expect("a socket");
    // gaggled may not be running.
    let _ = socket.send_to_addr(text.as_bytes(), &address);
}

/// Passes the takeover check by executing the real gaggled.
fn check_takeover(words: &[String]) -> ! {
    let gaggled = std::env::current_exe().expect("a path").with_file_name("gaggled");
    let error = Command::new(gaggled).args(words).exec();
    panic!("cannot go on: {error}");
}

/// Blocks all signals and waits for ever.
fn hang() -> ! {
    SigSet::all().thread_block().expect("a mask");
    wait_for_ever();
}

/// Answers every request with the status that the file then contains.
fn serve(port: &str, file: &str) -> ! {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("a port");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a request");
        let status = fs::read_to_string(file).unwrap_or_else(|_| "200".to_owned());
        let _ = write!(stream, "HTTP/1.1 {} Word\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", status.trim());
    }
    unreachable!("there is always another connection");
}

/// Attacks a process that opens `home/logs/log` or `home/log` and the files beside it: puts links, fifos and hard links in the
/// place of everything on the way, and takes them away again.
fn race(home: &Path, victim: &Path) -> ! {
    let (logs, away) = (home.join("logs"), home.join("away"));
    let secret = victim.join("secret");
    loop {
        let _ = fs::rename(&logs, &away);
        let _ = symlink(victim, &logs);
        let _ = fs::remove_file(&logs);
        let _ = fs::rename(&away, &logs);
        for directory in [home, &logs] {
            let names = ["log", "log.1", "log.1.gz", "log.1.new", "log.new", "log.gaggled", "log.2"];
            for (turn, name) in names.into_iter().enumerate() {
                let file = directory.join(name);
                let bait = directory.join("bait");
                let _ = match turn % 3 {
                    0 => mkfifo(&bait, Mode::S_IRWXU).map_err(Into::into),
                    1 => fs::hard_link(&secret, &bait),
                    _ => symlink(&secret, &bait),
                };
                let _ = fs::rename(&bait, &file);
                let _ = symlink(&secret, &bait);
                let _ = fs::rename(&bait, &file);
                let _ = fs::remove_file(&file);
            }
        }
    }
}

/// Starts another puppet.
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
