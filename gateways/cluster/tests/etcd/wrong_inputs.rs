//! What is wrong with the cluster is one clear sentence, and what runs is untouched.

use std::{fs, path::Path, process::Command, sync::Arc};

use gaggled_core::protocol::{Action, Selection};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, directory, substitute};

use crate::harness::{Etcd, Node, configuration, has_etcd};

const DB: &str = "\"db\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], export: true),";

/// Waits for a line in the log of a node, which has the output of its gateway.
pub fn says(node: &mut Daemon, words: &str) {
    let log = node.directory.path().join("log");
    let words = words.to_owned();
    node.wait_outside(&format!("\"{words}\""), move || fs::read_to_string(&log).unwrap_or_default().contains(&words));
}

#[test]
fn two_nodes_of_one_name_are_told_apart() {
    let Some(etcd) = Etcd::start() else { return };
    let mut first = Node::new(&etcd, "n1", DB);
    says(&mut first.daemon, "node n1 begins session");
    let mut second = Node::new(&etcd, "n1", DB);
    says(&mut second.daemon, "takes part as node n1: give each node a name of its own (gaggled.cluster.node)");
    second.daemon.wait_up("db", 1);
    assert!(!first.daemon.log().contains("takes part as node n1"), "{}", first.daemon.log());
    assert!(etcd.ctl(&["get", "/gaggled/test/alive/n1"]).contains("journal"));
    // When the first is gone, the second takes its place.
    first.daemon.end();
    says(&mut second.daemon, "node n1 begins session");
    second.daemon.end();
}

/// Runs openssl in a directory.
fn openssl(directory: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(directory).output().expect("openssl");
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority, and a certificate for 127.0.0.1 that it has signed, for each name.
fn certificates(directory: &Path, authority: &str, names: &[&str]) {
    fs::write(directory.join("san"), "subjectAltName=IP:127.0.0.1\n").expect("a file");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        directory,
        &format!("req -x509 {key} -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"),
    );
    for name in names {
        openssl(directory, &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
            ),
        );
    }
}

/// E12: certificates, and what an etcd with roles permits.
#[test]
fn certificates_are_checked_on_both_sides_and_a_refusal_is_said_once() {
    if !has_etcd() {
        return;
    }
    let keys = directory();
    let dir = keys.path();
    certificates(dir, "authority", &["etcd", "root", "n1", "n2", "dave"]);
    certificates(dir, "stranger", &["thief"]);
    let file = |name: &str| dir.join(name).display().to_string();
    let arguments = [
        "--cert-file".to_owned(),
        file("etcd.pem"),
        "--key-file".to_owned(),
        file("etcd.key"),
        "--trusted-ca-file".to_owned(),
        file("authority.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let credentials = vec![
        format!("--cacert={}", file("authority.pem")),
        format!("--cert={}", file("root.pem")),
        format!("--key={}", file("root.key")),
    ];
    let etcd = Etcd::with("https", &arguments, credentials);
    let example = dir.join("example.ron");
    fs::write(&example, configuration(dir, "n1", "\"https://127.0.0.1:1\"", "", DB)).expect("a configuration");
    let roles = ["roles", "n1", "n2", "--publisher", "carol", "--operator", "dave"];
    let gate = Command::new(binary("gaggled_clustergate")).arg("-c").arg(&example).args(roles).output();
    let lines = String::from_utf8(gate.expect("the gateway").stdout).expect("a text");
    assert_eq!(lines.lines().count(), 29, "{lines}");
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        etcd.ctl(&words);
    }
    etcd.ctl(&["user", "add", "root", "--no-password"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let tls = |ca: &str, name: &str| {
        format!(
            "ca: \"{}\", cert: \"{}\", key: \"{}\"",
            file(ca),
            file(&format!("{name}.pem")),
            file(&format!("{name}.key"))
        )
    };
    let web = "\"web\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"], depends: {\"db@n1\": ()}),";
    let mut one = Node::with(&etcd, "n1", &tls("authority.pem", "n1"), DB);
    let mut two = Node::with(&etcd, "n2", &tls("authority.pem", "n2"), web);
    two.daemon.wait_up("web", 1);
    // A node may not publish.
    let site = dir.join("site.ron");
    fs::write(&site, "(programs: {})").expect("a configuration");
    let refused = one.gate(&["publish", "--yes", &site.display().to_string()]);
    assert!(refused.0 == Some(1) && refused.1.contains("permission denied"), "{refused:?}");
    // Nor may it drain another one, as an operator may.
    let refused = one.gate(&["drain", "n2"]);
    assert!(refused.0 == Some(1) && refused.1.contains("permission denied: the user"), "{refused:?}");
    let operator = dir.join("operator.ron");
    let urls = etcd.ports.iter().map(|port| format!("\"https://127.0.0.1:{port}\"")).collect::<Vec<_>>().join(", ");
    fs::write(&operator, configuration(dir, "n1", &urls, &tls("authority.pem", "dave"), DB)).expect("a configuration");
    for command in [["drain", "n2"], ["undrain", "n2"]] {
        let done = Command::new(binary("gaggled_clustergate")).arg("-c").arg(&operator).args(command).output();
        let done = done.expect("the gateway");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    // Another certificate than that of its name: it may read, and not write.
    let mut other_node = Node::with(&etcd, "n3", &tls("authority.pem", "n2"), DB);
    says(&mut other_node.daemon, "permission denied: the user of the certificate needs a role for this");
    let mut other_authority = Node::with(&etcd, "n4", &tls("stranger.pem", "n2"), DB);
    says(&mut other_authority.daemon, "UnknownIssuer: ca of gaggled.cluster is not the authority");
    let mut stranger = Node::with(&etcd, "n5", &tls("authority.pem", "thief"), DB);
    says(&mut stranger.daemon, ": it may want a certificate that it trusts");
    let mut without_certificate = Node::with(&etcd, "n6", &format!("ca: \"{}\"", file("authority.pem")), DB);
    says(&mut without_certificate.daemon, ": it may want a certificate that it trusts");
    for node in [&mut other_node, &mut other_authority, &mut stranger, &mut without_certificate] {
        node.daemon.wait_up("db", 1);
        let warnings = node.daemon.log().lines().filter(|line| line.contains("WARN")).count();
        assert!((1..=3).contains(&warnings), "{}", node.daemon.log());
        node.daemon.end();
    }
    assert!(two.daemon.log().lines().filter(|line| line.contains("WARN")).count() == 0, "{}", two.daemon.log());
    two.daemon.end();
    one.daemon.end();
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_programs_run() {
    let directory = Arc::new(directory());
    let path = directory.path().join("cert.pem");
    let settings = format!("cert: \"{0}\", key: \"{0}\"", path.display());
    let text = configuration(directory.path(), "n1", "\"https://127.0.0.1:1\"", &settings, DB);
    let file = directory.path().join("wrong.ron");
    fs::write(&file, substitute(&text, directory.path())).expect("a configuration");
    let check = Command::new(binary("gaggled")).args(["-t", "-c"]).arg(&file).output().expect("gaggled");
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.contains("cert of the cluster is") && said.contains("which is no file here"), "{said}");
    // It is there when gaggled starts, and gone when its gateway does.
    fs::write(&path, "").expect("a file");
    let mut daemon = Daemon::with(&text, directory, &DaemonOptions::default());
    daemon.wait_up("db", 1);
    fs::remove_file(&path).expect("a file");
    daemon.must(Action::Restart(Selection { programs: vec!["clustergate".into()], ..Selection::default() }));
    says(&mut daemon, "cert.pem cannot be read (No such file or directory (os error 2)): correct cert");
    daemon.end();
}
