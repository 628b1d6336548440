//! Invalid configurations: each is refused with its position and a remedy, quickly, and never with a panic.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use gaggled_tests::harness::{binary, directory};

fn check(path: &Path) -> Output {
    Command::new(binary("gaggled"))
        .args(["-t", "-c"])
        .arg(path)
        .env("XDG_RUNTIME_DIR", "/tmp")
        .output()
        .expect("gaggled")
}

/// Asserts that a file is refused with exit status 1, without a panic, with all of these words.
fn refused(bytes: &[u8], words: &[&str]) {
    let directory = directory();
    let path = directory.path().join("system.ron");
    fs::write(&path, bytes).expect("a file");
    let output = check(&path);
    let said = String::from_utf8_lossy(&output.stderr);
    let shown: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
    assert_eq!(output.status.code(), Some(1), "{shown}\n{said}");
    assert!(!said.contains("panicked"), "{shown}\n{said}");
    assert!(said.contains("system.ron"), "{shown} names no file\n{said}");
    for word in words {
        assert!(said.contains(word), "{shown} does not say {word}\n{said}");
    }
}

fn program(body: &str) -> String {
    format!("(\n programs: {{\n  \"a\": ({body}),\n }},\n)")
}

#[test]
fn what_is_wrong_about_a_cluster_is_said_with_its_place() {
    let cluster = |cluster: &str, depends: &str| {
        format!(
            "(\n    gaggled: (cluster: {cluster}),\n    programs: {{\"web\": (command: \"true\", depends: {{{depends}}})}},\n)"
        )
    };
    let good = "(name: \"s\", node: \"n1\", etcd: [\"http://127.0.0.1:2379\"])";
    for (section, words) in [
        ("()", "the cluster has no name"),
        ("(name: \"s\")", "the cluster has no etcd"),
        ("(name: \"a b\", etcd: [\"http://localhost:2379\"])", "cannot be used for a cluster"),
        ("(name: \"s\", node: \"n/1\", etcd: [\"http://[::1]:2379\"])", "cannot be used for a node"),
        ("(name: \"s\", etcd: [\"127.0.0.1:2379\"])", "is not a url of etcd"),
        ("(name: \"s\", etcd: [\"http://10.0.0.1:2379\"])", "without TLS"),
        ("(name: \"s\", etcd: [\"https://10.0.0.1:2379\"], cert: \"a.pem\")", "only one of cert and key"),
        ("(name: \"s\", etcd: [\"https://10.0.0.1:2379\"], dead_after: \"1s\")", "dead_after"),
        ("(name: \"s\", etcd: [\"https://10.0.0.1:2379\"], lease: 5)", "lease"),
    ] {
        refused(cluster(section, "").as_bytes(), &[words, "system.ron:2"]);
    }
    let shared = |dead_after: &str, group: &str, program: &str, rest: &str| {
        format!(
            "(\n gaggled: (cluster: (name: \"s\", node: \"n1\", etcd: [\"http://127.0.0.1:2379\"], dead_after: \"{dead_after}\")),\n \
            hosts: [\"n1\", \"n2\", \"n3\"], nodes: {{\"two\": [\"n1\", \"n2\"]}},\n groups: {{\"g\": ({group})}},\n programs: {{\n  \
            \"a\": (command: \"true\", group: \"g\", {program}),\n{rest} }},\n)"
        )
    };
    for (group, program, rest, words) in [
        ("on: One(\"@three\")", "", "", ["placed on \"@three\"", "system.ron:4"]),
        ("on: One(\"@two\"), prefer: [\"n3\"]", "", "", ["prefers \"n3\", which is none of its nodes", "system.ron:4"]),
        ("on: One(\"@two\"), on_failure: \"stop\"", "", "", ["and has on_failure", "system.ron:4"]),
        ("on: One(\"@two\")", "mode: Wait, leaves: Release", "", ["leaves processes behind", "system.ron:6"]),
        ("prefer: [\"n1\"]", "", "", ["prefers nodes, and does not run on one of several", "system.ron:4"]),
        ("on: One(\"@two\")", "levels: [\"stop\"]", "", ["runs at level stop", "system.ron:6"]),
        (
            "on: One(\"@two\")",
            "",
            "  \"b\": (command: \"true\", depends: {\"a@n1\": ()}),\n",
            ["which runs on one of several nodes", "system.ron:7"],
        ),
        ("", "", "  \"b\": (command: \"true\", on: One(\"@two\")),\n", ["as only groups can", "system.ron:7"]),
    ] {
        refused(shared("10s", group, program, rest).as_bytes(), &words);
    }
    let short = shared("4s", "on: One(\"@two\")", "", "");
    refused(
        short.as_bytes(),
        &["runs on one node at a time, and dead_after of the cluster is 4.0 s", "6.0 s", "system.ron:4"],
    );
    let published = "(name: \"s\", etcd: [\"http://127.0.0.1:2379\"], config: Published)";
    refused(
        cluster(published, "").as_bytes(),
        &["this node has them from the published configuration", "system.ron:3"],
    );
    for (depends, words) in [
        ("\"db@n1\": ()", "this node n1 has no program"),
        ("\"db@\": ()", "not the name of a program on a node"),
        ("\"@n2\": ()", "not the name of a program on a node"),
        ("\"db@n2\": (), \"db@n2\": ()", "twice"),
        ("\"db@n2\": (condition: Completed, propagate: true)", "nothing to propagate"),
        ("\"db@n2\": (on_lost: Up)", "Up"),
    ] {
        refused(cluster(good, depends).as_bytes(), &[words, "system.ron:3"]);
    }
    let two = |web: &str, api: &str| {
        let program = |name: &str, depends: &str| {
            format!("    \"{name}\": (command: \"true\", depends: {{\"db@n2\": ({depends})}}),\n")
        };
        format!("(gaggled: (cluster: {good}), programs: {{\n{}{}}})", program("web", web), program("api", api))
    };
    refused(two("on_lost: Keep", "on_lost: Down").as_bytes(), &["another on_lost", "system.ron:3"]);
    let without = "(programs: {\"db\": (command: \"true\", export: true), \"web\": (command: \"true\", depends: {\"db@n2\": ()})})";
    refused(without.as_bytes(), &["is exported, and there is no cluster", "of another node, and there is no cluster"]);
    refused(program("command: \"true\", depends: {\"a\": (on_lost: Keep)}").as_bytes(), &["never lost"]);
    let taken = format!("(gaggled: (cluster: {good}), programs: {{\"clustergate\": (command: \"true\")}})");
    refused(taken.as_bytes(), &["is there twice"]);
}

#[test]
fn a_wrong_place_of_a_program_is_said_with_a_cure() {
    let site = |programs: &str| {
        format!(
            "(gaggled: (cluster: (name: \"s\", node: \"n1\", etcd: [\"http://127.0.0.1:2379\"])),\n \
             nodes: {{\"web\": [\"n1\", \"n2\"], \"data\": [\"n3\"], \"none\": []}}, groups: {{\"shop\": (on: All(\"@web\"))}},\n \
             programs: {{{programs}}})"
        )
    };
    let sleep = |name: &str, more: &str| format!("\"{name}\": (command: \"sleep\", {more}),");
    for (programs, words) in [
        (sleep("a", "on: All(\"@wep\")"), "no node and no set of nodes"),
        (sleep("a", "on: All(\"n4\")"), "did you mean"),
        (sleep("a", "on: One(\"@web\")"), "One"),
        (sleep("a", "per_host: {\"n9\": (argv: [])}"), "a difference of program \"a\" is placed on \"n9\""),
        (sleep("a", "per_host: {\"n1\": (priority: 1)}"), "priority"),
        (sleep("a", "group: \"shop\", on: All(\"n1\")"), "and so is its group \"shop\""),
        (sleep("a", "on: All(\"@web\")") + &sleep("b", "on: All(\"n3\"), depends: {\"a\": ()}"), "say which: \"a@n1\""),
        (sleep("a", "on: All(\"@none\")") + &sleep("b", "depends: {\"a\": ()}"), "which runs on no node"),
        (sleep("a", "on: All(\"n2\")") + &sleep("b", "depends: {\"a@n3\": ()}"), "\"a\" does not run on n3"),
        (sleep("b", "depends: {\"a@n1\": ()}"), "this node n1 has no program \"a\""),
        (sleep("a", "per_host: {\"n1\": (env: {\"A=B\": \"\"})}"), "cannot be passed"),
    ] {
        refused(site(&programs).as_bytes(), &[words]);
    }
    refused(
        program("command: \"true\", on: All(\"*\")").as_bytes(),
        &["placed on nodes, and there is no cluster", "system.ron:3"],
    );
}

#[test]
fn every_bad_file_is_refused_with_its_place() {
    let in_program = [
        ("", "has no command"),
        ("command: \"\"", "empty command"),
        ("command: 5", "system.ron:3"),
        ("command: \"true\", argv: \"x\"", "system.ron:3"),
        ("command: \"true\", argv: [1]", "system.ron:3"),
        ("command: \"true\", shell: \"true\"", "both a command and a shell"),
        ("shell: \"true\", argv: [\"x\"]", "arguments for a shell line"),
        ("command: \"true\", respwan: true", "respwan"),
        ("command: \"true\", enabled: no", "system.ron:3"),
        ("command: \"true\", enabled: \"yes\"", "system.ron:3"),
        ("command: \"true\", mode: Off", "Off"),
        ("command: \"true\", mode: Once, respawn: true", "both respawn and mode"),
        ("command: \"true\", killwait: -1", "negative"),
        ("command: \"true\", killwait: 1.5", "whole milliseconds"),
        ("command: \"true\", killwait: \"10\"", "no unit"),
        ("command: \"true\", killwait: \"ten\"", "not understood"),
        ("command: \"true\", killwait: 99999999999999", "ten years"),
        ("command: \"true\", killwait: 99999999999999999999999", "system.ron:3"),
        ("command: \"true\", backoff: (initial: 1, cap: 2)", "cap"),
        ("command: \"true\", depends: {\"b\": ()}", "does not exist"),
        ("command: \"true\", depends: {\"a\": ()}", "cycle: a -> a"),
        ("command: \"true\", depends: {\"a\": (delay: \"x\")}", "not understood"),
        ("command: \"true\", depends: [\"a\"]", "system.ron:3"),
        ("command: \"true\", env: {\"A=B\": \"\"}", "cannot be passed"),
        ("command: \"true\", env: {\"\": \"\"}", "cannot be passed"),
        ("command: \"true\", env: {\"GAGGLED_HOST\": \"\"}", "set by gaggled"),
        ("command: \"true\", env: {\"A\": \"1\", \"A\": \"2\"}", "twice"),
        ("command: \"true\", env: {\"A\": 1}", "system.ron:3"),
        ("command: \"true\", argv: [\"a\\u{0}b\"]", "NUL"),
        ("command: \"nosuchbinary\"", "is not found"),
        ("command: \"/nosuch/binary\"", "does not exist"),
        ("command: \"/tmp\"", "is not a file"),
        ("command: \"/etc/passwd\"", "is not executable"),
        ("command: \"true\" argv: []", "system.ron:3"),
        ("command: \"true", "system.ron"),
    ];
    for (body, words) in in_program {
        refused(program(body).as_bytes(), &[words]);
    }
    let in_settings = [
        ("killwait: -5", "negative"),
        ("eventurl: \"notaurl\"", "not understood"),
        ("eventurl: \"tcp://*:5000\"", "other machines"),
        ("controlurl: \"tcp://192.0.2.7:5000\"", "other machines"),
        ("controlurl: \"ipc://relative\"", "absolute"),
        ("controlurl: \"abstract://x\"", "not understood"),
        ("eventurl: \"ipc:///x\", controlurl: \"ipc:///x\"", "the same"),
        ("smtpgate: ()", "smtpgate has no mx"),
        ("smtpgate: (mx: \"m\", from: \"f@x.org\", to: [\"t@x.org\"], period: 0)", "period of 0"),
        ("smtpgate: (mx: \"m\", from: \"not an address\", to: [\"t@x.org\"])", "not a mail address"),
        (
            "smtpgate: (mx: \"m\", from: \"f@x.org\", to: [\"t@x.org\"], user: \"u\")",
            "only one of user and password_file",
        ),
        (
            "smtpgate: (mx: \"m\", from: \"f@x.org\", to: [\"t@x.org\"], user: \"u\", password_file: \"/x\")",
            "in the clear",
        ),
        (
            "smtpgate: (mx: \"m\", from: \"f@x.org\", to: [\"t@x.org\"], user: \"u\", password_file: \"/nosuch\", tls: StartTls)",
            "cannot read /nosuch",
        ),
        (
            "smtpgate: (mx: \"m\", from: \"f@x.org\", to: [\"t@x.org\"], tls: StartTls, ca: \"/nosuch\")",
            "cannot read /nosuch",
        ),
        ("path: 5", "system.ron:1"),
        ("nonsense: true", "nonsense"),
    ];
    for (settings, words) in in_settings {
        refused(format!("(gaggled: ({settings}))").as_bytes(), &[words]);
    }
    let deep = format!("(programs: {})", "[".repeat(100_000));
    let long = program(&format!("command: \"true\", argv: [\"{}\"", "x".repeat(10_000_000)));
    let whole: [(&[u8], &str); 12] = [
        (b"", "system.ron"),
        (b"(", "not closed"),
        (b"()()", "system.ron:1"),
        (b"[]", "system.ron:1"),
        (b"{\"programs\": {}}", "system.ron:1"),
        (b"(programs: {\"a\": (command: \"true\"), \"a\": (command: \"true\")})", "twice"),
        (b"(programs: {\"a b\": (command: \"true\")})", "cannot be used"),
        (b"(programs: {\"a\\nb\": (command: \"true\")})", "cannot be used"),
        (b"(gaggled: (), gaggled: ())", "system.ron:1"),
        (b"(programs: {\n\"\xff\": ()})", "line 2 is not UTF-8"),
        (deep.as_bytes(), "system.ron"),
        (long.as_bytes(), "system.ron"),
    ];
    for (bytes, words) in whole {
        refused(bytes, &[words]);
    }
}

#[test]
fn a_cycle_is_shown_as_its_path_and_what_depends_on_disabled_is_refused() {
    let cycle = "(programs: {
        \"a\": (command: \"true\", depends: {\"b\": ()}),
        \"b\": (command: \"true\", depends: {\"c\": ()}),
        \"c\": (command: \"true\", depends: {\"a\": ()}),
    })";
    refused(cycle.as_bytes(), &["a -> b -> c -> a"]);
    let disabled = "(programs: {
        \"a\": (command: \"true\", depends: {\"b\": ()}),
        \"b\": (command: \"true\", enabled: false),
    })";
    refused(disabled.as_bytes(), &["depends on \"b\", which is disabled", "system.ron:2"]);
}

#[test]
fn a_path_that_is_no_file_is_one_sentence() {
    for path in ["/nosuch/file", "/tmp", "/dev/null"] {
        let output = check(Path::new(path));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{path}");
    }
}

#[test]
fn ten_thousand_programs_are_checked_at_once() {
    let directory = directory();
    let path = directory.path().join("system.ron");
    let programs: String = (0..10_000)
        .map(|i| {
            let on = if i > 0 { format!("\"p{}\": ()", i - 1) } else { String::new() };
            format!("\"p{i}\": (command: \"true\", depends: {{{on}}}),")
        })
        .collect();
    fs::write(
        &path,
        format!("(gaggled: (eventurl: \"ipc:///tmp/a\", controlurl: \"ipc:///tmp/b\"), programs: {{{programs}}})"),
    )
    .expect("a file");
    let output = check(&path);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ok, 10000 programs, 9999 dependencies"));
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_taken() {
    let directory = directory();
    let path = directory.path().join("system.ron");
    for text in
        ["(\r\n programs: {\"a\": (command: \"true\")},\r\n)\r\n", "\u{feff}(programs: {\"a\": (command: \"true\")})"]
    {
        fs::write(&path, text).expect("a file");
        let output = check(&path);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
