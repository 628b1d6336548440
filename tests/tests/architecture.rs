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
