//! What many nodes on one machine need: how long they take to join and to have a new configuration, memory, and time of the
//! processors while nothing happens.
//!
//! `cargo run --release --package gaggled_cluster --example many_nodes -- [NODES]`, after `cargo build --release --workspace`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use gaggled_tests::harness::{binary, directory};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[path = "../tests/etcd/harness.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;

use harness::Etcd;

/// For how long the processors are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let nodes: usize = std::env::args().nth(1).and_then(|nodes| nodes.parse().ok()).unwrap_or(100);
    let Some(etcd) = Etcd::start() else { return };
    let root = directory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let begun = now();
    let children: Vec<Child> = (0..nodes).map(|number| start(&etcd, root.path(), number)).collect();
    let started = begun.elapsed();
    runtime.block_on(sessions(&etcd, nodes));
    println!(
        "{nodes} nodes: started in {:.1} s, all have a session after {:.1} s",
        seconds(started),
        seconds(begun.elapsed())
    );
    for (what, argument) in [("three programs on each", "1000001"), ("one of them with another argument", "1000002")] {
        let begun = now();
        publish(root.path(), nodes, argument);
        println!("published to all ({what}) in {:.2} s", seconds(begun.elapsed()));
    }
    let (daemons, gateways) = processes(root.path());
    let memory = |pids: &BTreeSet<i32>| pids.iter().map(|pid| pss(*pid)).sum::<u64>() / 1024 / nodes as u64;
    println!("memory of a node: {} MiB of gaggled, {} MiB of its gateway (PSS)", memory(&daemons), memory(&gateways));
    let members: BTreeSet<i32> = etcd.pids().into_iter().collect();
    let used = || [&daemons, &gateways, &members].map(|pids| pids.iter().map(|pid| ticks(*pid)).sum::<u64>());
    let before = used();
    runtime.block_on(idle());
    let after = used();
    // In thousandths of a percent of one processor.
    let share = |at: usize, of: u64| (after[at] - before[at]) * 1000 / IDLE.as_secs() / of;
    let (all, one) = (nodes as u64, 1);
    println!(
        "idle, in thousandths of a percent of a processor: {} for the gaggled of a node, {} for its gateway, {} for the members of etcd",
        share(0, all),
        share(1, all),
        share(2, one)
    );
    let begun = now();
    for child in &children {
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a small number")), Signal::SIGTERM);
    }
    for mut child in children {
        let _ = child.wait();
    }
    println!("all have ended after {:.1} s", seconds(begun.elapsed()));
}

#[expect(clippy::disallowed_methods, reason = "this measures a time in which nothing happens")]
async fn idle() {
    tokio::time::sleep(IDLE).await;
}

fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

fn home(root: &Path, number: usize) -> PathBuf {
    root.join(format!("n{number}"))
}

/// Starts a node that has its programs from the published configuration.
fn start(etcd: &Etcd, root: &Path, number: usize) -> Child {
    let home = home(root, number);
    fs::create_dir(&home).expect("a directory");
    let urls: Vec<String> = etcd.ports.iter().map(|port| format!("\"http://127.0.0.1:{port}\"")).collect();
    let text = format!(
        "(gaggled: (eventurl: \"ipc://{0}/events.ipc\", controlurl: \"ipc://{0}/control.ipc\", state_directory: \"{0}/state\",
            cluster: (name: \"test\", node: \"n{number}\", etcd: [{1}], config: Published)))",
        home.display(),
        urls.join(", ")
    );
    fs::write(home.join("system.ron"), text).expect("a configuration");
    let log = fs::File::create(home.join("log")).expect("a log");
    Command::new(binary("gaggled"))
        .arg("-c")
        .arg(home.join("system.ron"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("gaggled")
}

/// Waits until so many nodes have a session.
async fn sessions(etcd: &Etcd, nodes: usize) {
    const PREFIX: &str = "/gaggled/test/alive/";
    let mut client = Client::connect([format!("http://127.0.0.1:{}", etcd.ports[0])], None).await.expect("etcd");
    let got = client.get(PREFIX, Some(GetOptions::new().with_prefix())).await.expect("an answer");
    let mut known: BTreeSet<Vec<u8>> = got.kvs().iter().map(|kv| kv.key().to_vec()).collect();
    let from = got.header().map_or(0, etcd_client::ResponseHeader::revision) + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut stream = client.watch(PREFIX, Some(options)).await.expect("a watch");
    while known.len() < nodes {
        let message = stream.message().await.expect("a message").expect("a message");
        let puts = message.events().iter().filter(|event| event.event_type() == EventType::Put);
        known.extend(puts.filter_map(|event| Some(event.kv()?.key().to_vec())));
    }
}

/// Publishes three programs for all nodes, and waits until all have them.
fn publish(root: &Path, nodes: usize, argument: &str) {
    let hosts: Vec<String> = (0..nodes).map(|number| format!("\"n{number}\"")).collect();
    let program = |name: &str, argument: &str| {
        format!(
            "\"{name}\": (command: \"{}\", argv: [\"sleep\", \"{argument}\"], on: All(\"*\")),",
            binary("puppet").display()
        )
    };
    let programs = [program("a", argument), program("b", "1000000"), program("c", "1000000")].concat();
    let site = root.join("site.ron");
    fs::write(&site, format!("(hosts: [{}], programs: {{{programs}}})", hosts.join(", "))).expect("a file");
    let published = Command::new(binary("gaggled_clustergate"))
        .arg("-c")
        .arg(home(root, 0).join("system.ron"))
        .args(["publish", "--yes", "--timeout", "300"])
        .arg(&site)
        .output()
        .expect("the gateway");
    let said = String::from_utf8_lossy(&published.stdout).into_owned();
    assert!(published.status.success(), "{said}{}", String::from_utf8_lossy(&published.stderr));
    assert_eq!(said.lines().filter(|line| line.contains("has revision")).count(), nodes, "{said}");
}

/// The processes of gaggled, and of its gateways.
fn processes(root: &Path) -> (BTreeSet<i32>, BTreeSet<i32>) {
    let (mut daemons, mut gateways) = (BTreeSet::new(), BTreeSet::new());
    let root = root.display().to_string();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.contains(&root) && words.contains("gaggled_clustergate") {
            gateways.insert(pid);
        } else if words.contains(&root) && words.contains("gaggled") {
            daemons.insert(pid);
        }
    }
    (daemons, gateways)
}

/// The share of a process in the memory, in KiB.
fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or_default()
}

/// The time of the processors that a process has used, in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit_once(") ").map_or(Vec::new(), |(_, fields)| fields.split(' ').collect());
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    number(11) + number(12)
}
