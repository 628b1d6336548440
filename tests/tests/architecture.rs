//! Who may import whom, read from what cargo knows.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

/// The names of a crate's normal dependencies.
fn dependencies(metadata: &Value, name: &str) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == name).expect("a crate of this workspace");
    let all = package["dependencies"].as_array().expect("dependencies");
    all.iter().filter(|one| one["kind"].is_null()).map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn imports_go_one_way() {
    let metadata = metadata();
    let own = |name: &str| -> BTreeSet<String> {
        dependencies(&metadata, name).into_iter().filter(|name| name.starts_with("gaggled_")).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(own("gaggled_core"), set(&[]));
    assert_eq!(own("gaggled_actors"), set(&["gaggled_core"]));
    assert_eq!(own("gaggled_gateways"), set(&["gaggled_core"]));
    assert_eq!(own("gaggled_tools"), set(&["gaggled_core", "gaggled_actors", "gaggled_gateways"]));
}

#[test]
fn each_crate_knows_only_its_own_world() {
    let metadata = metadata();
    let forbidden = [
        ("gaggled_core", &["tokio", "actix", "nng", "nix", "libc", "rand", "slog", "lettre", "crossbeam-channel"][..]),
        ("gaggled_actors", &["nng", "lettre"][..]),
        ("gaggled_gateways", &["actix"][..]),
    ];
    for (name, foreign) in forbidden {
        let all = dependencies(&metadata, name);
        let found: Vec<_> = foreign.iter().filter(|foreign| all.contains(**foreign)).collect();
        assert!(found.is_empty(), "{name} imports {found:?}");
    }
}

#[test]
fn the_core_touches_no_world() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
    let banned = [
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "HashMap",
        "HashSet",
        "unsafe ",
    ];
    for path in sources(&core) {
        let text = std::fs::read_to_string(&path).expect("a source");
        let found: Vec<_> = banned.iter().filter(|word| text.contains(**word)).collect();
        assert!(found.is_empty(), "{} has {found:?}", path.display());
    }
}

#[test]
fn unsafe_code_is_in_two_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = ["core", "actors", "gateways", "tools"].iter().flat_map(|name| sources(&root.join(name).join("src")));
    let with_unsafe: BTreeSet<String> = sources
        .filter(|path| std::fs::read_to_string(path).expect("a source").contains("unsafe_code"))
        .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(with_unsafe, ["kernel.rs", "nng_ffi.rs"].map(str::to_owned).into());
}

/// What opens, makes, renames or removes a file by its path.
const FILE_CALLS: [&str; 16] = [
    "File::open(",
    "File::create(",
    "OpenOptions::new(",
    "fs::read(",
    "fs::read_to_string(",
    "fs::write(",
    "fs::rename(",
    "fs::remove_file(",
    "fs::hard_link(",
    "fs::create_dir",
    "fs::copy(",
    "openat(",
    "mkfifo(",
    "libc::open(",
    "libc::rename(",
    "libc::unlink(",
];

/// The sources that may do so, and whose files those are. The files of a program are opened in `safe_path` only.
const FILE_OWNERS: [(&str, &str); 24] = [
    ("actors/src/safe_path.rs", "the files of programs"),
    ("actors/src/host/attendant/notify.rs", "the notify sockets in a directory of gaggled's own"),
    ("actors/src/host/cgroup.rs", "the kernel's cgroup tree"),
    ("actors/src/host/cgroup/directory.rs", "the kernel's cgroup tree"),
    ("actors/src/host/proc.rs", "/proc"),
    ("actors/src/host/starter.rs", "/dev/null, memory files, and the pipes in the state directory"),
    ("actors/src/journal/writer.rs", "the state directory"),
    ("actors/src/launch/confines.rs", "/proc/self"),
    ("actors/src/state_directory.rs", "the state directory"),
    ("gateways/src/smtp/ledger.rs", "the state directory"),
    ("gateways/src/smtp/outbox.rs", "the password and the certificate that the configuration names"),
    ("tools/src/daemon.rs", "the sockets of gaggled"),
    ("tools/src/daemon/life.rs", "the descriptors from the subreaper"),
    ("tools/src/daemon/takeover.rs", "the kernel's cgroup tree"),
    ("tools/src/diagnostics.rs", "the configuration"),
    ("tools/src/import.rs", "what an operator gives to be imported"),
    ("tools/src/import/info.rs", "what an operator gives to be imported"),
    ("tools/src/import/procfile.rs", "what an operator gives to be imported"),
    ("tools/src/journal_tool.rs", "what an operator gives to be read"),
    ("tools/src/subreaper.rs", "/proc/self and the binary of gaggled"),
    ("tools/src/logger.rs", "the list of logs and the pipes in the state directory"),
    ("tools/src/logger/pipes.rs", "the pipes in the state directory"),
    ("tools/src/nodes.rs", "what an operator gives to be read"),
    ("gateways/src/url.rs", "the sockets of gaggled"),
];

#[test]
fn files_of_programs_are_opened_in_one_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let all = ["actors", "gateways", "tools"].iter().flat_map(|name| sources(&root.join(name).join("src")));
    for path in all {
        let text = std::fs::read_to_string(&path).expect("a source");
        // What the tests in a source do is their own affair.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found: Vec<_> = FILE_CALLS.iter().filter(|call| code.contains(**call)).collect();
        let name = path.strip_prefix(&root).expect("below").display().to_string();
        let may = FILE_OWNERS.iter().any(|(owner, _)| *owner == name);
        assert!(may || found.is_empty(), "{name} has {found:?}: open files of programs with safe_path");
    }
}

fn sources(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
