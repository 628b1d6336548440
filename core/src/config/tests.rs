use super::*;

/// Configurations that must be refused, each with a part of the expected message.
const MISTAKES: &[(&str, &str)] = &[
    (r#"(programs: {"a": (command: "x", respwan: true)})"#, "respwan"),
    (r#"(programs: {"a": (command: "x", mode: Off)})"#, "Off"),
    (r#"(programs: {"a": (command: "x"), "a": (command: "y")})"#, "program \"a\" is there twice"),
    (r#"(programs: {"a": ()})"#, "program \"a\" has no command"),
    (r#"(programs: {"a": (command: "")})"#, "program \"a\" has an empty command"),
    (r#"(programs: {"a": (command: "x", shell: "y")})"#, "both a command and a shell"),
    (r#"(programs: {"a": (command: "x", depends: {"b": ()})})"#, "depends on \"b\", which does not exist"),
    (r#"(programs: {"a": (command: "x", depends: {"a": ()})})"#, "cycle: a -> a"),
    (
        r#"(programs: {"a": (command: "x", depends: {"b": ()}), "b": (command: "x", depends: {"a": ()})})"#,
        "cycle: a -> b -> a",
    ),
    (
        r#"(programs: {"a": (command: "x", depends: {"b": ()}), "b": (command: "x", enabled: false)})"#,
        "depends on \"b\", which is disabled",
    ),
    (
        r#"(programs: {"a": (command: "x", depends: {"b": (condition: Completed)}), "b": (command: "x")})"#,
        "to complete, which is started again whenever it ends",
    ),
    (
        r#"(programs: {"a": (command: "x", depends: {"b": (condition: Completed, propagate: true)}), "b": (command: "x", mode: Once)})"#,
        "nothing to propagate",
    ),
    (r#"(programs: {"a": (command: "x", depends: {"b": (condition: Ended)})})"#, "Ended"),
    (r#"(programs: {"a": (command: "x", start_limit: (burst: 0, interval: "1m"))})"#, "allows 0 starts"),
    (r#"(programs: {"a": (command: "x", start_limit: (burst: 3, interval: 0))})"#, "a time of 0"),
    (r"(gaggled: (start_limit: (burst: 99999, interval: 1)))", "allows 99999 starts"),
    (r#"(programs: {"a": (command: "x", levels: ["1"])})"#, "has levels and no group"),
    (r#"(programs: {"a": (command: "x", group: "a")})"#, "group \"a\" has the name of a program"),
    (r#"(programs: {"a": (command: "x", group: "g", levels: ["1"])})"#, "group \"g\" has no level \"start\""),
    (
        r#"(groups: {"g": (level: "2")}, programs: {"a": (command: "x", group: "g", levels: ["1"])})"#,
        "group \"g\" has no level \"2\"",
    ),
    (r#"(groups: {"g": (on_failure: "2")}, programs: {"a": (command: "x", group: "g")})"#, "no level \"2\""),
    (r#"(groups: {"g": (), "g": ()})"#, "group \"g\" is there twice"),
    (r#"(groups: {"g h": ()})"#, "name \"g h\""),
    (r#"(programs: {"a": (command: "x", group: "g", levels: ["a b"])})"#, "name \"a b\""),
    (
        r#"(programs: {"a": (command: "x", group: "g", mode: Wait, depends: {"b": ()}), "b": (command: "x", group: "g")})"#,
        "a -> b -> a",
    ),
    (r#"(programs: {"a": (command: "x", stop_signal: "SIGNONE")})"#, "has a stop signal that cannot ask it to end"),
    (r#"(programs: {"a": (command: "x", stop_signal: "STOP")})"#, "has a stop signal that cannot ask it to end"),
    (r#"(programs: {"a": (command: "x", mode: Test, stop_command: "y")})"#, "is of mode Test, and has a stop command"),
    (
        r#"(programs: {"a": (command: "x", mode: Wait, start_limit: (burst: 1, interval: 1))})"#,
        "has a start limit, but runs only once",
    ),
    (r#"(programs: {"a": (command: "x", success_exit_codes: [256])})"#, "exit code for success"),
    (r#"(programs: {"a": (command: "x", nice: 20)})"#, "niceness"),
    (r#"(programs: {"a": (command: "x", nice: 1000)})"#, "out of bounds"),
    (r#"(programs: {"a": (command: "x", oom_score_adj: 1001)})"#, "score"),
    (r#"(programs: {"a": (command: "x", user: "")})"#, "user without a name"),
    (r#"(programs: {"a": (command: "x", user: "a:b:c")})"#, "user without a name"),
    (r#"(programs: {"a": (command: "x", chroot: "srv")})"#, "not absolute"),
    ("\n", "the file is empty"),
    (
        r#"(programs: {"a": (command: "x", backoff: (initial: "10s", max: "1s"))})"#,
        "begins with 10.0 s and goes up to 1.0 s",
    ),
    (r#"(programs: {"a": (command: "x", ready: Http("http://127.0.0.1:99999/"))})"#, "an invalid url"),
    (r#"(programs: {"a": (command: "x", ready: Http("http://[::1]:0"))})"#, "an invalid url"),
    (r#"(programs: {"a": (command: "x", umask: "8")})"#, "umask \"8\""),
    (r#"(programs: {"a": (command: "x", umask: "1000")})"#, "umask \"1000\""),
    (r#"(programs: {"a": (command: "x", rlimits: {"files": 9})})"#, "limit \"files\" (9)"),
    (r#"(programs: {"a": (command: "x", rlimits: {"nofile": "9:8"})})"#, "limit \"9:8\""),
    (r#"(programs: {"a": (command: "x", rlimits: {"nofile": 9, "nofile": 8})})"#, "there twice"),
    (
        r#"(programs: {"a": (command: "x", log: "f"), "b": (command: "x", log: "f", rotate: ())})"#,
        "\"b\" has the same log as \"a\"",
    ),
    (
        r#"(programs: {"a": (command: "x", log: "f", rotate: ()), "b": (command: "x", log: "f")})"#,
        "\"b\" has the same log as \"a\"",
    ),
    (r#"(gaggled: (cgroup: "gaggled"), programs: {})"#, "cgroups is not absolute"),
    (r#"(programs: {"a": (command: "x", cgroup: {"memory.max": "1M"})})"#, "needs a cgroup"),
    (
        r#"(gaggled: (cgroup: "/x"), programs: {"a": (command: "x", cgroup: {"cgroup.kill": "1"})})"#,
        "not a setting of a cgroup",
    ),
    (r#"(gaggled: (cgroup: "/x"), programs: {"a": (command: "x", cgroup: {"memory.max": " "})})"#, "has no value"),
    (r#"(programs: {"a": (command: "x", pid_file: Read(""))})"#, "without a name"),
    (r#"(programs: {"a": (command: "x", pid_file: Keep("f"))})"#, "Keep"),
    (r#"(programs: {"a": (command: "x", mode: Wait, group: "g", pid_file: Read("f"))})"#, "leaves a daemon"),
    (r#"(programs: {"a": (command: "x", ready: Tcp("5432"))})"#, "an invalid address"),
    (r#"(programs: {"a": (command: "x", ready: Http("/health"))})"#, "an invalid url"),
    (r#"(programs: {"a": (command: "x", ready: Command(""))})"#, "an empty command"),
    (r#"(programs: {"a": (command: "x", ready: Fd(2))})"#, "a descriptor out of range"),
    (r#"(programs: {"a": (command: "x", ready: LogLine("up"))})"#, "has no log"),
    (r#"(programs: {"a": (command: "x", log: "f", ready: LogLine(""))})"#, "an empty line"),
    (r#"(programs: {"a": (command: "x", ready: Soon)})"#, "Soon"),
    (r#"(programs: {"a": (command: "x", health: (probe: Tcp("h:0")))})"#, "an invalid address"),
    (r#"(programs: {"a": (command: "x", health: (probe: Tcp("h:1"), interval: 0))})"#, "a time of 0"),
    (r#"(programs: {"a": (command: "x", health: (probe: Tcp("h:1"), failure_threshold: 0))})"#, "0 failures"),
    (r#"(programs: {"a": (command: "x", health: (interval: 1))})"#, "probe"),
    (r#"(programs: {"a": (command: "x", watchdog: 0)})"#, "a time of 0"),
    (r#"(programs: {"a": (command: "x", start_timeout: 0)})"#, "a time of 0"),
    (r#"(programs: {"a": (command: "x", mode: Test, ready: Notify)})"#, "readiness and health checks have no effect"),
    (r#"(programs: {"a": (command: "x", start_limit: (burst: 3))})"#, "interval"),
    (r#"(programs: {"a b": (command: "x")})"#, "name \"a b\""),
    (r#"(programs: {"": (command: "x")})"#, "name \"\""),
    (r#"(programs: {"a": (command: "x", env: {"A=B": "c"})})"#, "\"A=B\""),
    (r#"(programs: {"a": (command: "x", env: {"GAGGLED_HOST": "c"})})"#, "GAGGLED_HOST"),
    (r#"(programs: {"a": (command: "x", respawn: true, mode: Once)})"#, "both respawn and mode"),
    (
        r#"(programs: {"a": (command: "x", pid_file: Write("f")), "b": (command: "x", pid_file: Read("f"))})"#,
        "has the same pid file as \"a\"",
    ),
    (
        r#"(programs: {"a": (command: "x", log: "f", rotate: ()), "b": (command: "x", log: "f", rotate: ())})"#,
        "has the same log as \"a\"",
    ),
    (r#"(programs: {"a": (command: "x", log: "/dev/null", ready: LogLine("up"))})"#, "has no log"),
    (r#"(programs: {"a": (command: "x", retry: true)})"#, "started again however it ends"),
    (r#"(programs: {"a": (command: "x", rotate: ())})"#, "has no log"),
    (r#"(programs: {"a": (command: "x", log: "f", rotate: (size: 100))})"#, "too small"),
    (r#"(programs: {"a": (command: "x", log: "f", rotate: (size: "10 apples"))})"#, "size \"10 apples\""),
    (r#"(programs: {"a": (command: "x", log: "f", rotate: (max_files: 0))})"#, "too few logs"),
    (r#"(programs: {"a": (command: "x", log: "f", rotate: (overflow: Explode))})"#, "Explode"),
    (r#"(gaggled: (prefix_output: true), programs: {"logger": (command: "x")})"#, "\"logger\" is there twice"),
    (r#"(nodes: {"a": ["@b"]})"#, "no set \"b\""),
    (r#"(nodes: {"a": ["@b"], "b": ["@a"]})"#, "is in itself"),
    (r#"(nodes: {"a": ["b"], "b": []})"#, "host \"b\" has the name of a set"),
    (r#"(nodes: {"a": ["b c"]})"#, "no name of a host"),
    (r#"(nodes: {"a": [], "a": []})"#, "set \"a\" is there twice"),
    (r#"(nodes: {"__all__": []})"#, "reserved name"),
    (r#"(hosts: [""])"#, "no name of a host"),
    (r"(gaggled: (killwait: -1))", "negative"),
    (r#"(gaggled: (killwait: "5 bananas"))"#, "5 bananas"),
    (r"(gaggled: (killwait: 99999999999999))", "ten years"),
    (r#"(programs: {"a": (command: "x")"#, "expected"),
    (r"(gaggled: (smtpgate: (auto: true)))", "smtpgate"),
];

fn refused(text: &str) -> Vec<String> {
    match Config::parse(text) {
        Ok(_) => Vec::new(),
        Err(found) => found.into_iter().map(|found| found.message).collect(),
    }
}

#[test]
fn the_empty_configuration_is_one() {
    assert!(refused("()").is_empty());
    assert!(refused("(programs: {})").is_empty());
}

#[test]
fn a_full_configuration_prints_and_reads_back_the_same() {
    let text = r#"(
        gaggled: (killwait: "3s", path: "/opt/bin", env: {"TZ": "UTC"}, eventurl: "ipc:///tmp/e", controlurl: "ipc:///tmp/c"),
        programs: {
            "db": (command: "postgres", argv: ["-D", "/srv/db"], killwait: 5000, log: "/var/log/db.log"),
            "web": (shell: "exec web", mode: Once, enabled: false, wd: "/", env: {"A": "b"}, depends: {
                "db": (delay: "500ms", propagate: true),
            }),
        },
    )"#;
    let first = Config::parse(text).expect("it is correct").config;
    let printed = first.print().expect("it can be written");
    assert_eq!(Config::parse(&printed).expect("it is correct again").config, first, "{printed}");
}

#[test]
fn every_mistake_is_named() {
    for (text, expected) in MISTAKES {
        let found = refused(text);
        assert!(
            found.iter().any(|message| message.to_lowercase().contains(&expected.to_lowercase())),
            "{text}\n{found:?}"
        );
    }
}

#[test]
fn several_mistakes_are_reported_at_once_each_in_its_place() {
    let text = "(programs: {\n  \"a\": (command: \"x\", depends: {\"nosuch\": ()}),\n  \"b\": (),\n})";
    let found = Config::parse(text).expect_err("it is wrong");
    let places: Vec<&str> = found.iter().map(|found| &text[found.span.clone().expect("a place")]).collect();
    assert_eq!(places, ["\"nosuch\"", "\"b\""]);
}

/// An error in a field is reported at the place of that field.
#[test]
fn a_mistake_in_a_field_is_shown_there() {
    for (field, value, mode) in [
        ("start_limit", "(burst: 0, interval: \"1m\")", "Once"),
        ("start_limit", "(burst: 1, interval: 1)", "Wait"),
        ("stop_command", "\"true\"", "Test"),
        ("stop_signal", "\"9\"", "Once"),
        ("success_exit_codes", "[999]", "Once"),
    ] {
        let text = format!("(programs: {{\"a\": (command: \"x\", mode: {mode}, {field}: {value}, group: \"g\")}})");
        let found = Config::parse(&text).expect_err("it is wrong");
        let place = |found: &Diagnostic| found.span.clone().map(|span| text[span].to_owned()).unwrap_or_default();
        assert!(found.iter().any(|found| place(found).starts_with(field)), "{text}\n{found:#?}");
    }
    let text = "(gaggled: (start_limit: (burst: 0, interval: 1)))";
    let found = Config::parse(text).expect_err("it is wrong");
    assert_eq!(&text[found[0].span.clone().expect("a place")], "start_limit");
}
