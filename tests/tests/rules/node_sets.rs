//! Sets of hosts, as PEAK's `running.cluster` read them: scenarios K1 to K7.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gaggled_core::config::node_sets::NodeSets;
use gaggled_tests::{
    harness::{binary, directory},
    import_harness::said,
};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peak").join(name)
}

fn nodes(cluster: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("gaggled"));
    command.arg("nodes").args(arguments).env_remove("CLUSTER");
    if let Some(cluster) = cluster {
        command.env("CLUSTER", cluster);
    }
    command.output().expect("gaggled")
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect()
}

/// K1, K2 and K4: everything, in the original's order.
#[test]
fn k1_everything_is_read_in_the_order_of_the_original() {
    let expected = fs::read_dir(fixture("")).expect("fixtures").flatten().map(|entry| entry.path());
    let expected: Vec<PathBuf> = expected.filter(|path| path.to_string_lossy().ends_with(".expected.json")).collect();
    assert_eq!(expected.len(), 11);
    for path in expected {
        let name = path.file_name().expect("a name").to_string_lossy().replace(".expected.json", "");
        let expected: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a file")).expect("JSON");
        let text = fs::read_to_string(fixture(&format!("{name}.cluster"))).expect("a file");
        let read = NodeSets::parse_cluster(&text).unwrap_or_else(|wrong| panic!("{name}: {wrong:?}"));
        assert_eq!(read.sets().collect::<Vec<_>>(), names(&expected["groups"]), "{name}");
        assert_eq!(read.hosts("*"), Some(names(&expected["hosts"])), "{name}");
        assert_eq!(read.hosts("@__orphans__"), Some(names(&expected["orphans"])), "{name}");
        for (set, hosts) in expected["members"].as_object().expect("members") {
            assert_eq!(read.hosts(&format!("@{set}")), Some(names(hosts)), "{name}: {set}");
        }
        for (host, sets) in expected["groups_of"].as_object().expect("hosts") {
            assert_eq!(read.sets_of(host), Some(names(sets)), "{name}: {host}");
        }
        // The same sets, imported into a configuration.
        let ron = directory();
        let file = ron.path().join("nodes.ron");
        let imported = Command::new(binary("gaggled"))
            .args(["import", "clusterit"])
            .arg(fixture(&format!("{name}.cluster")))
            .output();
        fs::write(&file, imported.expect("gaggled").stdout).expect("a file");
        let file = file.display().to_string();
        if !names(&expected["hosts"]).is_empty() {
            let (code, text) = said(&nodes(None, &["-c", &file]));
            let in_order = |mut names: Vec<String>| {
                // A group that is listed twice in the cluster file is listed once in a configuration.
                if name == "repeated" {
                    names.sort();
                }
                names
            };
            let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
            let found = in_order(owned(text.lines().collect()));
            assert_eq!((code, found), (0, in_order(owned(names(&expected["hosts"])))), "{name}");
            let (code, text) = said(&nodes(None, &["-c", &file, "--sets"]));
            assert_eq!((code, text.lines().collect::<Vec<_>>()), (0, names(&expected["groups"])), "{name}");
        }
    }
}

#[test]
fn k3_without_a_file_there_is_this_host() {
    let host = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
    let output = nodes(None, &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{host}\n"));
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(said(&nodes(None, &["--sets"])), (0, String::new()));
    let output = nodes(Some(Path::new("/nonexistent")), &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{host}\n"));
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && warning.starts_with("Warning: $CLUSTER names /nonexistent"), "{warning}");
}

#[test]
fn k4_an_empty_file_has_no_hosts() {
    for name in ["empty", "comments_only"] {
        assert_eq!(said(&nodes(Some(&fixture(&format!("{name}.cluster"))), &[])), (0, String::new()), "{name}");
    }
}

#[test]
fn k5_a_bad_file_is_refused_with_the_line() {
    let table = [
        ("bad_cycle", 7, "is in itself"),
        ("bad_undefined", 4, "there is no set \"nope\""),
        ("bad_host_named_like_group", 2, "host \"g2\" has the name of a set"),
        ("bad_unnamed_group", 1, "has no name"),
        ("bad_space_in_host", 2, "\"b # not a comment\" is no name of a host"),
        ("bad_group_and_lump_same_name", 3, "\"x\" is a GROUP and a LUMP"),
    ];
    for (name, line, why) in table {
        let (code, text) = said(&nodes(Some(&fixture(&format!("{name}.cluster"))), &[]));
        assert_eq!(code, 1, "{name}: {text}");
        assert!(text.contains(&format!("{name}.cluster:{line}: ")) && text.contains(why), "{name}: {text}");
    }
}

/// K6: a great many hosts, and sets a hundred deep. This checks only that it ends; the benchmark measures the time.
#[test]
fn k6_a_large_cluster_is_read() {
    let mut text = String::new();
    for group in 0..1000 {
        text.push_str(&format!("GROUP:g{group}\n"));
        (0..10).for_each(|host| text.push_str(&format!("h{group}-{host}\n")));
    }
    for lump in 0..100 {
        let inner = if lump == 0 { "g0".to_owned() } else { format!("l{}", lump - 1) };
        text.push_str(&format!("LUMP:l{lump}\n{inner}\ng{}\n", lump + 1));
    }
    let read = NodeSets::parse_cluster(&text).expect("it is correct");
    assert_eq!(read.hosts("*").map(|hosts| hosts.len()), Some(10_000));
    assert_eq!(read.hosts("@l99").map(|hosts| hosts.len()), Some(1010));
    assert_eq!(read.sets_of("h0-0").map(|sets| sets.len()), Some(101));
}

#[test]
fn k7_questions_are_answered_a_name_a_line() {
    let seed = fixture("seed.cluster");
    let ask = |arguments: &[&str]| said(&nodes(Some(&seed), arguments));
    let weird = "one.baz.com\nthree.baz.com\nfive.baz.com\ntwo.baz.com\nfrob.baz.com\n";
    assert_eq!(ask(&["@weird"]), (0, weird.to_owned()));
    assert_eq!(ask(&["--groups-of", "one.baz.com"]), (0, "odd\nprime\nqux\nweird\n".to_owned()));
    assert_eq!(ask(&["--groups-of", "foo.baz.com"]), (0, String::new()));
    assert_eq!(ask(&["@__orphans__"]), (0, "foo.baz.com\nbar.baz.com\n".to_owned()));
    assert_eq!(ask(&["*"]).1.lines().count(), 9);
    let host = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
    assert_eq!(ask(&["--hostname"]), (0, format!("{host}\n")));
    assert_eq!(ask(&["--shortname"]), (0, format!("{}\n", host.split('.').next().expect("a part"))));
    for unknown in [&["@nosuch"][..], &["nosuch"], &["--groups-of", "nosuch"]] {
        let (code, text) = ask(unknown);
        assert_eq!((code, text.contains("there is no")), (2, true), "{text}");
    }
}
