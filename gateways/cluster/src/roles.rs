//! The users and roles that etcd needs for the nodes of a cluster.

use gaggled_core::cluster::store::Key;

/// The commands that make the user and the role of each node: it reads everything of its cluster, and writes only its own
/// session and states, and which configuration it has. The user of a node is the common name of its certificate.
pub fn commands(site: &str, nodes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for node in nodes {
        let role = format!("gaggled/{site}/{node}");
        let (all, own) = (Key::prefix(site), Key::states_of(site, node));
        let [alive, applied] = [Key::Alive { node: node.as_str().into() }, Key::Applied { node: node.as_str().into() }]
            .map(|key| key.path(site));
        lines.extend([
            format!("etcdctl role add {role}"),
            format!("etcdctl role grant-permission --prefix {role} read {all}"),
            format!("etcdctl role grant-permission {role} readwrite {alive}"),
            format!("etcdctl role grant-permission {role} readwrite {applied}"),
            format!("etcdctl role grant-permission --prefix {role} readwrite {own}"),
            format!("etcdctl role grant-permission --prefix {role} readwrite {}", Key::claims(site)),
            format!("etcdctl user add {node} --no-password"),
            format!("etcdctl user grant-role {node} {role}"),
        ]);
    }
    lines
}

/// The commands that make the role of those who publish configurations, and give it to these users.
pub fn publisher_commands(site: &str, users: &[String]) -> Vec<String> {
    role_commands(site, "publisher", &[Key::configurations(site)], users)
}

/// The commands that make the role of those who give orders about groups and nodes, and give it to these users.
pub fn operator_commands(site: &str, users: &[String]) -> Vec<String> {
    let writable = [Key::orders(site), Key::all_states(site), Key::all_applied(site), Key::canaries(site)];
    role_commands(site, "operator", &writable, users)
}

/// The commands that make a role that reads everything of a cluster and writes what begins with these.
fn role_commands(site: &str, name: &str, writable: &[String], users: &[String]) -> Vec<String> {
    let role = format!("gaggled/{site}/{name}");
    let all = Key::prefix(site);
    let mut lines =
        vec![format!("etcdctl role add {role}"), format!("etcdctl role grant-permission --prefix {role} read {all}")];
    lines.extend(writable.iter().map(|keys| format!("etcdctl role grant-permission --prefix {role} readwrite {keys}")));
    for user in users {
        lines.extend([
            format!("etcdctl user add {user} --no-password"),
            format!("etcdctl user grant-role {user} {role}"),
        ]);
    }
    lines
}
