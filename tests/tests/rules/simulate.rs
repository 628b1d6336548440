//! `gaggled graph` and `gaggled simulate`: the dependencies of a system, and a forecast of a failure.

use std::{fs, path::Path, process::Command, sync::Arc};

use gaggled_core::{
    base::time::{Instant, Millis},
    config::Config,
    event::{Envelope, Event, ProgramEvent},
    graph::Graph,
    planning::simulate::{Fault, Impact, Scenario, Simulation},
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, binary, directory},
    import_harness::said,
};

const SYSTEM: &str = r#"(
    programs: {
        "db": (command: "sleep", argv: ["1000"], ready: Tcp("127.0.0.1:5432")),
        "cache": (command: "sleep", argv: ["1000"]),
        "migrate": (command: "true", mode: Once, depends: {"db": ()}),
        "app": (command: "sleep", argv: ["1000"], depends: {
            "db": (delay: "500ms", propagate: true), "migrate": (condition: Completed), "cache": (),
        }),
        "web": (command: "sleep", argv: ["1000"], depends: {"app": (propagate: true)}),
        "cron": (command: "sleep", argv: ["1000"]),
    },
)"#;

fn gaggled(arguments: &[&str], config: &Path) -> (i32, String) {
    said(&Command::new(binary("gaggled")).args(arguments).arg("-c").arg(config).output().expect("gaggled"))
}

fn at(seconds: u64) -> Instant {
    Instant::default() + Millis(seconds * 1000)
}

fn impacts(graph: &Graph, assumptions: &Scenario) -> Vec<Impact> {
    let well = Simulation::new(graph, &Scenario { faults: Vec::new(), ..assumptions.clone() });
    Simulation::new(graph, assumptions).impacts(&well, assumptions)
}

#[test]
fn a_forecast_tells_who_would_notice() {
    let config = Config::parse(SYSTEM).expect("it is correct").config;
    let graph = config.graph();
    let names = graph.names();
    let fail = |name: &str| Scenario { faults: vec![Fault::Fail(names[name], at(10))], until: at(60), seed: 1 };
    let noticed = |assumptions: &Scenario| {
        let impacts = impacts(&graph, assumptions);
        assert!(impacts.iter().all(|impact| impact.back.is_some()), "everybody comes back: {impacts:?}");
        impacts.iter().map(|impact| graph.programs[impact.program].name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(noticed(&fail("db")), ["db", "app", "web"]);
    assert_eq!(noticed(&fail("app")), ["app", "web"]);
    assert_eq!(noticed(&fail("cache")), ["cache"]);
    // The same seed gives the same forecast, and another one another.
    let again = |seed| Simulation::new(&graph, &Scenario { seed, ..fail("db") }).envelopes;
    assert_eq!(again(7), again(7));
    assert_ne!(again(7).last().map(|envelope| envelope.monotonic), again(8).last().map(|envelope| envelope.monotonic));
    // A program that does not come up again keeps the programs down that wait for it.
    let broken = Scenario { faults: vec![Fault::Broken(names["db"], at(10), at(60))], until: at(60), seed: 1 };
    let impacts = impacts(&graph, &broken);
    let app = impacts.iter().find(|impact| impact.program == names["app"]).expect("it notices");
    assert!(app.back.is_none() && app.out >= Millis(49_000), "{app:?}");
}

/// A program is also affected if one that it waits for fails before it has ever been up.
#[test]
fn a_forecast_tells_who_would_never_come_up() {
    let config = Config::parse(SYSTEM).expect("it is correct").config;
    let graph = config.graph();
    let names = graph.names();
    let well = Simulation::new(&graph, &Scenario { faults: Vec::new(), until: at(60), seed: 1 });
    let begins = |envelope: &&Envelope| matches!(envelope.event, Event::Program(program, ProgramEvent::Started { .. }) if program == names["migrate"]);
    let started = well.envelopes.iter().find(begins).expect("it is started").monotonic;
    let early = Fault::Fail(names["migrate"], started + Millis(1));
    let impacts = impacts(&graph, &Scenario { faults: vec![early], until: at(60), seed: 1 });
    let lost: Vec<&str> = impacts.iter().map(|impact| &*graph.programs[impact.program].name).collect();
    assert_eq!(lost, ["migrate", "app", "web"]);
    assert!(impacts.iter().all(|impact| impact.back.is_none() && impact.out > Millis(50_000)), "{impacts:?}");
}

#[test]
fn what_would_happen_is_shown_to_people_and_programs() {
    let directory = directory();
    let file = directory.path().join("system.ron");
    fs::write(&file, SYSTEM).expect("a file");
    let (code, text) = gaggled(&["simulate", "--fail", "db@10s", "--until", "1m", "--seed", "3"], &file);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("10.000 s") && text.contains("db was killed by SIGKILL"), "{text}");
    assert!(text.contains("PROGRAM  STARTS  NOT READY FOR  READY AGAIN"), "{text}");
    assert!(text.contains("3 other programs do not notice."), "{text}");
    let (code, text) = gaggled(&["simulate", "--break", "db@10s..20s", "--json"], &file);
    assert_eq!(code, 0, "{text}");
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    }
    for (arguments, expected, why) in [
        (["--fail", "nosuch@1s"], 3, "no program \"nosuch\""),
        (["--fail", "db"], 2, "write PROGRAM@TIME"),
        (["--fail", "db@10m"], 2, "give a longer --until"),
        (["--break", "db@10s..5s"], 2, "before it breaks"),
        (["--fail", "db@soon"], 2, "duration \"soon\""),
        (["--break", "db@1s"], 2, "write PROGRAM@TIME..TIME"),
    ] {
        let (code, text) = gaggled(&[&["simulate"], &arguments[..]].concat(), &file);
        assert_eq!((code, text.contains(why)), (expected, true), "{text}");
    }
}

#[test]
fn the_dependencies_are_drawn_with_and_without_state() {
    let directory = Arc::new(directory());
    let file = directory.path().join("drawn.ron");
    fs::write(&file, SYSTEM).expect("a file");
    let tree = "db\n├── migrate (when ready)\n│   └── app (when completed)\n│       └── web (propagates)\n\
                └── app (when ready, after 500 ms, propagates) ...\ncache\n└── app ...\ncron\n";
    assert_eq!(gaggled(&["graph"], &file), (0, tree.to_owned()));
    let (code, text) = gaggled(&["graph", "--dot"], &file);
    assert_eq!(code, 0);
    assert!(text.starts_with("digraph {") && text.contains("label = \"ready, after 500 ms\", style = bold"), "{text}");
    let running = "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\"), programs: {\
                   \"a\": (command: \"sleep\", argv: [\"1000\"]), \"b\": (command: \"sleep\", argv: [\"1000\"], depends: {\"a\": ()})})";
    let mut daemon = Daemon::with(running, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("b", 1);
    assert_eq!(gaggled(&["graph"], &directory.path().join("system.ron")), (0, "a [up]\n└── b [up]\n".to_owned()));
    let backoff = said(&daemon.tool("gaggled_controller", &["backoff", "b"]));
    assert!(backoff.0 == 0 && backoff.1.contains("it has no start limit\nnothing holds it back"), "{backoff:?}");
    assert_eq!(said(&daemon.tool("gaggled_controller", &["backoff", "c"])).0, 3);
}

/// The graph has the programs that gaggled adds, and shows the state of a running gaggled.
#[test]
fn programs_that_gaggled_adds_are_drawn_too() {
    let text = "(gaggled: (eventurl: \"ipc://@DIR@/events.ipc\", controlurl: \"ipc://@DIR@/control.ipc\", \
                state_directory: \"@DIR@/state\"), \
                programs: {\"a\": (command: \"sleep\", argv: [\"1000\"], log: \"@DIR@/a.log\", rotate: ())})";
    let directory = Arc::new(directory());
    let file = directory.path().join("cold.ron");
    fs::write(&file, text.replace("@DIR@", &directory.path().display().to_string())).expect("a file");
    assert_eq!(gaggled(&["graph"], &file), (0, "logger (added by gaggled)\n└── a\n".to_owned()));
    let (code, timeline) = gaggled(&["simulate", "--until", "1s"], &file);
    assert!(code == 0 && timeline.contains("logger is being started"), "{timeline}");
    let mut daemon = Daemon::with(text, directory.clone(), &DaemonOptions::default());
    daemon.wait_up("a", 1);
    let drawn = gaggled(&["graph"], &directory.path().join("system.ron"));
    assert_eq!(drawn, (0, "logger (added by gaggled) [up]\n└── a [up]\n".to_owned()));
}

/// A dump of the past takes the same names and patterns as one of now, and refuses the same.
#[test]
fn a_dump_of_the_past_takes_names_groups_and_patterns() {
    let mut daemon = Daemon::new(
        "\"db\": (command: \"sleep\", argv: [\"1000\"], group: \"g\"), \
         \"web\": (command: \"sleep\", argv: [\"1000\"], depends: {\"db\": ()}), \
         \"cron\": (command: \"sleep\", argv: [\"1000\"]),",
    );
    daemon.wait_up("web", 1);
    let dump = |words: &[&str], at: bool| {
        let past: &[&str] = if at { &["--at", "3"] } else { &[] };
        let output = daemon.tool("gaggled_controller", &[&["--json", "dump"], words, past].concat());
        let (code, text) = said(&output);
        let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let names = |list: &str, field: &str| -> Vec<String> {
            let all = body[list].as_array().into_iter().flatten();
            all.map(|one| one[field].as_str().unwrap_or_default().to_owned()).collect()
        };
        (code, names("programs", "program"), names("dependencies", "dependent"), names("groups", "group"), text)
    };
    for words in [&["web"][..], &["g"], &["*b"], &["web", "g"], &[]] {
        let (now, past) = (dump(words, false), dump(words, true));
        assert_eq!((now.0, &now.1, &now.2, &now.3), (past.0, &past.1, &past.2, &past.3), "{words:?}");
    }
    assert_eq!(dump(&["w*"], true).1, ["web"]);
    let (code, .., text) = dump(&["wep"], true);
    assert_eq!((code, text.contains("did you mean \"web\"?")), (3, true), "{text}");
}
