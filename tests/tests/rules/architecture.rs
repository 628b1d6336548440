//! Which crates and files may use which, read from `cargo metadata` and the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use gaggled_tests::modules::{circles, sources};
use serde_json::Value;
use syn::{
    UseTree,
    visit::{self, Visit},
};

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
    let all = set(&["gaggled_core", "gaggled_actors", "gaggled_gateways", "gaggled_tools"]);
    assert_eq!(own("gaggled_cluster"), all);
    assert!(!own("gaggled_tests").contains("gaggled_cluster"));
}

/// A gaggled on one machine is built and tested without protoc, gRPC and etcd.
#[test]
fn one_machine_needs_nothing_of_a_cluster() {
    let metadata = metadata();
    let default = metadata["workspace_default_members"].as_array().expect("members");
    assert!(!default.iter().any(|member| member.as_str().is_some_and(|member| member.contains("gaggled_cluster"))));
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none", "--edges", "normal,build", "--package", "gaggled_tools"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    assert!(tree.contains("gaggled_core"), "{tree}");
    let foreign = ["tonic", "prost", "etcd-client", "gaggled_cluster"];
    let found: Vec<_> =
        foreign.iter().filter(|name| tree.lines().any(|line| line.starts_with(&format!("{name} ")))).collect();
    assert!(found.is_empty(), "gaggled_tools is built with {found:?}");
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

/// How many unsafe blocks, functions and implementations each source has.
#[test]
fn unsafe_code_is_in_the_modules_that_the_kernel_and_nng_force_it_into() {
    let root = root();
    let sources = ["core", "actors", "gateways", "tools"].iter().flat_map(|name| sources(&root.join(name).join("src")));
    let mut found = BTreeSet::new();
    for path in sources {
        let mut count = Unsafe::default();
        count.visit_file(&parse(&path));
        if count.0 > 0 {
            found.insert(path.strip_prefix(&root).expect("below").display().to_string());
        }
    }
    let allowed = [
        "actors/src/host/spawn/sys.rs",
        "actors/src/host/spawn/sys/sandbox.rs",
        "actors/src/host/spawn/sys/wait.rs",
        "gateways/src/nng_ffi.rs",
    ];
    assert_eq!(found, allowed.map(str::to_owned).into());
}

#[derive(Default)]
struct Unsafe(usize);

impl<'a> Visit<'a> for Unsafe {
    fn visit_expr_unsafe(&mut self, block: &'a syn::ExprUnsafe) {
        self.0 += 1;
        visit::visit_expr_unsafe(self, block);
    }
    fn visit_signature(&mut self, signature: &'a syn::Signature) {
        self.0 += usize::from(signature.unsafety.is_some());
        visit::visit_signature(self, signature);
    }
    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_impl(self, item);
    }
}

/// No two files may use each other, directly or indirectly. A re-export alone is no use.
#[test]
fn no_file_is_in_a_circle() {
    for name in ["core", "actors", "gateways", "tools"] {
        let found = circles(&uses(&root().join(name).join("src")));
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// The files of a crate by their modules, and which other files of it each uses.
fn uses(directory: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = BTreeMap::new();
    for path in sources(directory) {
        let name = path.strip_prefix(directory).expect("below").with_extension("").display().to_string();
        let name = if name == "lib" { String::new() } else { name.replace('/', "::") };
        files.insert(name, parse(&path));
    }
    let mut exports = BTreeMap::new();
    let mut collected = BTreeMap::new();
    for (module, file) in &files {
        let mut paths =
            Paths { module: module.clone(), exports: BTreeMap::new(), used: BTreeSet::new(), words: BTreeSet::new() };
        paths.visit_file(file);
        exports.insert(module.clone(), paths.exports.clone());
        collected.insert(module.clone(), paths);
    }
    let target = |path: &[String]| resolve(path, &files, &exports, 0);
    let edges = |(module, paths): (&String, &Paths)| {
        // A re-exported name counts as used if it also occurs outside `use`.
        let exported = paths.exports.iter().filter(|(name, _)| paths.words.contains(*name)).map(|(_, path)| path);
        let all = paths.used.iter().chain(exported).filter_map(|path| target(path));
        (module.clone(), all.filter(|to| to != module).collect())
    };
    collected.iter().map(edges).collect()
}

/// The file that a path leads to, through re-exports.
fn resolve(
    path: &[String],
    files: &BTreeMap<String, syn::File>,
    exports: &BTreeMap<String, BTreeMap<String, Vec<String>>>,
    depth: usize,
) -> Option<String> {
    let length = (0..=path.len()).rev().find(|length| files.contains_key(&path[..*length].join("::")))?;
    let module = path[..length].join("::");
    match path.get(length).and_then(|name| exports[&module].get(name)) {
        Some(exported) if depth < 8 => resolve(exported, files, exports, depth + 1),
        _ => Some(module),
    }
}

/// The paths in a file that begin in its own crate.
struct Paths {
    module: String,
    /// What it re-exports, by name.
    exports: BTreeMap<String, Vec<String>>,
    used: BTreeSet<Vec<String>>,
    /// Every word outside `use`.
    words: BTreeSet<String>,
}

impl Paths {
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let own: Vec<String> = self.module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([&own, rest].concat()),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                Some([&own[..own.len().saturating_sub(ups)], &path[ups..]].concat())
            }
            _ => None,
        }
    }

    fn tree(&mut self, begun: &[String], tree: &UseTree, exported: bool) {
        let (name, shown) = match tree {
            UseTree::Path(path) => {
                return self.tree(&[begun, &[path.ident.to_string()]].concat(), &path.tree, exported);
            }
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.tree(begun, tree, exported)),
            UseTree::Name(name) if name.ident == "self" => (None, begun.last().cloned()),
            UseTree::Name(name) => (Some(name.ident.to_string()), Some(name.ident.to_string())),
            UseTree::Rename(rename) => (Some(rename.ident.to_string()), Some(rename.rename.to_string())),
            UseTree::Glob(_) => (None, None),
        };
        let path: Vec<String> = begun.iter().cloned().chain(name).collect();
        match (self.absolute(&path), shown) {
            (Some(path), Some(shown)) if exported => drop(self.exports.insert(shown, path)),
            (Some(path), _) => drop(self.used.insert(path)),
            (None, _) => {}
        }
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(&[], &item.tree, !matches!(item.vis, syn::Visibility::Inherited));
    }
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        // The unit tests in a source may use any file.
        if !item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            visit::visit_item_mod(self, item);
        }
    }
    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}
    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.words.extend(parts.iter().cloned());
        if parts.len() > 1
            && let Some(path) = self.absolute(&parts)
        {
            self.used.insert(path);
        }
        visit::visit_path(self, path);
    }
}

/// Calls that open, make, rename or remove a file by its path.
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

/// The sources that may contain these calls, and for which files. The files of programs are opened in `safe_path` only.
const FILE_OWNERS: [(&str, &str); 25] = [
    ("actors/src/safe_path.rs", "the files of programs"),
    ("actors/src/host/monitor/notify_socket.rs", "the notify sockets in a directory of gaggled's own"),
    ("actors/src/host/cgroup.rs", "the kernel's cgroup tree"),
    ("actors/src/host/cgroup/directory.rs", "the kernel's cgroup tree"),
    ("actors/src/host/procfs.rs", "/proc"),
    ("actors/src/host/spawn/spawner.rs", "/dev/null, memory files, and the pipes in the state directory"),
    ("actors/src/journal/writer.rs", "the state directory"),
    ("actors/src/spec/sandbox.rs", "/proc/self"),
    ("actors/src/journal/directory.rs", "the state directory"),
    ("gateways/src/smtp/spool.rs", "the state directory"),
    ("gateways/src/smtp/delivery.rs", "the password and the certificate that the configuration names"),
    ("tools/src/daemon.rs", "the sockets of gaggled"),
    ("tools/src/daemon/published_config.rs", "the state directory"),
    ("tools/src/daemon/subreaper_link.rs", "the descriptors from the subreaper"),
    ("tools/src/daemon/startup.rs", "the kernel's cgroup tree"),
    ("tools/src/common/diagnostics.rs", "the configuration"),
    ("tools/src/offline/import/imported.rs", "what an operator gives to be imported"),
    ("tools/src/offline/import/info.rs", "what an operator gives to be imported"),
    ("tools/src/offline/import/procfile.rs", "what an operator gives to be imported"),
    ("tools/src/offline/journal.rs", "what an operator gives to be read"),
    ("tools/src/daemon/subreaper.rs", "/proc/self and the binary of gaggled"),
    ("tools/src/logger.rs", "the list of logs and the pipes in the state directory"),
    ("tools/src/logger/pipes.rs", "the pipes in the state directory"),
    ("tools/src/offline/nodes.rs", "what an operator gives to be read"),
    ("gateways/src/url.rs", "the sockets of gaggled"),
];

#[test]
fn files_of_programs_are_opened_in_one_module() {
    let root = root();
    let all = ["actors", "gateways", "tools"].iter().flat_map(|name| sources(&root.join(name).join("src")));
    for path in all {
        let text = std::fs::read_to_string(&path).expect("a source");
        // The unit tests in a source may open any file.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found: Vec<_> = FILE_CALLS.iter().filter(|call| code.contains(**call)).collect();
        let name = path.strip_prefix(&root).expect("below").display().to_string();
        let may = FILE_OWNERS.iter().any(|(owner, _)| *owner == name);
        assert!(may || found.is_empty(), "{name} has {found:?}: open files of programs with safe_path");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn parse(path: &Path) -> syn::File {
    syn::parse_file(&std::fs::read_to_string(path).expect("a source")).expect("it compiles")
}
