//! How long it takes until a group that runs on one node at a time runs elsewhere, after its node has died with everything on it.
//!
//! `cargo run --release --package gaggled_cluster --example failover -- [ROUNDS] [DEAD_AFTER]`, after
//! `cargo build --release --workspace`. The judge of overlaps is a lock on a file that all nodes share.

use std::time::{Duration, Instant};

use gaggled_core::{base::time::Millis, config::ClusterConfig};
use gaggled_tests::harness::directory;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

#[path = "../tests/etcd/harness.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;

use harness::{Etcd, Node};

/// How long the program may take to stop, in seconds; the shutdown of a node may take as long.
const KILLWAIT: u64 = 2;

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let argument = |place: usize| std::env::args().nth(place);
    let rounds: usize = argument(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    let dead_after: u64 = argument(2).and_then(|seconds| seconds.parse().ok()).unwrap_or(6);
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    let programs = format!(
        "\"app\": (group: \"site\", levels: [\"start\"], killwait: \"{KILLWAIT}s\", backoff: (initial: 0, max: 0),
            shell: \"exec flock -n -E 77 {}/lock sleep 1000000\"),
        }}, hosts: [\"n1\", \"n2\"], groups: {{\"site\": (on: One(\"*\")),",
        shared.path().display()
    );
    let settings = format!("dead_after: \"{dead_after}s\",");
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| Node::with(&etcd, name, &settings, &programs)).into();
    let mut holder = wait_for_app(&mut nodes, &[0, 1]);
    let (mut times, mut overlaps) = (Vec::new(), 0);
    for _ in 0..rounds {
        nodes[1 - holder]
            .daemon
            .wait("the gateway to be there", |_, state| state.groups.values().any(|group| group.tenancy.is_some()));
        // It has to have a session, or the time is that of its start.
        nodes[1 - holder].daemon.listen_for(Duration::from_secs(dead_after));
        kill_node(&mut nodes[holder]);
        let begun = now();
        let next = wait_for_app(&mut nodes, &[1 - holder]);
        times.push(begun.elapsed());
        let dead = nodes.remove(holder).again();
        nodes.insert(holder, dead);
        holder = next;
        let heard = nodes.iter().flat_map(|node| &node.daemon.heard);
        overlaps += heard.filter(|envelope| format!("{:?}", envelope.event).contains("Code(77)")).count();
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64();
    let config = ClusterConfig { dead_after: Millis(dead_after * 1000), ..ClusterConfig::default() };
    let bound = config.takeover_after(Millis(KILLWAIT * 1000)).0 + config.session().0 + 600;
    println!(
        "dead_after {dead_after} s: from the death of a node to the start elsewhere: p50 {:.2} s, max {:.2} s, promised {:.2} s; \
         {overlaps} overlaps (n = {rounds})",
        at(50),
        at(100),
        Duration::from_millis(bound).as_secs_f64()
    );
    for node in &mut nodes {
        node.daemon.end();
    }
}

fn runs_app(node: &Node) -> bool {
    let state = node.daemon.state();
    state.programs[state.graph.names()["app"]].process.is_some()
}

/// Waits until one of these nodes runs the program; which.
fn wait_for_app(nodes: &mut [Node], among: &[usize]) -> usize {
    loop {
        for place in among {
            nodes[*place].daemon.listen_for(Duration::from_millis(5));
            if runs_app(&nodes[*place]) {
                return *place;
            }
        }
    }
}

/// Kills gaggled on a node, and all programs there.
fn kill_node(node: &mut Node) {
    let state = node.daemon.state();
    let pids: Vec<i32> = state.programs.values().filter_map(|program| Some(program.process?.pid)).collect();
    node.daemon.kill_all();
    for pid in pids {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
