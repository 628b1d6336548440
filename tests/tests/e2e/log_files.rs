//! The output of programs: in rotated logs, merged with their names, to a reader that stands still, to a full disk; and
//! how `gaggled_controller logs` shows it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use gaggled_core::protocol::{Action, Selection};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, binary, directory, possible},
    import_harness::said,
};
use nix::sys::signal::Signal;

/// A program that writes numbered lines to its log, and pauses for 50 ms after each hundred.
const COUNT: &str = "i=0; while [ $i -lt @LINES@ ]; do i=$((i+1)); echo line $i; [ $((i % 100)) = 0 ] && sleep 0.05; done; exec sleep 100000";

fn counter(name: &str, lines: u32, fields: &str) -> String {
    let count = COUNT.replace("@LINES@", &lines.to_string());
    format!("\"{name}\": (shell: \"{count}\", log: \"@DIR@/{name}.log\", {fields}),")
}

/// Every line of a log, the oldest first, compressed or not.
fn all_lines(directory: &Path, name: &str) -> Vec<String> {
    let path = directory.join(format!("{name}.log"));
    let older = (1..100).rev().filter_map(|number| {
        let plain = format!("{}.{number}", path.display());
        fs::read(&plain).ok().or_else(|| {
            let output =
                Command::new("gzip").args(["-dc", &format!("{plain}.gz")]).stderr(Stdio::null()).output().ok()?;
            output.status.success().then_some(output.stdout)
        })
    });
    let bytes: Vec<u8> = older.flatten().chain(fs::read(&path).unwrap_or_default()).collect();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

#[test]
fn a_log_is_begun_anew_and_loses_nothing_when_gaggled_or_its_logger_is_killed() {
    let mut daemon = Daemon::new(&format!(
        "{} {}",
        counter("plain", 3000, "rotate: (size: \"4k\", max_files: 50)"),
        counter("small", 3000, "rotate: (size: \"4k\", max_files: 50, compress: true, timestamps: true)"),
    ));
    daemon.wait_up("plain", 1);
    let path = daemon.directory.path().to_owned();
    let some = path.clone();
    daemon.wait_outside("some output", move || all_lines(&some, "plain").len() > 300);
    daemon.kill("logger", Signal::SIGKILL);
    daemon.kill_daemon();
    let some = path.clone();
    daemon.wait_outside("more output", move || all_lines(&some, "plain").len() > 1000);
    daemon.kill_all();
    let mut daemon = daemon.again();
    daemon.wait_up("plain", 1);
    let whole = path.clone();
    daemon.wait_outside("everything", move || {
        ["plain", "small"]
            .iter()
            .all(|name| all_lines(&whole, name).last().is_some_and(|line| line.ends_with("line 3000")))
    });
    let expected: Vec<String> = (1..=3000).map(|number| format!("line {number}")).collect();
    // Only lines that the logger had read and not written when it was killed can be missing.
    let plain = all_lines(&path, "plain");
    assert!(plain.len() > 2500 && plain.iter().all(|line| expected.contains(line)), "{} lines", plain.len());
    assert!(plain.is_sorted_by_key(|line| line[5..].parse::<u32>().unwrap_or(0)));
    let stamped = all_lines(&path, "small");
    assert!(
        stamped.iter().all(|line| line.split(' ').next().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()))
    );
    assert!(path.join("small.log.1.gz").exists() && path.join("plain.log.1").exists());
    let events = said(&daemon.tool("gaggled_controller", &["events", "--program", "plain"])).1;
    assert_eq!(daemon.dump()["plain"]["instance"], 1, "{events}");
    let shown = said(&daemon.tool("gaggled_controller", &["logs", "plain", "-n", "3"]));
    assert_eq!(shown, (0, "line 2998\nline 2999\nline 3000\n".to_owned()));
    let many = said(&daemon.tool("gaggled_controller", &["logs", "plain", "-n", "2400"]));
    assert_eq!((many.0, many.1.lines().count()), (0, 2400), "also from older files");
    let shown = said(&daemon.tool("gaggled_controller", &["logs", "small", "--since", "1h ago"]));
    assert_eq!((shown.0, shown.1.lines().count()), (0, stamped.len()));
    let refused = said(&daemon.tool("gaggled_controller", &["logs", "plain", "--since", "1h ago"]));
    assert!(refused.0 == 1 && refused.1.contains("have no time"), "{refused:?}");
    assert_eq!(said(&daemon.tool("gaggled_controller", &["logs", "nosuch"])).0, 3);
    // The logger ends last, after the programs that write to it.
    daemon.end();
    daemon.verify();
}

#[test]
fn a_log_is_followed_while_it_is_begun_anew() {
    let mut daemon = Daemon::new(
        "\"a\": (shell: \"while read line; do echo $line; done < @DIR@/words; exec sleep 100000\", log: \"@DIR@/a.log\", rotate: (size: 4096), autostart: false),",
    );
    let words: String = (0..2000).map(|number| format!("word {number}\n")).collect();
    fs::write(daemon.directory.path().join("words"), words).expect("a file");
    fs::write(daemon.directory.path().join("a.log"), "").expect("a file");
    let mut tail = Command::new(binary("gaggled_controller"))
        .args(["-u", &daemon.control, "logs", "a", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a tool");
    let mut lines = BufReader::new(tail.stdout.take().expect("a pipe")).lines();
    daemon.must(Action::Up(Selection { programs: vec!["a".to_owned()], wait: true, timeout_ms: None }));
    let mut last = String::new();
    while last != "word 1999" {
        let Some(line) = lines.next() else {
            let output = tail.wait_with_output().expect("its end");
            panic!("after {last}: {}", String::from_utf8_lossy(&output.stderr));
        };
        last = line.expect("text");
    }
    tail.kill().expect("it runs");
    tail.wait().expect("its end");
    daemon.wait_up("a", 1);
}

#[test]
fn output_is_merged_with_the_names_of_programs() {
    let directory = Arc::new(directory());
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", prefix_output: true), programs: {\
                \"a\": (shell: \"printf 'half a '; sleep 0.2; echo line; exec sleep 100000\"), \
                \"longer\": (shell: \"echo out; echo err >&2; exec sleep 100000\"), })";
    let mut daemon = Daemon::with(text, directory.clone(), &DaemonOptions::default());
    let log = directory.path().join("log");
    let read = move || fs::read_to_string(&log).unwrap_or_default();
    daemon.wait_outside("all lines", || {
        ["a      | half a line\n", "longer | out\n", "longer | err\n"].iter().all(|line| read().contains(line))
    });
    let refused = said(&daemon.tool("gaggled_controller", &["logs", "a"]));
    assert!(refused.0 == 1 && refused.1.contains("its output is that of gaggled"), "{refused:?}");
}

fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// Test 18: the output of a program is not read, and only that program waits.
#[test]
fn a_reader_that_stands_still_holds_up_nobody_else() {
    let directory = Arc::new(directory());
    let dir = directory.path().display();
    let config = directory.path().join("system.ron");
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\", state_directory: \"{dir}/state\"), programs: {{\
         \"noisy\": (command: \"head\", argv: [\"-c\", \"1073741824\", \"/dev/zero\"], mode: Once), \
         \"quiet\": (command: \"sleep\", argv: [\"100000\"]), }})"
    );
    fs::write(&config, text).expect("a file");
    let mut gaggled = Command::new(binary("gaggled"))
        .arg("-c")
        .arg(&config)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("gaggled");
    let mut unread = gaggled.stdout.take().expect("a pipe");
    let control = format!("ipc://{dir}/control.ipc");
    let ask = |arguments: &[&str]| {
        said(
            &Command::new(binary("gaggled_controller"))
                .args(["-u", &control])
                .args(arguments)
                .output()
                .expect("a tool"),
        )
    };
    let caller = gaggled_gateways::client::ControlClient::dial_whenever(&control).expect("a url");
    let status = caller
        .call(&gaggled_core::protocol::Request::new("", Action::Status), gaggled_tests::harness::PATIENCE)
        .expect("an answer");
    let status: serde_json::Value = serde_json::from_str(status.body.expect("a body").get()).expect("JSON");
    let daemon_pid = i32::try_from(status["pid"].as_i64().expect("a number")).expect("a small number");
    assert_eq!(ask(&["wait"]).0, 0);
    let before = resident(daemon_pid);
    for round in 0..20 {
        assert_eq!(ask(&["restart", "quiet"]).0, 0, "round {round}");
    }
    assert!(resident(daemon_pid) < before + 2048, "{before} kB, and then {} kB", resident(daemon_pid));
    let noisy = ask(&["--json", "dump", "noisy"]).1;
    assert!(noisy.contains("\"phase\":\"up\""), "it waits: {noisy}");
    assert_eq!(ask(&["shutdown"]).0, 0);
    assert_eq!(gaggled.wait().expect("its end").code(), Some(0));
    let mut rest = Vec::new();
    unread.read_to_end(&mut rest).expect("what was written");
    assert!(rest.len() < 1 << 20, "nobody has kept it: {} bytes", rest.len());
}

/// A disk that is unmounted at the end of its test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// With `overflow: Drop` a full disk stops neither the program nor the others, and the log says how much is missing.
#[test]
fn a_full_disk_costs_output_and_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can make a disk that is small");
        return;
    }
    let directory = Arc::new(directory());
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).expect("a directory");
    let mount =
        |arguments: &[&str]| Command::new("mount").args(arguments).arg(&disk).status().expect("mount").success();
    if !mount(&["-t", "tmpfs", "-o", "size=64k", "none"]) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let _mounted = Mounted(disk.clone());
    let dir = directory.path().display();
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\"), programs: {{\
         \"a\": (shell: \"i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo a line of some length number $i; done; echo done > @DIR@/done; \
         while [ ! -e @DIR@/go ]; do sleep 0.05; done; echo the end; exec sleep 100000\", log: \"@DIR@/disk/a.log\", \
         rotate: (size: \"10M\", overflow: Drop)), }})"
    );
    let mut daemon = Daemon::with(&text, directory.clone(), &DaemonOptions::default());
    let done = directory.path().join("done");
    daemon.wait_outside("the program to go on", move || done.exists());
    assert!(mount(&["-o", "remount,size=10m"]), "room");
    fs::write(directory.path().join("go"), "").expect("a file");
    let log = disk.join("a.log");
    daemon.wait_outside("the end of it", move || fs::read_to_string(&log).unwrap_or_default().contains("the end\n"));
    let text = fs::read_to_string(disk.join("a.log")).expect("a log");
    assert!(text.contains("bytes of output were dropped here"), "{text}");
    assert_eq!(daemon.dump()["a"]["instance"], 1);
    daemon.end();
}

/// Another list of logs is taken with a reload, and all programs can be stopped although the logger writes for them.
#[test]
fn a_reload_takes_other_logs_and_everything_can_go_down() {
    let talker = |name: &str, log: &str| {
        format!("\"{name}\": (shell: \"while :; do echo {name}; sleep 0.1; done\", log: \"@DIR@/{log}\", rotate: ()),")
    };
    let bye = "\"bye\": (group: \"site\", levels: [\"stop\"], mode: Wait, shell: \"echo bye\", log: \"@DIR@/bye.log\", rotate: ()), \
               \"site-user\": (group: \"site\", command: \"sleep\", argv: [\"100000\"]),";
    let mut daemon = Daemon::new(&format!("{} {bye}", talker("a", "a.log")));
    daemon.wait_up("a", 1);
    let path = daemon.directory.path().to_owned();
    let has = |name: &str| {
        let file = path.join(name);
        move || fs::read_to_string(&file).is_ok_and(|text| !text.is_empty())
    };
    daemon.wait_outside("the first log", has("a.log"));
    let file = path.join("system.ron");
    let text = fs::read_to_string(&file).expect("a configuration");
    let moved = text.replace("/a.log", "/moved.log");
    let at = moved.find("\"a\"").expect("the program");
    let added = talker("b", "b.log").replace("@DIR@", &path.display().to_string());
    fs::write(&file, format!("{}{added}{}", &moved[..at], &moved[at..])).expect("a configuration");
    let before = daemon.daemon_pid();
    let (code, told) = said(&daemon.tool("gaggled_controller", &["reload"]));
    assert!(code == 0 && told.contains("restart  logger"), "{told}");
    daemon.wait_for_another(before);
    daemon.wait_outside("the log that was moved", has("moved.log"));
    daemon.wait_outside("the log that was added", has("b.log"));
    let (code, told) = said(&daemon.tool("gaggled_controller", &["down"]));
    assert_eq!(code, 0, "{told}");
    daemon.wait_outside("the last word", has("bye.log"));
    assert_eq!(daemon.dump()["logger"]["up"], true);
    daemon.end();
    daemon.verify();
}

#[test]
fn a_log_is_written_wherever_the_journal_has_found_a_place() {
    let directory = Arc::new(directory());
    let dir = directory.path().display();
    let mount = format!(
        "mount -t tmpfs tmpfs /run && mkdir {dir}/state && mount -t tmpfs -o ro,mode=700 tmpfs {dir}/state && exec \"$@\""
    );
    if !possible(&["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]) {
        return;
    }
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\"), programs: {{{}}})",
        counter("kept", 30, "rotate: (size: \"4k\", timestamps: true)")
    );
    let wrapper = ["unshare", "-m", "sh", "-c", &mount, "sh"];
    let mut daemon =
        Daemon::with(&text, directory.clone(), &DaemonOptions { wrapper: &wrapper, ..DaemonOptions::default() });
    daemon.wait_up("kept", 1);
    let events = said(&daemon.tool("gaggled_controller", &["events"])).1;
    assert!(events.contains("so it is kept in /run/gaggled/journal for now"), "{events}");
    let path = directory.path().to_owned();
    let written = || all_lines(&path, "kept").len() == 30;
    daemon.wait_outside("what it has written", written);
    daemon.kill_daemon();
    daemon.kill("kept", Signal::SIGKILL);
    daemon.wait_up("kept", 2);
    daemon.wait_outside("what it has written again", || all_lines(&path, "kept").len() == 60);
    daemon.end();
}
