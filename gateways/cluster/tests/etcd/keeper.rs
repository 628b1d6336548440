//! Groups that run on one node at a time, on a node whose gaggled hangs or is dead while the programs run on: scenario H4 of
//! `OpenMosix::HA`.

use gaggled_core::event::{Event, GroupEvent};
use gaggled_tests::harness::directory;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    failover::{fit, no_overlap, start, wait_for_one},
    harness::{Etcd, Node},
};

/// Two nodes that can run the group; the place of the one that does.
fn two_nodes(etcd: &Etcd) -> (Vec<Node>, usize, TempDir) {
    let shared = directory();
    fit(shared.path(), &["n1", "n2"]);
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| start(etcd, name, shared.path())).into();
    let holder = wait_for_one(&mut nodes, &[0, 1]);
    nodes[holder].daemon.wait("the keeper", |_, state| {
        let keeper = &state.programs[state.graph.names()["keeper"]];
        keeper.process.is_some() && keeper.is_running()
    });
    (nodes, holder, shared)
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("a process");
}

/// Processes that are stopped, and go on when this is dropped.
struct Stopped(Vec<i32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
        }
    }
}

/// Stops the daemon and these programs on the node that runs the group until another one runs it, and lets them go on.
fn moves_while_stopped(stops: &[&str]) {
    let Some(etcd) = Etcd::start() else { return };
    let (mut nodes, holder, _shared) = two_nodes(&etcd);
    let app = nodes[holder].daemon.pid_of("app");
    let daemon = nodes[holder].daemon.daemon_pid();
    let others: Vec<i32> = stops.iter().map(|program| nodes[holder].daemon.pid_of(program)).collect();
    nodes[holder].daemon.freeze(daemon);
    for pid in &others {
        signal(*pid, Signal::SIGSTOP);
    }
    let stopped = Stopped(others.into_iter().chain([daemon]).collect());
    wait_for_one(&mut nodes, &[1 - holder]);
    nodes[holder].daemon.wait_gone(app);
    drop(stopped);
    let other = ["n1", "n2"][1 - holder];
    nodes[holder].daemon.wait("the holder to be known", |heard, _| {
        heard.iter().any(|envelope| {
            matches!(&envelope.event, Event::Group(_, GroupEvent::HolderSeen { node: Some(node) }) if **node == *other)
        })
    });
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}

#[test]
fn h4_a_group_moves_away_from_a_daemon_that_is_stopped() {
    moves_while_stopped(&[]);
}

#[test]
fn h4_a_group_moves_away_from_a_daemon_and_a_gateway_that_are_stopped() {
    moves_while_stopped(&["clustergate"]);
}

#[test]
fn a_group_moves_away_from_a_gaggled_that_is_dead_for_good() {
    let Some(etcd) = Etcd::start() else { return };
    let (mut nodes, holder, _shared) = two_nodes(&etcd);
    let left = ["own", "clustergate", "keeper"].map(|program| nodes[holder].daemon.pid_of(program));
    let app = nodes[holder].daemon.pid_of("app");
    nodes[holder].daemon.kill_all();
    wait_for_one(&mut nodes, &[1 - holder]);
    nodes[holder].daemon.wait_gone(app);
    no_overlap(&nodes[1 - holder..=1 - holder]);
    for pid in left {
        signal(pid, Signal::SIGKILL);
    }
    nodes[1 - holder].daemon.end();
}
