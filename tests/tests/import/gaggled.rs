//! The importer on every file of the original's configuration test, and the expected result for each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gaggled_core::config::Config;
use gaggled_tests::harness::{binary, directory};

/// The expected result for a file: refused with these words, or taken with a note that has these words.
enum Expected {
    Refused(&'static str),
    Taken(&'static str),
}
use Expected::{Refused, Taken};

const TABLE: [(&str, Expected); 48] = [
    ("c01_empty", Taken("")),
    ("c02_comment_only", Taken("")),
    ("c03_minimal", Taken("")),
    ("c04_missing_command", Refused("program a missing setting: command")),
    ("c05_empty_command", Refused("program a missing setting: command")),
    ("c06_command_not_found", Taken("")),
    ("c07_abs_command_not_found", Taken("")),
    ("c08_command_is_directory", Taken("")),
    ("c09_command_not_executable", Taken("")),
    ("c10_disabled_command_not_found", Taken("")),
    ("c11_duplicate_program", Refused("duplicate program name a")),
    ("c12_dep_unknown", Refused("depends on \"nosuch\", which does not exist")),
    ("c13_dep_disabled", Taken("program b was not enabled, and others need it: autostart is false")),
    ("c14_dep_self", Refused("cycle: a -> a")),
    ("c15_cycle2", Refused("cycle: a -> b -> a")),
    ("c16_cycle3", Refused("cycle: a -> b -> c -> a")),
    ("c17_triangle_ok", Taken("")),
    ("c18_diamond", Taken("")),
    // B11: no false cycles.
    ("c19_diamond_plus_one", Taken("")),
    ("c20_diamond_plus_one_top_first", Taken("")),
    ("c21_triangle_plus_one", Taken("")),
    ("c22_same_dep_twice", Taken("a second dependency on \"b\" was ignored")),
    ("c23_same_dep_twice_plus_top", Taken("a second dependency on \"b\" was ignored")),
    ("c24_unclosed_brace", Refused("unmatched {")),
    ("c25_extra_close_brace", Refused("unmatched }")),
    ("c26_stray_quote", Refused("unexpected end of line")),
    // B19: settings that the original ignored in silence are noted.
    ("c27_unknown_settings", Taken("\"respwan\" is no setting")),
    ("c28_bool_no", Taken("enabled \"no\" is neither true nor false, so it was true")),
    ("c29_bad_ints", Taken("killwait \"5s\" is not a number of milliseconds, so it was 10000")),
    // B20: a dot in a variable is no reason to end.
    ("c30_env_dot", Taken("")),
    ("c31_depends_as_value", Taken("depends has the value \"b\" instead of a section, and was ignored")),
    ("c32_include_missing", Refused("cannot open include file nosuchfile.conf")),
    ("c33_include_ok", Taken("")),
    ("c34_smtpgate_auto_incomplete", Refused("required setting gaggled.smtpgate.from is not set")),
    ("c35_smtpgate_auto_bad_period", Refused("period must be a positive integer")),
    ("c36_smtpgate_auto_dup", Refused("\"smtpgate\" is there twice")),
    ("c37_smtpgate_auto_binary_missing", Taken("")),
    ("c38_two_gaggled_sections", Taken("tick is left out")),
    ("c39_toplevel_value", Refused("program a missing setting: command")),
    // B2: no name is too long.
    ("c40_name_257", Taken("is called")),
    ("c41_bad_eventurl", Taken("left out: url \"notaurl\" is not understood")),
    ("c42_negative_tick", Taken("tick is left out")),
    ("c43_crlf", Taken("")),
    ("c44_one_line", Taken("")),
    ("c45_wd_missing", Taken("")),
    ("c46_negative_delay", Taken("delay -5 is negative")),
    ("c47_hash_comment", Refused("unknown directive")),
    ("c48_utf8_bom", Taken("")),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/original/configtest")
}

fn import(path: &Path) -> Output {
    Command::new(binary("gaggled"))
        .args(["import", "gaggled"])
        .arg(path)
        .current_dir(folder())
        .output()
        .expect("gaggled")
}

#[test]
fn every_file_of_the_original_is_taken_or_refused_as_it_should_be() {
    assert_eq!(fs::read_dir(folder()).expect("fixtures").count(), TABLE.len());
    for (name, expected) in TABLE {
        let output = import(&folder().join(format!("{name}.conf")));
        let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match expected {
            Refused(words) => {
                assert_eq!(output.status.code(), Some(1), "{name}: {said}");
                assert!(said.contains(words), "{name}: {said}");
                assert!(
                    said.contains(".conf") || words.contains("cycle") || words.contains('"'),
                    "{name} tells no place: {said}"
                );
                assert!(printed.is_empty(), "{name} printed something");
            }
            Taken(words) => {
                assert_eq!(output.status.code(), Some(0), "{name}: {said}");
                assert!(said.contains(words), "{name}: {said}");
                assert!(Config::parse(&printed).is_ok(), "{name}: {printed}");
            }
        }
    }
}

#[test]
fn what_is_printed_means_what_was_read() {
    let output = import(&folder().join("c44_one_line.conf"));
    let config = Config::parse(&String::from_utf8_lossy(&output.stdout)).expect("a configuration").config;
    assert_eq!(config.programs.get("a").and_then(|program| program.command.as_deref()), Some("sleep"));
}

#[test]
fn quotes_escapes_and_trailing_keys_are_read_as_the_original_did() {
    let directory = directory();
    let file = directory.path().join("odd.conf");
    let text = "\"my prog\" { command \"a b\" \\\n  \" c\" ; comment\n argv 13 enabled false\n env { X \"tab\\tend\" Y x;y\n } }\n";
    fs::write(&file, text).expect("a file");
    let output = import(&file);
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let config = Config::parse(&printed).expect("a configuration").config;
    let program = config.programs.get("my_prog").expect("the program");
    assert_eq!(program.command.as_deref(), Some("a b c"));
    assert_eq!(program.argv, ["13"]);
    assert!(!program.enabled);
    assert_eq!(program.env.get("X").map(String::as_str), Some("tab\tend"));
    assert_eq!(program.env.get("Y").map(String::as_str), Some("x"));
    assert!(said.contains("\"enabled\" stands behind a value on the same line"), "{said}");
    assert!(said.contains("odd.conf:3"), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_one_sentence() {
    let output = import(Path::new("/nosuch/file"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}
