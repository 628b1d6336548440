//! The content of a configuration file, and its defaults.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{CLUSTERGATE, HostOverride, KEEPER, OrderedMap, Placement, Settings, settings::is_default};
use crate::{
    base::{
        ids::{GroupId, ProgramId},
        time::Millis,
    },
    cluster::{Assumption, External, split_name},
    config::{
        log_policy::Rotate,
        node_sets::{Declaration, Member, NodeSets},
        sandbox::{Rlimit, Umask},
    },
    graph::{
        self, Backoff, Condition, Graph, Group, HealthCheck, HealthPolicy, Leaves, Mode, Policy, Readiness, START,
        STOP, StartLimit, TenancyPolicy,
    },
    host::{
        PidFile,
        probe::{Health, ReadinessProbe},
    },
};

/// A whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "configuration", deny_unknown_fields, default)]
pub struct Config {
    /// Settings of gaggled itself.
    #[serde(skip_serializing_if = "is_default")]
    pub gaggled: Settings,
    /// Hosts that are in no set of nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Named sets of hosts; a member that begins with `@` is another set.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub nodes: OrderedMap<Vec<String>>,
    /// Groups of programs; a group that only programs name comes up at level `start`.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub groups: OrderedMap<GroupConfig>,
    /// The programs.
    pub programs: OrderedMap<ProgramConfig>,
}

/// The place of a declaration about hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodesPlace {
    /// In `hosts`.
    Hosts,
    /// In this set of `nodes`.
    Set(String),
}

/// A group of programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "group", deny_unknown_fields, default)]
pub struct GroupConfig {
    /// The level at which it comes up; `start` if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// The level to which it goes when a program of mode `Wait` or `Test` does not end well; it stays if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// The nodes on which its programs run; all on which the configuration is used if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<Placement>,
    /// The nodes that come first, in this order, if it runs on one of several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<String>,
}

/// One program.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the file")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "program", deny_unknown_fields, default)]
pub struct ProgramConfig {
    /// The executable: a path, or a name that is looked for in `path` and `$PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Instead of a command: a line for `/bin/sh -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// The directory to run in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wd: Option<String>,
    /// Variables, over those of the `gaggled` section.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub env: OrderedMap<String>,
    /// What to do when it ends; `Respawn` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The mode as the original gaggled had it: false is `Once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respawn: Option<bool>,
    /// The group it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The levels of the group at which it runs; all but `stop` if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<String>,
    /// Whether it is started again until it has ended well, although it is to run only once.
    #[serde(skip_serializing_if = "is_default")]
    pub retry: bool,
    /// Exit codes that mean success; only 0 if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub success_exit_codes: Vec<i32>,
    /// What becomes of processes that a run leaves when it has ended well. By default they are kept as part of its
    /// effects with mode `Wait`, and killed with mode `Once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaves: Option<Leaves>,
    /// A shell command that stops it, instead of a TERM; with mode `Wait`, one that undoes its effects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_command: Option<String>,
    /// The signal that asks it to end, by its name, if that is not TERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Whether the program exists: a disabled program is not in the graph, and no other may depend on it.
    #[serde(skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Whether it starts with gaggled; if not, it waits for an operator, and so do the programs that depend on it.
    #[serde(skip_serializing_if = "is_true")]
    pub autostart: bool,
    /// How long it may take to end before it is killed, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killwait: Option<Millis>,
    /// How its starts are spaced, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// When it is given up, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_limit: Option<StartLimit>,
    /// Whether gaggled ends with it, and with its exit status.
    #[serde(skip_serializing_if = "is_default")]
    pub essential: bool,
    /// A file that its output is appended to, instead of gaggled's own output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Log rotation; without it gaggled never rotates the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<Rotate>,
    /// The file with its process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PidFile>,
    /// How it shows that it is ready; by default it is ready as soon as it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadinessProbe>,
    /// How long it may take to be ready; a minute if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<Millis>,
    /// Its periodic health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How long it may go without a watchdog message: `WATCHDOG=1`, as `sd_notify` sends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Millis>,
    /// The user that it runs as, or `user:group`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its supplementary groups; those of the user if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supplementary_groups: Option<Vec<String>>,
    /// The directory that is the root of all its paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chroot: Option<String>,
    /// The permissions that its new files do not get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// Its niceness, from -20 (highest priority) to 19 (lowest).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i8>,
    /// How soon the kernel kills it when memory runs out, from -1000 (never) to 1000 (first).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i16>,
    /// Resource limits (setrlimit).
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub rlimits: OrderedMap<Rlimit>,
    /// The settings of its cgroup, by the names of the kernel's files: `"memory.max": "512M"`.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub cgroup: OrderedMap<String>,
    /// The capabilities that it keeps, and no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Whether commands that it executes cannot gain privileges.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_privs: bool,
    /// The programs it needs.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub depends: OrderedMap<DependsConfig>,
    /// Whether its state is published, so that programs of other nodes can depend on it.
    #[serde(skip_serializing_if = "is_default")]
    pub export: bool,
    /// The nodes on which it runs; all on which the configuration is used if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<Placement>,
    /// What differs on some nodes: a set such as `@big`, or the name of a node. Later ones win.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub per_host: OrderedMap<HostOverride>,
}

/// One dependency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "depends", deny_unknown_fields, default)]
pub struct DependsConfig {
    /// What to wait for. By default `Completed` for a dependency of mode `Wait` or `Test`, `Ready` for one that shows
    /// its readiness, and else `Started`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// How long the condition must have been met.
    #[serde(skip_serializing_if = "is_default")]
    pub delay: Millis,
    /// Whether this one is stopped, and started again, when the other goes down.
    #[serde(skip_serializing_if = "is_default")]
    pub propagate: bool,
    /// What is assumed of a program of another node when its node is lost; `Down` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<Assumption>,
    /// What is assumed of a program of another node while this node is cut off; `Keep` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_blind: Option<Assumption>,
    /// Whether what follows the name of the program is that of a group that runs on one node at a time, not of a node: the
    /// projection for a node sets it.
    #[serde(skip)]
    pub of_group: bool,
}

impl Default for ProgramConfig {
    fn default() -> Self {
        Self {
            command: None,
            argv: Vec::new(),
            shell: None,
            wd: None,
            env: OrderedMap::default(),
            mode: None,
            respawn: None,
            group: None,
            levels: Vec::new(),
            retry: false,
            success_exit_codes: Vec::new(),
            leaves: None,
            stop_command: None,
            stop_signal: None,
            enabled: true,
            autostart: true,
            killwait: None,
            backoff: None,
            start_limit: None,
            essential: false,
            log: None,
            rotate: None,
            pid_file: None,
            ready: None,
            start_timeout: None,
            health: None,
            watchdog: None,
            user: None,
            supplementary_groups: None,
            chroot: None,
            umask: None,
            nice: None,
            oom_score_adj: None,
            rlimits: OrderedMap::default(),
            cgroup: OrderedMap::default(),
            capabilities: None,
            no_new_privs: false,
            depends: OrderedMap::default(),
            export: false,
            on: None,
            per_host: OrderedMap::default(),
        }
    }
}

impl ProgramConfig {
    /// What to do when it ends, as `mode` or `respawn` says.
    pub fn effective_mode(&self) -> Mode {
        match (self.mode, self.respawn) {
            (Some(mode), _) => mode,
            (None, Some(false)) => Mode::Once,
            (None, Some(true) | None) => Mode::Respawn,
        }
    }

    /// Readiness, health-check and watchdog policy.
    pub fn health(&self) -> HealthPolicy {
        let readiness =
            |ready: &ReadinessProbe| if ready.probe().is_some() { Readiness::Probed } else { Readiness::Notified };
        let plain = HealthPolicy::default();
        HealthPolicy {
            daemonizes: matches!(self.pid_file, Some(PidFile::Read(_))),
            readiness: self.ready.as_ref().map(readiness),
            start_timeout: self.start_timeout.unwrap_or(plain.start_timeout),
            check: self
                .health
                .as_ref()
                .map(|health| HealthCheck { every: health.interval, failures: health.failure_threshold }),
            watchdog: self.watchdog,
            run_timeout: self.start_timeout.filter(|_| self.effective_mode() != Mode::Respawn && self.ready_on_start()),
        }
    }

    /// What becomes of processes that a run leaves when it has ended well.
    pub fn effective_leaves(&self) -> Leaves {
        match self.effective_mode() {
            Mode::Respawn | Mode::Test => Leaves::Kill,
            Mode::Once => self.leaves.unwrap_or_default(),
            Mode::Wait => self.leaves.unwrap_or(Leaves::Keep),
        }
    }

    /// Whether it is ready as soon as it runs.
    pub fn ready_on_start(&self) -> bool {
        self.ready.is_none() && !matches!(self.pid_file, Some(PidFile::Read(_)))
    }
}

impl DependsConfig {
    /// What to wait for in the program `on`.
    pub fn effective_condition(&self, on: &ProgramConfig) -> Condition {
        self.condition.unwrap_or_else(|| match on.effective_mode() {
            Mode::Wait | Mode::Test => Condition::Completed,
            Mode::Respawn | Mode::Once if on.health().ready_on_start() => Condition::Started,
            Mode::Respawn | Mode::Once => Condition::Ready,
        })
    }
}

impl Config {
    /// The programs that are not disabled, in the order of the file.
    pub fn enabled_programs(&self) -> impl Iterator<Item = (&str, &ProgramConfig)> {
        self.programs.iter().filter(|(_, program)| program.enabled)
    }

    /// Whether there is output that the logger has to write.
    pub fn needs_logger(&self) -> bool {
        self.gaggled.prefix_output || self.enabled_programs().any(|(_, program)| program.rotate.is_some())
    }

    /// The declarations about hosts, each with its place.
    pub fn statements_of_nodes(&self) -> Vec<(NodesPlace, Declaration)> {
        let orphans = self.hosts.iter().map(|host| (NodesPlace::Hosts, Declaration::Orphan(host.clone())));
        let sets = self.nodes.iter().flat_map(|(set, members)| {
            let place = NodesPlace::Set(set.to_owned());
            let of_set = place.clone();
            let member =
                move |member: &String| (of_set.clone(), Declaration::Member(set.to_owned(), Member::parse(member)));
            [(place, Declaration::Set(set.to_owned()))].into_iter().chain(members.iter().map(member))
        });
        orphans.chain(sets).collect()
    }

    /// All groups, those that only programs name last.
    pub fn all_groups(&self) -> Vec<(&str, GroupConfig)> {
        let mut groups: Vec<(&str, GroupConfig)> =
            self.groups.iter().map(|(name, group)| (name, group.clone())).collect();
        let mut known: BTreeSet<&str> = groups.iter().map(|(name, _)| *name).collect();
        for name in self.programs.iter().filter_map(|(_, program)| program.group.as_deref()) {
            if known.insert(name) {
                groups.push((name, GroupConfig::default()));
            }
        }
        groups
    }

    /// The programs of other nodes that enabled programs depend on, in the order of the file.
    fn externals(&self) -> Vec<Policy> {
        let Some(cluster) = &self.gaggled.cluster else { return Vec::new() };
        let mut externals: Vec<Policy> = Vec::new();
        for (on, depends) in self.enabled_programs().flat_map(|(_, program)| program.depends.iter()) {
            let Some((program, node)) = split_name(on) else { continue };
            let known = externals.iter().position(|known| *known.name == *on);
            let at = known.unwrap_or_else(|| {
                let external = External {
                    node: node.into(),
                    of_group: depends.of_group,
                    program: program.into(),
                    on_lost: Assumption::Down,
                    on_blind: Assumption::Keep,
                    lost_after: cluster.lost_after(),
                    blind_after: cluster.dead_after,
                };
                externals.push(Policy::external(on, external));
                externals.len() - 1
            });
            if let Some(external) = &mut externals[at].external {
                external.on_lost = depends.on_lost.unwrap_or(external.on_lost);
                external.on_blind = depends.on_blind.unwrap_or(external.on_blind);
            }
        }
        externals
    }

    /// The programs, dependencies and groups of a checked configuration. The daemon builds its state from them in
    /// `tools/src/daemon/startup.rs`.
    pub fn graph(&self) -> Graph {
        let mut graph = Graph::new(self.gaggled.killwait);
        let groups: BTreeMap<&str, GroupId> = self
            .all_groups()
            .into_iter()
            .map(|(name, group)| {
                let home = group.level.as_deref().unwrap_or(START);
                (name, graph.add_group(Group::new(name, home, group.on_failure.as_deref())))
            })
            .collect();
        for (name, program) in self.enabled_programs() {
            let leaves = program.effective_leaves();
            graph.add_program(Policy {
                name: name.into(),
                mode: program.effective_mode(),
                autostart: program.autostart,
                group: program.group.as_deref().and_then(|group| groups.get(group).copied()),
                levels: program.levels.iter().map(|level| level.as_str().into()).collect(),
                has_stop_command: program.stop_command.is_some(),
                remain_after_exit: program.stop_command.is_some()
                    && (program.effective_mode() == Mode::Wait || leaves == Leaves::Keep),
                leaves,
                retry: program.retry,
                success_exit_codes: program.success_exit_codes.clone(),
                killwait: program.killwait.unwrap_or(self.gaggled.killwait),
                backoff: program.backoff.unwrap_or(self.gaggled.backoff),
                start_limit: program
                    .start_limit
                    .or(self.gaggled.start_limit)
                    .filter(|_| program.retry || !program.effective_mode().is_gate()),
                health: program.health(),
                essential: program.essential,
                unconfigured: false,
                export: program.export,
                external: None,
            });
        }
        for external in self.externals() {
            graph.add_program(external);
        }
        let ids = graph.names();
        let configured: BTreeMap<&str, &ProgramConfig> = self.enabled_programs().collect();
        for (name, program) in self.enabled_programs() {
            for (on, depends) in program.depends.iter() {
                if let (Some(of), Some(on), other) = (ids.get(name), ids.get(on), configured.get(on)) {
                    // A program of another node that shows no readiness is ready as soon as it is up.
                    let elsewhere = depends.condition.unwrap_or(Condition::Ready);
                    let condition = other.map_or(elsewhere, |other| depends.effective_condition(other));
                    let DependsConfig { delay, propagate, .. } = *depends;
                    graph.add_dependency(graph::Dependency {
                        dependent: *of,
                        dependency: *on,
                        condition,
                        delay,
                        propagate,
                    });
                }
            }
        }
        self.share_groups(&mut graph);
        if let Some(gateway) = ids.get(CLUSTERGATE).filter(|_| self.gaggled.cluster.is_some()) {
            let is_shared = |policy: &Policy| policy.group.is_some_and(|group| graph.groups[group].tenancy.is_some());
            let ids_of = |is_meant: &dyn Fn(&Policy) -> bool| -> Vec<ProgramId> {
                graph.programs.iter().filter(|(_, policy)| is_meant(policy)).map(|(id, _)| id).collect()
            };
            let (told, kept) = (ids_of(&|policy| policy.export || is_shared(policy)), ids_of(&is_shared));
            for id in told {
                graph.add_stop_order(id, *gateway);
            }
            if let Some(keeper) = ids.get(KEEPER) {
                for id in kept {
                    graph.add_stop_order(id, *keeper);
                }
            }
        }
        graph
    }

    /// The groups that run on one node at a time, and the nodes of each, the preferred ones first.
    pub fn shared_groups(&self) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
        let sets = NodeSets::new(&self.statements_of_nodes()).unwrap_or_default();
        let nodes = |group: &GroupConfig| {
            let on = group.on.as_ref().filter(|on| on.is_one())?;
            let all: Vec<&str> = sets.hosts(on.query()).into_iter().flatten().collect();
            let preferred = group.prefer.iter().map(String::as_str).filter(|node| all.contains(node));
            let rest = all.iter().copied().filter(|node| !group.prefer.iter().any(|first| first == node));
            Some(preferred.chain(rest).map(Into::into).collect())
        };
        self.groups.iter().filter_map(|(name, group)| Some((name.into(), nodes(group)?))).collect()
    }

    /// Says of the groups that run on one node at a time how they are shared.
    fn share_groups(&self, graph: &mut Graph) {
        let Some(cluster) = &self.gaggled.cluster else { return };
        for (name, candidates) in self.shared_groups() {
            let Some(id) = graph.group(&name) else { continue };
            // What runs at the level stop must end in time, or others would start the group beside it.
            for member in graph.groups[id].members.clone() {
                let policy = &mut graph.programs[member];
                if policy.names(STOP) {
                    policy.health.run_timeout.get_or_insert(policy.killwait);
                }
            }
            let takeover_after = cluster.takeover_after(graph.longest_stop(id));
            let node = cluster.node.as_deref().unwrap_or_default().into();
            graph.groups[id].tenancy = Some(TenancyPolicy { node, candidates, takeover_after });
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}
