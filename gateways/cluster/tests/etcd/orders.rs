//! What operators order about groups that run on one node at a time: move, drain, fence and forget.

use std::fs;

use gaggled_tests::harness::directory;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    failover::{fit, is_up, no_overlap, site, start, wait_for_one, wait_stopped},
    harness::{Etcd, Node, runs},
};

/// The place of a node in the tests, which start n1, n2 and n3.
fn place_of(name: &str) -> usize {
    ["n1", "n2", "n3"].iter().position(|known| *known == name).expect("a node")
}

#[test]
fn a_group_moves_and_a_drained_node_is_left_and_comes_back() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1", "n2", "n3"]);
    let mut nodes: Vec<Node> = ["n1", "n2", "n3"].map(|name| start(&etcd, name, shared.path())).into();
    let first = wait_for_one(&mut nodes, &[0, 1, 2]);
    let names = ["n1", "n2", "n3"];
    let (from, to, third) = (names[first], names[(first + 1) % 3], names[(first + 2) % 3]);
    // Moved, and that is done: the group stays when the order is looked at again.
    let (code, said) = nodes[0].gate(&["move", "site", to]);
    assert!(code == Some(0) && said.contains(&format!("site  {to} has taken it (token")), "{said}");
    assert!(said.contains(&format!("site  {from} has left it, because it is to move to {to}")), "{said}");
    assert_eq!(wait_for_one(&mut nodes, &[place_of(to)]), place_of(to));
    let (code, said) = nodes[0].gate(&["move", "site", to]);
    assert!(code == Some(0) && said.contains("runs on") && said.contains("already"), "{said}");
    // A node that is drained leaves it, and takes none.
    let (code, said) = nodes[0].gate(&["drain", to]);
    assert!(code == Some(0) && said.contains(&format!("node {to} is to run no groups")), "{said}");
    let holder = wait_for_one(&mut nodes, &[place_of(from), place_of(third)]);
    let (code, said) = nodes[0].gate(&["move", "site", to]);
    assert!(
        code == Some(1) && said.contains(&format!("node {to} is drained: give gaggled_clustergate undrain {to} first")),
        "{said}"
    );
    let (_, status) = nodes[0].gate(&["status"]);
    assert!(status.contains(", drained") && status.contains("3 of 3 members of etcd answer"), "{status}");
    // All others are drained as well: it runs nowhere, and again when one of them may.
    let other = names[3 - place_of(to) - holder];
    nodes[0].gate(&["drain", other]);
    let (code, said) = nodes[0].gate(&["drain", names[holder]]);
    assert!(code == Some(0) && said.contains("site  can run on no other node that is there"), "{said}");
    wait_stopped(&mut nodes[holder]);
    let (code, said) = nodes[0].gate(&["undrain", to]);
    assert!(code == Some(0) && said.contains(&format!("node {to} may run groups again")), "{said}");
    wait_for_one(&mut nodes, &[place_of(to)]);
    let (_, said) = nodes[0].gate(&["undrain", to]);
    assert!(said.contains(&format!("node {to} was not drained")), "{said}");
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}

/// H6: an order that is given on any node reaches the one that runs the group, and the next one keeps to it.
#[test]
fn h6_a_level_is_ordered_from_any_node_and_stays() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1", "n2"]);
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| start(&etcd, name, shared.path())).into();
    let holder = wait_for_one(&mut nodes, &[0, 1]);
    let own = nodes.iter().map(|node| node.daemon.pid_of("own")).collect::<Vec<_>>();
    let (code, said) = nodes[1 - holder].gate(&["tell", "site", "stop"]);
    assert!(code == Some(0) && said.contains(&format!("site  {} goes to level stop", ["n1", "n2"][holder])), "{said}");
    wait_stopped(&mut nodes[holder]);
    nodes[holder].daemon.wait("the clean-up", |_, state| {
        let clean = &state.programs[state.graph.names()["clean"]];
        clean.is_completed() && !clean.is_running()
    });
    assert_eq!(fs::read_to_string(shared.path().join("cleaned")).expect("a file").lines().count(), 1, "once");
    // The next holder finds it at that level.
    let (code, said) = nodes[0].gate(&["move", "site", ["n1", "n2"][1 - holder]]);
    assert_eq!(code, Some(0), "{said}");
    // An order that changes nothing there is carried out all the same.
    let (code, said) = nodes[0].gate(&["tell", "site", "stop"]);
    assert!(code == Some(0) && said.contains("goes to level stop"), "{said}");
    let (code, said) = nodes[0].gate(&["tell", "site", "start"]);
    assert!(code == Some(0) && said.contains("goes to level start"), "{said}");
    assert_eq!(wait_for_one(&mut nodes, &[1 - holder]), 1 - holder);
    let (code, said) = nodes[0].gate(&["tell", "site", "nosuch"]);
    assert!(code == Some(1) && said.contains("group site has no level nosuch: it has start, stop"), "{said}");
    assert_eq!(nodes.iter().map(|node| node.daemon.pid_of("own")).collect::<Vec<_>>(), own);
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}

#[test]
fn dependents_outside_of_a_group_follow_it_from_node_to_node() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1", "n2"]);
    let web =
        "\"web\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"app\": (propagate: true)}),";
    let programs = format!("{web}{}", site(shared.path()));
    let starts = |name: &str| Node::with(&etcd, name, "dead_after: \"6s\",", &programs);
    // n3 cannot run the group.
    let mut nodes: Vec<Node> = ["n1", "n2", "n3"].map(starts).into();
    let holder = wait_for_one(&mut nodes, &[0, 1]);
    for node in &mut nodes {
        node.daemon.wait_up("web", 1);
    }
    // It falls where it runs: everywhere web is started once more.
    let app = Pid::from_raw(nodes[holder].daemon.pid_of("app"));
    killpg(app, Signal::SIGKILL).expect("it runs");
    for node in &mut nodes {
        node.daemon.wait_up("web", 2);
    }
    let (code, said) = nodes[2].gate(&["move", "site", ["n1", "n2"][1 - holder]]);
    assert_eq!(code, Some(0), "{said}");
    wait_for_one(&mut nodes, &[1 - holder]);
    for node in &mut nodes {
        node.daemon.wait_up("web", 3);
        assert_eq!(runs(node.daemon.state(), "web"), 3, "once for each end\n{}", node.daemon.timeline());
    }
    let why = nodes[2].daemon.tool("gaggled_controller", &["why", "web"]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.contains("app@site"), "{why}");
    let refused = nodes[2].daemon.tool("gaggled_controller", &["down", "app@site"]);
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("app@site runs where group site runs: give the command there, for app"), "{refused}");
    no_overlap(&nodes);
    for node in &mut nodes {
        node.daemon.end();
    }
}

#[test]
fn orders_that_cannot_be_carried_out_are_refused_and_change_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    fit(shared.path(), &["n1"]);
    let mut nodes = vec![start(&etcd, "n1", shared.path())];
    wait_for_one(&mut nodes, &[0]);
    let wrong: [(&[&str], &str); 11] = [
        (&["move", "nosuch", "n2"], "nosuch is no group that runs on one node at a time: site"),
        (&["move", "site", "n9"], "group site does not run on n9: its nodes are n2, n1, n3"),
        (&["move", "site", "n2"], "node n2 is not there: group site stays where it is"),
        (&["drain", "n9"], "there is no node n9: the nodes are n1, n2, n3"),
        (&["fence", "n1"], "n1 is this node: give the command on another one"),
        (&["fence", "n2"], "node n2 has no session and holds no group: there is nothing to fence"),
        (&["forget", "n1"], "node n1 still holds group site: give gaggled_clustergate fence n1 first"),
        (&["forget", "n9"], "etcd has nothing of node n9"),
        (&["move", "site"], "<NODE>"),
        (&["drain", "n1", "--timeout", "soon"], "invalid value 'soon'"),
        (&["drain", "../n1"], "there is no node ../n1"),
    ];
    for (arguments, words) in wrong {
        let (code, said) = nodes[0].gate(arguments);
        assert!(code.is_some_and(|code| code > 0) && said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(etcd.ctl(&["get", "--prefix", "--keys-only", "/gaggled/test/order/"]).trim(), "");
    assert!(is_up(&nodes[0]));
    nodes[0].daemon.end();
}

#[test]
fn others_need_not_wait_for_a_node_that_is_fenced() {
    let Some(etcd) = Etcd::start() else { return };
    let shared = directory();
    let off = shared.path().join("switched-off");
    let fence = shared.path().join("fence");
    fs::write(&fence, format!("#!/bin/sh\necho $1 >> {}\n", off.display())).expect("a file");
    fs::set_permissions(&fence, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("its mode");
    fit(shared.path(), &["n1", "n2"]);
    // Others would wait for more than three minutes.
    let settings = format!("dead_after: \"4m\", fence: \"{}\",", fence.display());
    let mut nodes: Vec<Node> = ["n1", "n2"].map(|name| Node::with(&etcd, name, &settings, &site(shared.path()))).into();
    let holder = wait_for_one(&mut nodes, &[0, 1]);
    let (lost, other) = (["n1", "n2"][holder], 1 - holder);
    let victims = ["app", "clustergate", "keeper", "own"].map(|program| nodes[holder].daemon.pid_of(program));
    nodes[holder].daemon.kill_all();
    for pid in victims {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // Leases end long before anything happens.
    etcd.revoke_all();
    let (code, said) = nodes[other].gate(&["fence", lost]);
    assert!(code == Some(0) && said.contains(&format!("node {lost} is fenced")), "{said}");
    assert!(said.contains("has taken it (token"), "{said}");
    assert_eq!(fs::read_to_string(&off).expect("the command has run").trim(), lost);
    assert_eq!(wait_for_one(&mut nodes, &[other]), other);
    let (code, said) = nodes[other].gate(&["forget", lost]);
    assert!(code == Some(0) && said.contains(&format!("node {lost} is forgotten")), "{said}");
    let left = etcd.ctl(&["get", "--prefix", "--keys-only", "/gaggled/test/"]);
    assert!(!left.contains(&format!("/{lost}\n")), "{left}");
    no_overlap(&nodes[other..=other]);
    nodes[other].daemon.end();
}
