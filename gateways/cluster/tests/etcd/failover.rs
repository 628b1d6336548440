//! Groups that run on one node at a time: scenarios H1 to H7 of `OpenMosix::HA`, and what endangers the promise.
//!
//! The judge of overlaps is the kernel: the program of the group takes a lock on a file that all nodes share, and ends with
//! [`OVERLAP`] if another has it.

use std::{fs, path::Path, time::Duration};

use gaggled_core::{
    event::{Event, GroupEvent, LeaveReason, ProgramEvent},
    process::ExitStatus,
    state::{Phase, Tenancy},
};
use gaggled_tests::harness::directory;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::harness::{Etcd, Node};

/// The exit status of a program that finds the lock taken.
const OVERLAP: i32 = 77;

/// The configuration of all nodes: a group with a test, a program, and a clean-up. The test of a node fails while there is no
/// file `fit-NODE`.
pub fn site(shared: &Path) -> String {
    let dir = shared.display();
    format!(
        "\"fit\": (group: \"site\", levels: [\"start\"], mode: Test, shell: \"test -e {dir}/fit-$GAGGLED_NODE\"),
        \"app\": (group: \"site\", levels: [\"start\"], killwait: \"1s\", backoff: (initial: 0, max: 0),
            shell: \"echo $GAGGLED_NODE $GAGGLED_GROUP $GAGGLED_CLUSTER_TOKEN >> {dir}/starts; exec flock -n -E {OVERLAP} {dir}/lock sleep 1000000\"),
        \"clean\": (group: \"site\", levels: [\"stop\"], mode: Wait, killwait: \"1s\", shell: \"echo $GAGGLED_NODE >> {dir}/cleaned\"),
        \"own\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]),
        }}, hosts: [\"n1\", \"n2\", \"n3\"], groups: {{\"site\": (on: One(\"*\"), prefer: [\"n2\"]),"
    )
}

pub fn start(etcd: &Etcd, name: &str, shared: &Path) -> Node {
    Node::with(etcd, name, "dead_after: \"6s\",", &site(shared))
}

pub fn is_up(node: &Node) -> bool {
    let state = node.daemon.state();
    let holds = state.groups.values().any(|group| matches!(group.tenancy, Some(Tenancy::Held { .. })));
    holds && state.programs[state.graph.names()["app"]].phase == Phase::Up
}

/// Waits until the group runs on one of these nodes, by their places; which.
pub fn wait_for_one(nodes: &mut [Node], among: &[usize]) -> usize {
    for _ in 0..2000 {
        for place in among {
            nodes[*place].daemon.listen_for(Duration::from_millis(20));
            if is_up(&nodes[*place]) {
                return *place;
            }
        }
    }
    let told: Vec<String> = nodes.iter().map(|node| node.daemon.timeline()).collect();
    panic!("the group runs nowhere\n{}", told.join("\n\n"));
}

/// Waits until a node does not run the group.
pub fn wait_stopped(node: &mut Node) {
    node.daemon.wait("the group to be stopped", |_, state| !state.programs[state.graph.names()["app"]].is_running());
}

/// That no program has found the lock taken.
pub fn no_overlap(nodes: &[Node]) {
    for node in nodes {
        let overlaps = node.daemon.heard.iter().filter(|envelope| {
            matches!(&envelope.event, Event::Program(_, ProgramEvent::Exited { status: ExitStatus::Code(OVERLAP), .. }))
        });
        assert_eq!(overlaps.count(), 0, "{}", node.daemon.timeline());
        node.daemon.verify();
    }
}

/// How often something is to be done: as this variable of the environment says, or so often.
fn count(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

fn lines(shared: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(shared.join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

pub fn fit(shared: &Path, nodes: &[&str]) {
    for node in nodes {
        fs::write(shared.join(format!("fit-{node}")), "").expect("a file");
    }
}

#[test]
fn h1_h3_a_group_runs_on_the_preferred_node_and_on_another_one_when_that_dies() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1", "n2", "n3"]);
    let mut nodes: Vec<Node> = ["n2", "n1", "n3"].map(|name| start(&etcd, name, shared.path())).into();
    assert_eq!(wait_for_one(&mut nodes, &[0, 1, 2]), 0, "n2 is preferred, and began first");
    let begun = lines(shared.path(), "starts");
    assert_eq!(begun.len(), 1, "{begun:?}");
    let words: Vec<&str> = begun[0].split(' ').collect();
    assert!(words[..2] == ["n2", "site"] && words[2].parse::<u64>().expect("a token") > 0, "{begun:?}");
    // The others know it, and refuse commands for it.
    nodes[1].daemon.wait("the holder to be known", |heard, _| {
        heard.iter().any(|envelope| {
            matches!(&envelope.event, Event::Group(_, GroupEvent::HolderSeen { node: Some(node) }) if **node == *"n2")
        })
    });
    for command in [["tell", "site", "stop"].as_slice(), &["down", "app"], &["restart", "site"]] {
        let refused = nodes[1].daemon.tool("gaggled_controller", command);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("group site runs on node n2: give the command there"), "{command:?}: {said}");
    }
    let own = nodes[1].daemon.pid_of("own");
    // H3: the node dies with everything on it.
    let victims = ["app", "clustergate", "keeper", "own"].map(|program| nodes[0].daemon.pid_of(program));
    nodes[0].daemon.kill_all();
    for pid in victims {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let second = wait_for_one(&mut nodes, &[1, 2]);
    assert_eq!(nodes[1].daemon.pid_of("own"), own);
    let tokens: Vec<u64> =
        lines(shared.path(), "starts").iter().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(tokens.len() == 2 && tokens[0] < tokens[1], "{tokens:?}");
    // A shutdown does not clean up, so that the last node waits as for one that is lost.
    let third = 3 - second;
    nodes[second].daemon.end();
    assert_eq!(wait_for_one(&mut nodes, &[third]), third);
    no_overlap(&nodes);
    for place in [1, 2] {
        nodes[place].daemon.end();
    }
}

/// E3: cuts of the holder; `GAGGLED_CUTS` says how many.
#[test]
fn a_holder_that_is_cut_off_has_stopped_before_another_one_starts() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    let cuts = count("GAGGLED_CUTS", 2);
    fit(shared.path(), &["n1", "n2"]);
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| start(&etcd, name, shared.path())).into();
    let mut holder = wait_for_one(&mut nodes, &[0, 1]);
    for _ in 0..cuts {
        nodes[holder].cut(true);
        wait_stopped(&mut nodes[holder]);
        let other = wait_for_one(&mut nodes, &[1 - holder]);
        nodes[holder].cut(false);
        holder = other;
    }
    no_overlap(&nodes);
    assert_eq!(lines(shared.path(), "cleaned").len(), cuts, "the clean-up has run each time");
    for node in &mut nodes {
        node.daemon.end();
    }
}

/// H5 and E9: without a majority a group stops, and all else goes on; leases that are taken away by mistake change nothing.
#[test]
fn h5_a_group_stops_without_a_majority_and_lives_through_the_loss_of_its_lease() {
    let Some(mut etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1"]);
    let mut nodes = vec![start(&etcd, "n1", shared.path())];
    wait_for_one(&mut nodes, &[0]);
    let pid = nodes[0].daemon.pid_of("app");
    for round in 0..5 {
        etcd.revoke_all();
        if round % 2 == 0 {
            nodes[0].daemon.kill_daemon();
        }
        let session = || etcd.ctl(&["get", "--print-value-only", "/gaggled/test/alive/n1"]);
        nodes[0].daemon.wait_outside("another session", || session().contains("session"));
    }
    assert_eq!(nodes[0].daemon.pid_of("app"), pid, "{}", nodes[0].daemon.timeline());
    let own = nodes[0].daemon.pid_of("own");
    etcd.kill();
    wait_stopped(&mut nodes[0]);
    nodes[0].daemon.wait("the clean-up", |_, state| {
        let clean = &state.programs[state.graph.names()["clean"]];
        clean.is_completed() && !clean.is_running()
    });
    let left = |reason: &LeaveReason| *reason == LeaveReason::PermitEnded;
    assert!(nodes[0].daemon.heard.iter().any(|envelope| {
        matches!(&envelope.event, Event::Group(_, GroupEvent::Leaving { reason }) if left(reason))
    }));
    let dump = nodes[0].daemon.tool("gaggled_controller", &["dump"]);
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("the cluster could not be reached"), "{dump}");
    etcd.restart();
    wait_for_one(&mut nodes, &[0]);
    assert_eq!(nodes[0].daemon.pid_of("own"), own);
    no_overlap(&nodes);
    nodes[0].daemon.end();
}

/// E7: a member that hangs is left for another one, also if it is the leader; `GAGGLED_HANGS` says how often.
#[test]
fn a_group_runs_on_while_members_of_etcd_hang_one_after_the_other() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1", "n2"]);
    // Long enough for an election on a busy machine.
    let settings = "dead_after: \"20s\",";
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| Node::with(&etcd, name, settings, &site(shared.path()))).into();
    let holder = wait_for_one(&mut nodes, &[0, 1]);
    let pid = nodes[holder].daemon.pid_of("app");
    for member in (0..3).cycle().take(count("GAGGLED_HANGS", 3)) {
        etcd.signal(member, Signal::SIGSTOP);
        nodes[holder].daemon.listen_for(Duration::from_secs(3));
        etcd.signal(member, Signal::SIGCONT);
        etcd.wait();
    }
    assert_eq!(nodes[holder].daemon.pid_of("app"), pid, "{}", nodes[holder].daemon.timeline());
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}

#[test]
fn h7_a_group_runs_where_its_test_passes() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n3"]);
    let mut nodes: Vec<Node> = ["n1", "n2", "n3"].map(|name| start(&etcd, name, shared.path())).into();
    assert_eq!(wait_for_one(&mut nodes, &[0, 1, 2]), 2);
    // Where it has failed that is said.
    let failed = |node: &Node| {
        node.daemon.heard.iter().any(|envelope| {
            matches!(&envelope.event, Event::Group(_, GroupEvent::Leaving { reason: LeaveReason::Failed { program } }) if **program == *"fit")
        })
    };
    assert!(nodes[..2].iter().any(failed), "{}", nodes[0].daemon.timeline());
    assert!(lines(shared.path(), "starts").iter().all(|line| line.starts_with("n3")));
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}
