//! What a configuration file can say about gaggled itself.

use serde::{Deserialize, Serialize};

use super::{ClusterConfig, OrderedMap};
use crate::{
    base::time::Millis,
    graph::{Backoff, StartLimit},
};

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
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub env: OrderedMap<String>,
    /// How the starts of a program that keeps ending are spaced.
    #[serde(skip_serializing_if = "is_default")]
    pub backoff: Backoff,
    /// When a program that keeps ending is given up; never if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_limit: Option<StartLimit>,
    /// Where events are published; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eventurl: Option<String>,
    /// Where requests are answered; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controlurl: Option<String>,
    /// Urls that may be used although every process that reaches them can do everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<String>,
    /// Who may use the sockets besides root and gaggled's own user.
    #[serde(skip_serializing_if = "AccessConfig::is_empty")]
    pub access: AccessConfig,
    /// The directory of the journal; the default place if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_directory: Option<String>,
    /// How much of the journal is kept.
    #[serde(skip_serializing_if = "is_default")]
    pub journal: JournalConfig,
    /// The directory of cgroup2 in which each run of a program gets a cgroup of its own; none if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Whether the output of programs without a log is merged, each line with the name of its program.
    #[serde(skip_serializing_if = "is_default")]
    pub prefix_output: bool,
    /// Mail about changes of programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtpgate: Option<SmtpgateConfig>,
    /// The cluster that this machine is a node of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterConfig>,
    /// Accepted from files of the original gaggled, without effect: nothing polls.
    #[serde(skip_serializing)]
    pub tick: Option<i64>,
    /// Accepted from files of the original gaggled, without effect: nothing polls.
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

/// How the connection to the mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tls {
    /// Not at all. No password is ever sent then.
    #[default]
    None,
    /// The connection begins unencrypted and must be upgraded to TLS.
    StartTls,
    /// By TLS from the first byte.
    Implicit,
}

/// Mail about changes of programs.
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
    /// How long a program must have been up without a change before it is reported as up again.
    pub period: Millis,
    /// For how long alerts are collected into one mail; 0 sends each by itself.
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
            env: OrderedMap::default(),
            backoff: Backoff::default(),
            start_limit: None,
            eventurl: None,
            controlurl: None,
            insecure: Vec::new(),
            access: AccessConfig::default(),
            state_directory: None,
            journal: JournalConfig::default(),
            cgroup: None,
            prefix_output: false,
            smtpgate: None,
            cluster: None,
            tick: None,
            startwait: None,
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
            tls: Tls::None,
            ca: None,
            user: None,
            password_file: None,
            timeout: MAIL_TIMEOUT,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_killwait(value: &Millis) -> bool {
    *value == KILLWAIT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_mail_timeout(value: &Millis) -> bool {
    *value == MAIL_TIMEOUT
}

/// Who may use the sockets besides root and gaggled's own user: names of users, and of groups with an `@` before them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "access", deny_unknown_fields, default)]
pub struct AccessConfig {
    /// Users and groups that may start, stop and signal programs, and query the state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operate: Vec<String>,
    /// Users and groups that may query the state, and follow the events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub observe: Vec<String>,
}

impl AccessConfig {
    /// Whether no user and no group is named.
    pub fn is_empty(&self) -> bool {
        self.operate.is_empty() && self.observe.is_empty()
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
