//! Dependencies on programs of other nodes.

use gaggled_core::{
    cluster::UnseenReason,
    event::RemoteEvent,
    protocol::{Action, Selection},
    state::Phase,
};
use nix::sys::signal::Signal;

use crate::harness::{Etcd, Node, remote, runs};

const DB: &str =
    "\"db\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], backoff: (initial: 0, max: 0), export: true),";

/// A program that restarts with `db` of another node.
fn web(more: &str) -> String {
    format!(
        "\"web\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {{\"db@n1\": (propagate: true, {more})}}),"
    )
}

fn selection(program: &str, wait: bool) -> Selection {
    Selection { programs: vec![program.to_owned()], wait, timeout_ms: None }
}

/// How often a program of another node was seen going down.
fn falls(node: &Node) -> u64 {
    let missed = |event: &&RemoteEvent| match event {
        RemoteEvent::Down { missed, .. } => 1 + missed,
        RemoteEvent::Unseen { assumed_down: true, .. } => 1,
        _ => 0,
    };
    remote(&node.daemon.heard).iter().map(missed).sum()
}

#[test]
fn a_program_waits_for_one_of_another_node_stops_with_it_and_tells_why() {
    let Some(etcd) = Etcd::start() else { return };
    let mut two = Node::new(&etcd, "n2", &web("delay: 300"));
    two.daemon.wait_up("clustergate", 1);
    let mut one = Node::new(&etcd, "n1", DB);
    two.daemon.wait_up("web", 1);
    one.daemon.kill("db", Signal::SIGKILL);
    two.daemon.wait_up("web", 2);
    let why = two.daemon.tool("gaggled_controller", &["why", "web"]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.contains("db@n1 went down: was killed by SIGKILL"), "{why}");
    assert!(why.contains("on node n1: db was killed by SIGKILL (event"), "{why}");
    // A planned stop is told with the decision.
    one.daemon.must(Action::Down(selection("db", true)));
    two.daemon.wait_down("web", 2);
    let dump = two.daemon.tool("gaggled_controller", &["dump"]);
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("waiting for db@n1") && dump.contains("down on node n1"), "{dump}");
    let refused = two.daemon.tool("gaggled_controller", &["restart", "db@n1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("db@n1 runs on node n1: give the command there, for db"), "{said}");
    one.daemon.must(Action::Up(selection("db", true)));
    two.daemon.wait_up("web", 3);
    // A shutdown is told before the gateway ends.
    one.daemon.end();
    two.daemon.wait_down("web", 3);
    assert!(matches!(remote(&two.daemon.heard).last(), Some(RemoteEvent::Down { .. })), "{}", two.daemon.timeline());
    two.daemon.verify();
    two.daemon.end();
}

/// E1 and E6: with connections that are lost, gateways that die and revisions that are compacted.
#[test]
fn every_fall_restarts_the_dependent_and_none_does_it_twice() {
    let Some(etcd) = Etcd::start() else { return };
    let count: u64 = std::env::var("GAGGLED_FALLS").ok().and_then(|count| count.parse().ok()).unwrap_or(60);
    let mut one = Node::new(&etcd, "n1", DB);
    let mut two = Node::new(&etcd, "n2", &web(""));
    two.daemon.wait_up("web", 1);
    let mut random = gaggled_tests::sim::random::Random::new(11);
    for fall in 1..=count {
        let fault = random.below(12);
        match fault {
            0 => two.cut(true),
            1 => one.cut(true),
            2 => two.kill_gateway(),
            3 => one.kill_gateway(),
            4 => etcd.compact(),
            _ => {}
        }
        one.daemon.kill("db", Signal::SIGKILL);
        one.daemon.wait_up("db", fall + 1);
        if fault < 2 {
            one.cut(false);
            two.cut(false);
        }
        if random.below(3) == 0 {
            continue;
        }
        // Until everything that has happened so far is known.
        two.daemon.wait("the fall to be known", |_, state| {
            let id = state.graph.names()["db@n1"];
            let known = state.programs[id].remote.as_deref();
            known.is_some_and(|remote| remote.instance.0 > fall && remote.unseen.is_none())
        });
    }
    two.daemon.wait("the last run to be known", |_, state| {
        let id = state.graph.names()["db@n1"];
        state.programs[id].remote.as_deref().is_some_and(|remote| remote.instance.0 == count + 1)
    });
    two.wait_ready("db@n1");
    two.daemon.wait("web to run again", |_, state| {
        let (web, db) = (state.graph.names()["web"], state.graph.names()["db@n1"]);
        state.programs[web].phase == Phase::Up && state.programs[web].phase_event > state.programs[db].phase_event
    });
    let seen = falls(&two);
    let begun = runs(two.daemon.state(), "web");
    assert!(seen <= count, "{seen} falls were seen, and {count} happened");
    assert!(begun <= count + 1, "{begun} starts for {count} falls");
    two.daemon.verify();
    one.daemon.end();
    two.daemon.end();
}

/// E9, and the deaths of gateways and daemons: nothing of that is a fall.
#[test]
fn a_session_that_is_lost_and_a_daemon_that_is_replaced_are_no_fall() {
    let Some(etcd) = Etcd::start() else { return };
    let mut one = Node::new(&etcd, "n1", DB);
    let mut two = Node::new(&etcd, "n2", &web(""));
    two.daemon.wait_up("web", 1);
    for _ in 0..5 {
        etcd.revoke_all();
        one.daemon.kill_daemon();
        one.daemon.wait_up("clustergate", 1);
        one.kill_gateway();
        one.daemon.must(Action::Restart(selection("clustergate", true)));
        two.kill_gateway();
        two.daemon.must(Action::Restart(selection("clustergate", true)));
        two.daemon.kill_daemon();
        two.wait_ready("db@n1");
    }
    assert_eq!(falls(&two), 0, "{}", two.daemon.timeline());
    assert_eq!(runs(two.daemon.state(), "web"), 1);
    // With a watch that shows each new session and its states in any order.
    for _ in 0..5 {
        one.kill_gateway();
        one.daemon.must(Action::Restart(selection("clustergate", true)));
        etcd.revoke_all();
    }
    one.daemon.kill("db", Signal::SIGKILL);
    two.daemon.wait_up("web", 2);
    two.wait_ready("db@n1");
    assert_eq!(falls(&two), 1, "{}", two.daemon.timeline());
    one.daemon.end();
    two.daemon.end();
}

/// A node that is gone, and one that is cut off, with each of what can be assumed then.
#[test]
fn a_lost_node_and_a_lost_cluster_are_told_apart_and_treated_as_configured() {
    let Some(mut etcd) = Etcd::start() else { return };
    let mut one = Node::new(&etcd, "n1", DB);
    let mut two = Node::new(&etcd, "n2", &web(""));
    let mut three = Node::new(&etcd, "n3", &web("on_lost: Keep, on_blind: Down"));
    two.daemon.wait_up("web", 1);
    three.daemon.wait_up("web", 1);
    let unseen = |node: &mut Node, reason: UnseenReason| {
        node.daemon.wait("the program to be unseen", |_, state| {
            let id = state.graph.names()["db@n1"];
            state.programs[id].remote.as_deref().is_some_and(|remote| remote.unseen == Some(reason))
        });
    };
    // No node reaches etcd: what needs only its own machine goes on.
    etcd.kill();
    unseen(&mut two, UnseenReason::Blind);
    unseen(&mut three, UnseenReason::Blind);
    three.daemon.wait_down("web", 1);
    assert_eq!(runs(two.daemon.state(), "web"), 1, "an outage of etcd stops nothing by default");
    two.daemon.kill("web", Signal::SIGKILL);
    two.daemon.wait_up("web", 2);
    let dump = two.daemon.tool("gaggled_controller", &["dump"]);
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("up on node n1; the cluster cannot be reached"), "{dump}");
    etcd.restart();
    two.wait_ready("db@n1");
    three.wait_ready("db@n1");
    three.daemon.wait_up("web", 2);
    assert_eq!(runs(two.daemon.state(), "web"), 2, "nothing restarts when etcd is back");
    // The node is gone.
    one.cut(true);
    unseen(&mut two, UnseenReason::Lost);
    unseen(&mut three, UnseenReason::Lost);
    two.daemon.wait_down("web", 2);
    assert_eq!(runs(three.daemon.state(), "web"), 2, "it keeps what it had");
    one.cut(false);
    two.wait_ready("db@n1");
    two.daemon.wait_up("web", 3);
    three.wait_ready("db@n1");
    assert_eq!(runs(three.daemon.state(), "web"), 2);
    for node in [&mut one, &mut two, &mut three] {
        node.daemon.end();
    }
}

/// E7: a member that hangs is left for another one.
#[test]
fn a_member_of_etcd_that_hangs_disturbs_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let mut one = Node::new(&etcd, "n1", DB);
    let mut two = Node::new(&etcd, "n2", &web(""));
    two.daemon.wait_up("web", 1);
    for (member, run) in (0..3).zip(2..) {
        etcd.signal(member, Signal::SIGSTOP);
        one.daemon.kill("db", Signal::SIGKILL);
        two.daemon.wait("the new run", |_, state| {
            let id = state.graph.names()["db@n1"];
            state.programs[id].remote.as_deref().is_some_and(|remote| remote.instance.0 == run)
        });
        etcd.signal(member, Signal::SIGCONT);
        etcd.wait();
    }
    two.wait_ready("db@n1");
    two.daemon.verify();
    one.daemon.end();
    two.daemon.end();
}

/// G6.
#[test]
fn a_node_starts_without_etcd_and_what_waits_for_another_node_says_so() {
    let Some(mut etcd) = Etcd::start() else { return };
    etcd.kill();
    let mut two = Node::new(&etcd, "n2", &format!("{}{DB}", web("")));
    two.daemon.wait_up("db", 1);
    let dump = two.daemon.tool("gaggled_controller", &["dump"]);
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("waiting for db@n1") && dump.contains("not seen up on node n1 yet"), "{dump}");
    etcd.restart();
    let mut one = Node::new(&etcd, "n1", DB);
    two.daemon.wait_up("web", 1);
    one.daemon.end();
    two.daemon.end();
}

/// One configuration on three nodes: each runs its part, and dependencies lead to where the programs are.
#[test]
fn one_configuration_runs_in_parts_on_its_nodes() {
    let Some(etcd) = Etcd::start() else { return };
    let programs = r#"
        "db": (command: "@PUPPET@", argv: ["sleep", "1000000"], on: All("@data")),
        "web": (shell: "echo $NAME >> @DIR@/names; exec sleep 1000", env: {"NAME": "%H"}, on: All("@web"), depends: {"db": (propagate: true)}),
    }, nodes: {"web": ["n1", "n10"], "data": ["n2"]"#;
    let mut nodes: Vec<Node> = ["n1", "n10", "n2"].iter().map(|name| Node::new(&etcd, name, programs)).collect();
    for (node, name) in nodes.iter_mut().zip(["n1", "n10"]) {
        node.daemon.wait_up("web", 1);
        assert!(!node.daemon.state().graph.names().contains_key("db"));
        let path = node.daemon.directory.path().join("names");
        let first = move || std::fs::read_to_string(&path).unwrap_or_default().lines().next() == Some(name);
        node.daemon.wait_outside("its name", first);
    }
    nodes[2].daemon.wait_up("db", 1);
    assert!(!nodes[2].daemon.state().graph.names().contains_key("web"));
    nodes[2].daemon.kill("db", Signal::SIGKILL);
    for node in &mut nodes[..2] {
        node.daemon.wait_up("web", 2);
    }
    for node in &mut nodes {
        node.daemon.end();
    }
}
