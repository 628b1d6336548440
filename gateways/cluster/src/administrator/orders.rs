//! Orders about groups that run on one node at a time: to move one, to drain a node, and to say that a node has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use gaggled_core::{
    base::{
        ids::Level,
        text::{as_name, harmless},
    },
    cluster::{
        orders::Order,
        store::{Claim, Key},
    },
    config::{Config, ConfigFrom},
    graph::STOP,
};

use gaggled_tools::common::host::host_name;

use super::{AdminError, Administrator, say, who};
use crate::etcd::publication::Publications;

/// How long a reason may be that another node gives, in characters.
pub(super) const WHY_MAX: usize = 512;

/// How long a command waits for the nodes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WaitArgs {
    /// How long to wait until the groups have moved, in seconds; 0 gives only the order
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// Groups, and the nodes that may run each.
type Candidates = BTreeMap<Arc<str>, Vec<Arc<str>>>;

impl Administrator {
    /// Orders a node to run no group, and waits until others have taken those that it has.
    ///
    /// # Errors
    ///
    /// There is no such node, etcd refuses, or it takes too long.
    pub async fn drain(&self, node: &str, wait: WaitArgs) -> Result<(), AdminError> {
        let candidates = self.candidates().await?;
        self.check_node(node, &candidates)?;
        self.order(Key::Drain { node: node.into() }, None).await?;
        say(&format!("node {node} is to run no groups, until gaggled_clustergate undrain {node}"));
        self.wait_until_left(node, &candidates, wait).await
    }

    /// Lets a node that was drained run groups again.
    ///
    /// # Errors
    ///
    /// etcd refuses.
    pub async fn undrain(&self, node: &str) -> Result<(), AdminError> {
        let was_drained = self.connection.withdraw(&Key::Drain { node: node.into() }).await?;
        say(&if was_drained {
            format!(
                "node {node} may run groups again; those that others run stay there, until gaggled_clustergate move"
            )
        } else {
            format!("node {node} was not drained")
        });
        Ok(())
    }

    /// Orders a group to move to a node, and waits until a node has taken it.
    ///
    /// # Errors
    ///
    /// The node cannot run it, etcd refuses, another node has taken it, or it takes too long.
    pub async fn move_group(&self, group: &str, to: &str, wait: WaitArgs) -> Result<(), AdminError> {
        let candidates = self.candidates().await?;
        self.check_move(group, to, &candidates)?;
        let runs_there = |(revision, claim): &(u64, Claim)| {
            let session = self.known.sessions.get(to).map(|session| &session.session);
            let is_held = *claim.node == *to && !claim.released && session == Some(&claim.session);
            // One that is to move away is ordered to stay.
            is_held && self.known.orders.move_to(group, claim.token_at(*revision)).is_none()
        };
        if self.known.claims.get(group).is_some_and(runs_there) {
            say(&format!("group {group} runs on {to} already"));
            return Ok(());
        }
        let ordered_at = self.order(Key::Move { group: group.into() }, Some(to.into())).await?;
        if wait.timeout == 0 {
            return Ok(());
        }
        let mut taken_by: Option<Arc<str>> = None;
        let tell = |of: Arc<str>, revision: u64, claim: Claim| {
            if *of != *group {
                return false;
            }
            say(&line(&of, revision, &claim));
            if !claim.released && claim.token_at(revision) > ordered_at {
                taken_by = Some(claim.node);
            }
            taken_by.is_some()
        };
        let from = i64::try_from(ordered_at).unwrap_or(i64::MAX);
        let watched = self.connection.watch_claims(from, tell);
        if let Ok(watched) = tokio::time::timeout(Duration::from_secs(wait.timeout), watched).await {
            watched?;
        }
        let status = "gaggled_clustergate status shows more";
        match taken_by {
            Some(node) if *node == *to => Ok(()),
            Some(node) => {
                Err(AdminError::Refused(format!("group {group} was taken by {node} and not by {to}: {status}")))
            }
            None => Err(AdminError::Refused(format!(
                "group {group} was not taken within {} s, and is still to move to {to}: {status}",
                wait.timeout
            ))),
        }
    }

    /// Orders a group to go to a level, and waits until the node that runs it does.
    ///
    /// # Errors
    ///
    /// There is no such group or level, etcd refuses, or it takes too long.
    pub async fn tell(&self, group: &str, level: &str, wait: WaitArgs) -> Result<(), AdminError> {
        let config = self.current_config().await?;
        let candidates = config.shared_groups();
        let Some(nodes) = candidates.get(group) else { return Err(no_such_group(group, &candidates)) };
        let graph = nodes.first().map_or_else(|| config.graph(), |node| config.project(node).graph());
        let levels: Vec<Level> = graph.group(group).map_or_else(Vec::new, |id| graph.levels(id).into_iter().collect());
        if *level != *STOP && !levels.iter().any(|known| **known == *level) {
            let levels: Vec<&str> =
                levels.iter().map(|level| &**level).filter(|level| *level != STOP).chain([STOP]).collect();
            let why = format!("group {group} has no level {level}: it has {}", levels.join(", "));
            return Err(AdminError::Refused(why));
        }
        let ordered_at = self.order(Key::Level { group: group.into() }, Some(level.into())).await?;
        let holder = self.known.claims.get(group).filter(|(_, claim)| !claim.released);
        if holder.is_none() {
            say(&format!("no node runs group {group}: the next one goes to level {level}"));
            return Ok(());
        }
        if wait.timeout == 0 {
            return Ok(());
        }
        let tell = |of: Arc<str>, _: u64, claim: Claim| {
            let is_done = *of == *group && claim.level_order >= ordered_at;
            if is_done {
                say(&format!("{group}  {} goes to level {level}", claim.node));
            }
            is_done
        };
        let watched = self.connection.watch_claims(i64::try_from(ordered_at).unwrap_or(i64::MAX), tell);
        match tokio::time::timeout(Duration::from_secs(wait.timeout), watched).await {
            Ok(watched) => Ok(watched?),
            Err(_) => Err(AdminError::Refused(format!(
                "the node that runs group {group} has not taken the order within {} s; the order stands: gaggled_clustergate status shows more",
                wait.timeout
            ))),
        }
    }

    /// Says that nothing runs on a node any more, after the command of the configuration has seen to that, or an operator: then
    /// others need not wait for it.
    ///
    /// # Errors
    ///
    /// It is this node, it holds nothing, the command fails, etcd refuses, or it takes too long.
    pub async fn fence(&self, node: &str, is_confirmed: bool, wait: WaitArgs) -> Result<(), AdminError> {
        let refused = |why: String| Err(AdminError::Refused(why));
        if self.cluster.node.clone().unwrap_or_else(host_name) == node {
            return refused(format!("{node} is this node: give the command on another one"));
        }
        if session_of(&self.known, node).is_none() {
            return refused(format!("node {node} has no session and holds no group: there is nothing to fence"));
        }
        match &self.cluster.fence {
            _ if is_confirmed => {}
            Some(command) => fence_with(command, node)?,
            None => {
                return refused(format!(
                    "is {node} switched off? If it is, add --confirmed; or give gaggled.cluster a command that does it: fence"
                ));
            }
        }
        let candidates = self.candidates().await?;
        // The command may have taken long.
        let Some(session) = session_of(&self.connection.publications().await?, node) else {
            say(&format!("node {node} has no session any more, and holds no group"));
            return Ok(());
        };
        self.order(Key::Fence { node: node.into() }, Some(session.clone())).await?;
        say(&format!("node {node} is fenced: others take its groups when its session {session} is over"));
        self.wait_until_left(node, &candidates, wait).await
    }

    /// Deletes what etcd has of a node that does not come back.
    ///
    /// # Errors
    ///
    /// It is there, or holds a group; or etcd refuses.
    pub async fn forget(&self, node: &str) -> Result<(), AdminError> {
        let candidates = self.candidates().await?;
        let held = held_by(&self.known, node);
        if let Some(group) = held.iter().find(|group| candidates.contains_key(*group)) {
            return Err(AdminError::Refused(format!(
                "node {node} still holds group {group}: give gaggled_clustergate fence {node} first"
            )));
        }
        match self.connection.forget(&node.into()).await? {
            None => Err(AdminError::Refused(format!("node {node} is there: shut its gaggled down first"))),
            Some(0) => Err(AdminError::Refused(format!("etcd has nothing of node {node}"))),
            Some(_) => {
                say(&format!("node {node} is forgotten"));
                Ok(())
            }
        }
    }

    /// Gives an order; the revision of etcd that wrote it.
    async fn order(&self, key: Key, of: Option<Arc<str>>) -> Result<u64, AdminError> {
        let order = Order::new(who(), self.clock.wall(), of);
        Ok(self.connection.order(&key, &order).await?)
    }

    /// The groups that run on one node at a time, and the nodes of each.
    async fn candidates(&self) -> Result<Candidates, AdminError> {
        Ok(self.current_config().await?.shared_groups())
    }

    /// The configuration of all nodes: that of the file, or the published one.
    async fn current_config(&self) -> Result<Config, AdminError> {
        if self.cluster.config == ConfigFrom::File {
            return Ok(self.config.clone());
        }
        let Some(pointer) = &self.known.current else { return Ok(self.config.clone()) };
        let text = self.connection.fetch(pointer).await?.map_err(AdminError::Refused)?;
        let parsed = Config::parse_published(&text, &self.config.gaggled).map_err(|_| {
            AdminError::Refused(format!("revision {} cannot be read by this version of gaggled", pointer.revision))
        })?;
        Ok(parsed.config)
    }

    fn check_node(&self, node: &str, candidates: &Candidates) -> Result<(), AdminError> {
        let known = self.known.sessions.keys().chain(self.known.applied.keys());
        let nodes: BTreeSet<&Arc<str>> = known.chain(candidates.values().flatten()).collect();
        if nodes.contains(&Arc::from(node)) {
            return Ok(());
        }
        let nodes: Vec<&str> = nodes.into_iter().map(|node| &**node).collect();
        Err(AdminError::Refused(format!("there is no node {node}: the nodes are {}", nodes.join(", "))))
    }

    fn check_move(&self, group: &str, to: &str, candidates: &Candidates) -> Result<(), AdminError> {
        let refused = |why: String| Err(AdminError::Refused(why));
        let Some(nodes) = candidates.get(group) else { return Err(no_such_group(group, candidates)) };
        if !nodes.iter().any(|node| **node == *to) {
            return refused(format!("group {group} does not run on {to}: its nodes are {}", nodes.join(", ")));
        }
        if !self.known.sessions.contains_key(to) {
            return refused(format!("node {to} is not there: group {group} stays where it is"));
        }
        if self.known.orders.drained.contains(to) {
            return refused(format!("node {to} is drained: give gaggled_clustergate undrain {to} first"));
        }
        Ok(())
    }

    /// Waits until a node holds nothing any more, and others have taken what they can.
    async fn wait_until_left(&self, node: &str, candidates: &Candidates, wait: WaitArgs) -> Result<(), AdminError> {
        let known = self.connection.publications().await?;
        // Nobody takes a group that is not configured any more.
        let mut held = held_by(&known, node);
        held.retain(|group| candidates.contains_key(group));
        let others = |group: &Arc<str>| {
            let is_able = |other: &&Arc<str>| {
                ***other != *node && known.sessions.contains_key(*other) && !known.orders.drained.contains(*other)
            };
            candidates.get(group).into_iter().flatten().any(|other| is_able(&other))
        };
        for group in held.iter().filter(|group| !others(group)) {
            say(&format!("{group}  can run on no other node that is there"));
        }
        let is_idle = held.is_empty();
        let tell = |group: Arc<str>, revision: u64, claim: Claim| {
            if held.contains(&group) {
                say(&line(&group, revision, &claim));
                let is_done = *claim.node != *node || claim.released && !others(&group);
                held.retain(|of| *of != group || !is_done);
            }
            held.is_empty()
        };
        if wait.timeout == 0 || is_idle {
            return Ok(());
        }
        let watched = self.connection.watch_claims(known.read_at + 1, tell);
        if let Ok(watched) = tokio::time::timeout(Duration::from_secs(wait.timeout), watched).await {
            return Ok(watched?);
        }
        Err(AdminError::Refused(format!(
            "not all groups of {node} were taken by others within {} s; the order stands: gaggled_clustergate status shows more",
            wait.timeout
        )))
    }
}

fn no_such_group(group: &str, candidates: &Candidates) -> AdminError {
    let groups: Vec<&str> = candidates.keys().map(|group| &**group).collect();
    let groups = if groups.is_empty() { "there is none".to_owned() } else { groups.join(", ") };
    AdminError::Refused(format!("{group} is no group that runs on one node at a time: {groups}"))
}

/// The session in which a node has claimed groups; that which it has if it holds none.
fn session_of(known: &Publications, node: &str) -> Option<Arc<str>> {
    let claims = known.claims.values().map(|(_, claim)| claim);
    let of_claim = claims.into_iter().find(|claim| *claim.node == *node && !claim.released).map(|claim| &claim.session);
    of_claim.or(known.sessions.get(node).map(|session| &session.session)).cloned()
}

/// The groups that a node has claimed.
fn held_by(known: &Publications, node: &str) -> Vec<Arc<str>> {
    let is_held = |claim: &Claim| *claim.node == *node && !claim.released;
    known.claims.iter().filter(|(_, (_, claim))| is_held(claim)).map(|(group, _)| group.clone()).collect()
}

/// What a claim says.
fn line(group: &str, revision: u64, claim: &Claim) -> String {
    let node = as_name(&claim.node, '?');
    if claim.released {
        let why = harmless(&claim.why, WHY_MAX);
        let why = if why.is_empty() { why } else { format!(", because {why}") };
        return format!("{group}  {node} has left it{why}");
    }
    format!("{group}  {node} has taken it (token {})", claim.token_at(revision))
}

/// Runs the command that switches a node off.
fn fence_with(command: &str, node: &str) -> Result<(), AdminError> {
    say(&format!("{command} {node}"));
    match Command::new(command).arg(node).stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(AdminError::Refused(format!("{command} {node} ended with {status}: {node} is not fenced"))),
        Err(error) => Err(AdminError::Refused(format!("{command} cannot be run: {error} (fence of gaggled.cluster)"))),
    }
}
