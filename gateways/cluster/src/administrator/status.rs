//! What etcd has of a cluster, as a table.

use std::{collections::BTreeSet, sync::Arc};

use gaggled_core::{
    base::text::harmless,
    cluster::store::{Claim, Pointer},
    config::ClusterConfig,
};
use gaggled_tools::common::event_format::date_time;
use tokio::task::JoinSet;

use super::{Administrator, shown};
use crate::etcd::{Connection, Credentials, EtcdError, publication::Publications};

/// The revisions that are kept, the newest first.
pub fn revisions(known: &Publications) -> String {
    let current = known.current.as_ref().map_or(0, |pointer| pointer.revision);
    let line = |pointer: &Pointer| {
        let now = if pointer.revision == current { "*" } else { " " };
        let Pointer { revision, by, bytes, note, .. } = pointer;
        let time = date_time(pointer.time);
        format!("{now} {revision:>4}  {time}  {by}  {bytes} bytes  {note}").trim_end().to_owned()
    };
    let lines: Vec<String> = known.revisions.values().rev().map(line).collect();
    if lines.is_empty() { "nothing has been published yet".to_owned() } else { shown(&lines.join("\n")) }
}

impl Administrator {
    /// The members of etcd, and the nodes with their configurations and groups.
    pub async fn status(&self) -> String {
        let urls = &self.cluster.etcd;
        let mut asked = JoinSet::new();
        for (number, url) in urls.iter().enumerate() {
            let (cluster, url) = (self.cluster.clone(), url.clone());
            asked.spawn(async move { (number, check_member(&cluster, &url).await) });
        }
        let mut answers: Vec<(usize, Result<(), EtcdError>)> = asked.join_all().await;
        answers.sort_by_key(|(number, _)| *number);
        let silent: Vec<String> =
            answers.into_iter().filter_map(|(_, answer)| answer.err()).map(|error| error.to_string()).collect();
        let answering = format!("{} of {} members of etcd answer", urls.len() - silent.len(), urls.len());
        let lines = nodes(&self.cluster.name, &self.known);
        shown(&[vec![answering], silent, lines].concat().join("\n"))
    }
}

/// Whether a member of etcd answers.
async fn check_member(cluster: &ClusterConfig, url: &str) -> Result<(), EtcdError> {
    let credentials = Credentials::read(cluster)?;
    let node = cluster.node.as_deref().unwrap_or_default().into();
    Connection::open(url, cluster.name.as_str().into(), node, &credentials).await?.check().await
}

/// The nodes, and which configuration each has.
fn nodes(site: &str, known: &Publications) -> Vec<String> {
    let current = known.current.as_ref().map_or_else(
        || "nothing is published".to_owned(),
        |pointer| {
            format!("revision {} is published, by {}, at {}", pointer.revision, pointer.by, date_time(pointer.time))
        },
    );
    let nodes: BTreeSet<&Arc<str>> = known.sessions.keys().chain(known.applied.keys()).collect();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["NODE", "SEEN", "VERSION", "CONFIGURATION", "GROUPS"]);
    for node in &nodes {
        let session = known.sessions.get(*node);
        let seen = session.map_or("no".to_owned(), |session| format!("on {}", session.host));
        let drained = if known.orders.drained.contains(*node) { ", drained" } else { "" };
        let seen = format!("{seen}{drained}");
        let version = session.map_or("", |session| &session.version);
        table.add_row([node, &*seen, version, &configuration(known, node), &groups(known, node)]);
    }
    let mut lines = vec![format!("cluster {site}: {} nodes, {} seen; {current}", nodes.len(), known.sessions.len())];
    lines.extend(table.lines().map(|line| line.trim().to_owned()));
    for (group, (_, to)) in pending_moves(known) {
        lines.push(format!("group {group} is to move to {to}"));
    }
    for (group, (_, claim)) in known.claims.iter().filter(|(_, (_, claim))| claim.released) {
        let why = harmless(&claim.why, super::orders::WHY_MAX);
        let why = if why.is_empty() { why } else { format!(", because {why}") };
        lines.push(format!("group {group} runs on no node; {} has left it{why}", claim.node));
    }
    lines
}

/// The orders to move groups that have not been carried out.
fn pending_moves(known: &Publications) -> impl Iterator<Item = (&Arc<str>, &(u64, Arc<str>))> {
    let token = |group: &Arc<str>| known.claims.get(group).map_or(0, |(revision, claim)| claim.token_at(*revision));
    known.orders.moves.iter().filter(move |(group, (ordered_at, _))| *ordered_at > token(group))
}

/// The groups that a node has claimed, with their tokens.
fn groups(known: &Publications, node: &str) -> String {
    let of_node = known.claims.iter().filter(|(_, (_, claim))| *claim.node == *node && !claim.released);
    let word = |(group, (revision, claim)): (&Arc<str>, &(u64, Claim))| {
        let is_present = known.sessions.get(node).is_some_and(|session| session.session == claim.session);
        let level = claim.level.as_ref().map_or_else(String::new, |level| format!("level {level}, "));
        let state = if is_present { "" } else { ", until another takes it" };
        format!("{group} ({level}token {}{state})", claim.token_at(*revision))
    };
    of_node.map(word).collect::<Vec<_>>().join(", ")
}

fn configuration(known: &Publications, node: &str) -> String {
    let Some(applied) = known.applied.get(node) else { return "its own file".to_owned() };
    let wanted = known.wanted(node).map_or(0, |pointer| pointer.revision);
    match &applied.refused {
        Some(refused) => format!("{}, not {}: {}", applied.revision, refused.revision, refused.why),
        None if applied.revision < wanted => format!("{}, not yet {wanted}", applied.revision),
        None => applied.revision.to_string(),
    }
}
