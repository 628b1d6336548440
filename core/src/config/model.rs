//! What a configuration file can say, and what it means when it says nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Ordered;
use crate::{
    graph::{self, Backoff, Graph, Group, Limit, Mode, Policy, START, Until},
    ids::GroupId,
    time::Millis,
};

/// A whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "configuration", deny_unknown_fields, default)]
pub struct Config {
    /// Settings of gaggled itself.
    #[serde(skip_serializing_if = "is_default")]
    pub gaggled: Settings,
    /// Groups of programs; one that is not here, and that a program names, is at level `start`.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub groups: Ordered<GroupConfig>,
    /// The programs.
    pub programs: Ordered<ProgramConfig>,
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
}

/// Settings of gaggled itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "gaggled", deny_unknown_fields, default)]
pub struct Settings {
    /// How long a program may take to end after a TERM before it is killed.
    #[serde(skip_serializing_if = "is_default_killwait")]
    pub killwait: Millis,
    /// Directories that are searched before `$PATH`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Variables for every program, over gaggled's own environment.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub env: Ordered<String>,
    /// How the starts of a program that keeps ending are spaced.
    #[serde(skip_serializing_if = "is_default")]
    pub backoff: Backoff,
    /// When a program that keeps ending is given up; never if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Where events are published; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eventurl: Option<String>,
    /// Where requests are answered; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controlurl: Option<String>,
    /// Urls that are used although anybody who reaches them can do everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<String>,
    /// The directory of the journal; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How much of the journal is kept.
    #[serde(skip_serializing_if = "is_default")]
    pub journal: JournalConfig,
    /// Mail about what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtpgate: Option<SmtpgateConfig>,
    /// Accepted from files of the original; nothing polls here.
    #[serde(skip_serializing)]
    pub tick: Option<i64>,
    /// Accepted from files of the original; nothing polls here.
    #[serde(skip_serializing)]
    pub startwait: Option<i64>,
}

/// How much of the journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "journal", deny_unknown_fields, default)]
pub struct JournalConfig {
    /// How much of the disk it may take.
    pub megabytes: u64,
    /// How long it is kept at most.
    pub age: Millis,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { megabytes: 256, age: Millis(30 * 24 * 3600 * 1000) }
    }
}

/// One program.
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
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub env: Ordered<String>,
    /// What to do when it ends; `Respawn` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The original's word for the mode: false is `Once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respawn: Option<bool>,
    /// The group it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The levels of the group at which it runs; all but `stop` if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<String>,
    /// Exit codes that mean success; only 0 if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub success: Vec<i32>,
    /// A line of shell that stops it, instead of a TERM; if it is of mode `Wait`, one that undoes what it has done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Whether it is wanted from the start.
    #[serde(skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Whether it comes up only when an operator asks for it. What depends on it waits until then.
    #[serde(skip_serializing_if = "is_default")]
    pub manual: bool,
    /// How long it may take to end before it is killed, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killwait: Option<Millis>,
    /// How its starts are spaced, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// When it is given up, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Whether gaggled ends with it, and with its exit status.
    #[serde(skip_serializing_if = "is_default")]
    pub essential: bool,
    /// A file that its output is appended to, instead of gaggled's own output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The programs it needs.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub depends: Ordered<DependsConfig>,
}

/// One dependency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "depends", deny_unknown_fields, default)]
pub struct DependsConfig {
    /// What is waited for; that it has completed if it is of mode `Wait` or `Test`, else that it has started, if nothing
    /// is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// How long that must have been so.
    #[serde(skip_serializing_if = "is_default")]
    pub delay: Millis,
    /// Whether this one is stopped, and started again, when the other goes down.
    #[serde(skip_serializing_if = "is_default")]
    pub propagate: bool,
}

/// How the connection to the mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tls {
    /// Not at all. No password is ever sent then.
    #[default]
    Plain,
    /// It begins in the clear and must be upgraded.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// Mail about what happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "smtpgate", deny_unknown_fields, default)]
pub struct SmtpgateConfig {
    /// The mail server.
    pub mx: String,
    /// Its port; 25, or 465 with `tls: Implicit`, if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name given to the server; this host's if it is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub helo: String,
    /// The sender.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
    /// What every subject begins with; the first `__HOSTNAME__` in it becomes this host's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spfix: String,
    /// How long a program must have been quiet before it is said to be up again.
    pub period: Millis,
    /// For how long statements are collected into one mail; 0 sends each by itself.
    #[serde(skip_serializing_if = "is_default")]
    pub batch: Millis,
    /// Whether gaggled runs the gate itself, as a program named `smtpgate`.
    #[serde(skip_serializing_if = "is_default")]
    pub auto: bool,
    /// How the connection is protected.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: Tls,
    /// A file with certificates to trust besides those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The name to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file that holds the password, and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// How long one attempt to deliver a mail may take.
    #[serde(skip_serializing_if = "is_default_mail_timeout")]
    pub timeout: Millis,
}

const KILLWAIT: Millis = Millis(10_000);
const MAIL_TIMEOUT: Millis = Millis(45_000);

impl Default for Settings {
    fn default() -> Self {
        Self {
            killwait: KILLWAIT,
            path: String::new(),
            env: Ordered::default(),
            backoff: Backoff::default(),
            limit: None,
            eventurl: None,
            controlurl: None,
            insecure: Vec::new(),
            state: None,
            journal: JournalConfig::default(),
            smtpgate: None,
            tick: None,
            startwait: None,
        }
    }
}

impl Default for ProgramConfig {
    fn default() -> Self {
        Self {
            command: None,
            argv: Vec::new(),
            shell: None,
            wd: None,
            env: Ordered::default(),
            mode: None,
            respawn: None,
            group: None,
            levels: Vec::new(),
            success: Vec::new(),
            stop: None,
            enabled: true,
            manual: false,
            killwait: None,
            backoff: None,
            limit: None,
            essential: false,
            log: None,
            depends: Ordered::default(),
        }
    }
}

impl Default for SmtpgateConfig {
    fn default() -> Self {
        Self {
            mx: String::new(),
            port: None,
            helo: String::new(),
            from: String::new(),
            to: Vec::new(),
            spfix: String::new(),
            period: Millis(10_000),
            batch: Millis(0),
            auto: false,
            tls: Tls::Plain,
            ca: None,
            user: None,
            password_file: None,
            timeout: MAIL_TIMEOUT,
        }
    }
}

impl ProgramConfig {
    /// What to do when it ends, in whichever word that was said.
    pub fn effective_mode(&self) -> Mode {
        match (self.mode, self.respawn) {
            (Some(mode), _) => mode,
            (None, Some(false)) => Mode::Once,
            (None, Some(true) | None) => Mode::Respawn,
        }
    }
}

impl DependsConfig {
    /// What is waited for of a program of this mode.
    pub fn effective_until(&self, on: Mode) -> Until {
        self.until.unwrap_or(if on.holds_back() { Until::Completed } else { Until::Started })
    }
}

impl Config {
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

    /// The programs, dependencies and groups of a checked configuration.
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
        for (name, program) in self.programs.iter() {
            graph.add_program(Policy {
                name: name.into(),
                mode: program.effective_mode(),
                enabled: program.enabled && !program.manual,
                group: program.group.as_deref().and_then(|group| groups.get(group).copied()),
                levels: program.levels.iter().map(|level| level.as_str().into()).collect(),
                undone: program.stop.is_some() && program.effective_mode() == Mode::Wait,
                success: program.success.clone(),
                killwait: program.killwait.unwrap_or(self.gaggled.killwait),
                backoff: program.backoff.unwrap_or(self.gaggled.backoff),
                limit: program.limit.or(self.gaggled.limit).filter(|_| !program.effective_mode().holds_back()),
                essential: program.essential,
                retired: false,
            });
        }
        let ids = graph.names();
        for (name, program) in self.programs.iter() {
            for (on, depends) in program.depends.iter() {
                if let (Some(of), Some(on)) = (ids.get(name), ids.get(on)) {
                    let until = depends.effective_until(graph.programs[*on].mode);
                    let DependsConfig { delay, propagate, .. } = *depends;
                    graph.add_dependency(graph::Dependency { of: *of, on: *on, until, delay, propagate });
                }
            }
        }
        graph
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_killwait(value: &Millis) -> bool {
    *value == KILLWAIT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_mail_timeout(value: &Millis) -> bool {
    *value == MAIL_TIMEOUT
}
