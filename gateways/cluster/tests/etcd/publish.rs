//! One configuration, published to all nodes: scenarios D8 to D11 of diprocd, and what can go wrong.

use std::fs;

use gaggled_core::state::Phase;
use gaggled_tests::harness::substitute;
use nix::sys::signal::Signal;

use crate::{
    harness::{Etcd, Node, runs},
    wrong_inputs::says,
};

/// Publishes a text from a node; the exit status, and what is said.
fn publish(node: &Node, text: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let file = node.daemon.directory.path().join("site.ron");
    fs::write(&file, substitute(text, node.daemon.directory.path())).expect("a file");
    let file = file.display().to_string();
    node.gate(&[&["publish", &file, "--yes"], arguments].concat())
}

/// Starts nodes with these names, and waits until etcd knows them.
fn nodes<const N: usize>(etcd: &Etcd, names: [&str; N]) -> [Node; N] {
    let mut nodes = names.map(|name| Node::published(etcd, name));
    for node in &mut nodes {
        says(&mut node.daemon, "begins session");
    }
    for node in &mut nodes {
        node.daemon.wait_outside("all nodes to be known", || {
            let known = etcd.ctl(&["get", "--prefix", "--keys-only", "/gaggled/test/"]);
            let is_there = |key: &str, name: &str| known.contains(&format!("/{key}/{name}\n"));
            names.iter().all(|name| is_there("alive", name) && is_there("applied", name))
        });
    }
    nodes
}

/// Waits until exactly these programs of a node are up, without those that gaggled adds.
fn only_up(node: &mut Node, names: &[&str]) {
    node.daemon.wait(&format!("only {names:?} to be up"), |_, state| {
        let up = state.programs.iter().filter(|(_, program)| program.phase == Phase::Up);
        let up = up.map(|(id, _)| &*state.graph.programs[id].name).filter(|name| *name != "clustergate");
        up.eq(names.iter().copied())
    });
}

fn site(of_one: &str, of_ten: &str) -> String {
    format!(
        "(hosts: [\"node1\", \"node10\"], programs: {{
            {of_one}
            {of_ten}
        }})"
    )
}

const P1: &str = "\"p1\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1301000\"], on: All(\"node1\"), backoff: (initial: 0, max: 0)),";
const P10: &str = "\"p10\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1310000\"], on: All(\"node10\")),";
const P1_NEW: &str = "\"p1\": (command: \"@PUPPET@\", argv: [\"sleep\", \"2301000\"], on: All(\"node1\"), backoff: (initial: 0, max: 0)),
    \"p1b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1302000\"], on: All(\"node1\")),";

#[test]
fn d8_d9_each_node_runs_its_part_of_the_list_and_a_node_that_comes_to_nothing_stops_what_it_had() {
    let Some(etcd) = Etcd::start() else { return };
    let [mut one, mut ten] = nodes(&etcd, ["node1", "node10"]);
    let (code, said) = publish(&one, &site(P1, P10), &["--note", "the first list"]);
    assert!(
        code == Some(0) && said.contains("node1  has revision 1") && said.contains("node10  has revision 1"),
        "{said}"
    );
    assert!(said.contains("node1  start p1 (it is new)") && said.contains("node10  start p10 (it is new)"), "{said}");
    only_up(&mut one, &["p1"]);
    only_up(&mut ten, &["p10"]);
    // D9: the list changes while node1 is switched off, and node10 is not in it any more.
    one.daemon.end();
    let (code, said) = publish(&ten, &site(P1_NEW, ""), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("node10  stop p10 (it is no longer configured)"), "{said}");
    only_up(&mut ten, &[]);
    // It starts with its last list and then takes the new one, which restarts p1.
    let mut one = one.again();
    one.daemon.wait_up("p1b", 1);
    only_up(&mut one, &["p1", "p1b"]);
    let (_, status) = one.gate(&["status"]);
    assert!(status.contains("revision 2 is published"), "{status}");
    let (_, revisions) = one.gate(&["revisions"]);
    assert!(revisions.starts_with("*    2") && revisions.contains("the first list"), "{revisions}");
    one.daemon.verify();
    one.daemon.end();
    ten.daemon.end();
}

#[test]
fn d10_a_node_keeps_and_starts_its_list_without_etcd_and_takes_another_when_etcd_is_back() {
    let Some(mut etcd) = Etcd::start() else { return };
    let [mut one] = nodes(&etcd, ["node1"]);
    assert_eq!(publish(&one, &site(P1, P10), &[]).0, Some(0));
    one.daemon.wait_up("p1", 1);
    etcd.kill();
    one.daemon.kill("p1", Signal::SIGKILL);
    one.daemon.wait_up("p1", 2);
    // A node that is switched on without etcd runs the last list.
    one.daemon.end();
    let mut one = one.again();
    one.daemon.wait_up("p1", 1);
    let refused = publish(&one, &site(P1_NEW, P10), &[]);
    assert!(refused.0 == Some(1) && refused.1.contains("etcd at"), "{refused:?}");
    etcd.restart();
    says(&mut one.daemon, "node node1 begins session");
    let (code, said) = publish(&one, &site(P1_NEW, P10), &[]);
    assert_eq!(code, Some(0), "{said}");
    one.daemon.wait_up("p1b", 1);
    one.daemon.wait("p1 with other arguments", |_, state| runs(state, "p1") >= 2);
    one.daemon.end();
}

/// E11: nothing that is wrong reaches a node, and what a node cannot use changes nothing there.
#[test]
fn a_list_that_cannot_be_used_is_refused_at_its_place_and_what_runs_is_untouched() {
    let Some(etcd) = Etcd::start() else { return };
    let [mut one, mut ten] = nodes(&etcd, ["node1", "node10"]);
    assert_eq!(publish(&one, &site(P1, P10), &[]).0, Some(0));
    one.daemon.wait_up("p1", 1);
    ten.daemon.wait_up("p10", 1);
    let pids = [one.daemon.pid_of("p1"), ten.daemon.pid_of("p10")];
    let wrong = [
        ("(programs: {", "site.ron"),
        ("(gaggled: (), programs: {})", "a published configuration has no section gaggled"),
        ("(programs: {\"a\": (command: \"@PUPPET@\", on: All(\"node2\"))})", "which is no node and no set of nodes"),
        ("(programs: {\"a\": (command: \"@PUPPET@\", depends: {\"b\": ()})})", "b"),
        (
            "(hosts: [\"node1\"], programs: {\"a\": (command: \"@PUPPET@\", depends: {\"p@node1\": ()})})",
            "on node node1: program \"a\" depends on \"p@node1\"",
        ),
    ];
    for (text, words) in wrong {
        let (code, said) = publish(&one, text, &[]);
        assert!(code == Some(1) && said.contains(words), "{text}: {said}");
        assert!(said.matches("Error").count() == 1, "{said}");
    }
    let long = format!("(programs: {{}}) // {}", "x".repeat(5 << 20));
    let (_, said) = publish(&one, &long, &[]);
    assert!(said.contains("a published configuration at most"), "{said}");
    // What only a node can see.
    let on_ten = P10.replace("on:", "user: \"nosuchuser\", on:");
    let (code, said) = publish(&one, &site(P1, &on_ten), &[]);
    assert!(code == Some(1) && said.contains("node1  has revision 2"), "{said}");
    assert!(said.contains("node10  does not take it, and stays on revision 1: revision 2:"), "{said}");
    assert!(said.contains("is to run as user \"nosuchuser\", who does not exist here"), "{said}");
    let (_, status) = ten.gate(&["status"]);
    assert!(status.contains("1, not 2: revision 2:"), "{status}");
    // A node that tries it first keeps it from the others, and is given the present one again.
    let (code, said) = publish(&one, &site(P1_NEW, &on_ten), &["--canary", "node10"]);
    assert!(code == Some(1) && said.contains("it is not published to the others"), "{said}");
    let (code, said) = one.gate(&["rollback", "--yes", "1"]);
    assert!(code == Some(0) && said.contains("node10  has revision 5"), "{said}");
    assert_eq!(pids, [one.daemon.pid_of("p1"), ten.daemon.pid_of("p10")], "nothing has been restarted");
    // A text that is not there, or is another one.
    etcd.ctl(&["del", "/gaggled/test/config/revision/1/0"]);
    let (code, said) = one.gate(&["rollback", "--yes", "1"]);
    assert!(code == Some(1) && said.contains("revision 1 in etcd has no part 1 of 1: publish it again"), "{said}");
    etcd.ctl(&["put", "/gaggled/test/config/revision/1/0", "(programs: {})"]);
    let (_, said) = one.gate(&["rollback", "--yes", "1"]);
    assert!(said.contains("revision 1 in etcd is not the text that was published"), "{said}");
    etcd.ctl(&["put", "/gaggled/test/config/current", "nonsense"]);
    etcd.ctl(&["put", "/gaggled/test/config/canary/node1", "{}"]);
    // A file with programs of its own.
    let file = one.daemon.config_path();
    let own =
        fs::read_to_string(&file).expect("a file").replace("programs: {", "programs: {\"x\": (command: \"true\")");
    fs::write(&file, own).expect("a file");
    let reload = one.daemon.tool("gaggled_controller", &["reload"]);
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(said.contains("programs are given, and this node has them from the published configuration"), "{said}");
    assert_eq!(pids, [one.daemon.pid_of("p1"), ten.daemon.pid_of("p10")]);
    one.daemon.end();
    ten.daemon.end();
}

/// E10: a store that was restored from a backup has an older configuration.
#[test]
fn a_node_never_goes_back_to_an_older_configuration() {
    let Some(etcd) = Etcd::start() else { return };
    let [mut one] = nodes(&etcd, ["node1"]);
    assert_eq!(publish(&one, &site(P1, P10), &[]).0, Some(0));
    let old = etcd.ctl(&["get", "--print-value-only", "/gaggled/test/config/current"]);
    assert_eq!(publish(&one, &site(P1_NEW, P10), &[]).0, Some(0));
    one.daemon.wait_up("p1b", 1);
    etcd.ctl(&["put", "/gaggled/test/config/current", old.trim()]);
    says(&mut one.daemon, "this node has revision 2, and etcd only 1: it was restored from a backup; publish again");
    one.daemon.wait("p1b to run on", |_, state| {
        state.graph.names().get("p1b").is_some_and(|id| state.programs[*id].phase == Phase::Up)
    });
    let (code, said) = publish(&one, &site(P1, P10), &[]);
    assert!(code == Some(0) && said.contains("node1  has revision 3"), "{said}");
    one.daemon.end();
}
