//! What a configuration file can say about the cluster that the machine is a node of.

use serde::{Deserialize, Serialize};

use crate::base::time::Millis;

/// The name of the program that a section `cluster` adds.
pub const CLUSTERGATE: &str = "clustergate";

/// The program that gaggled adds for groups that run on one node at a time.
pub const KEEPER: &str = "keeper";

/// Where a node has its programs from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigFrom {
    /// From its own file.
    #[default]
    File,
    /// From the configuration that is published to all nodes.
    Published,
}

/// The cluster that a machine is a node of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "cluster", deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Its name: several clusters can share an etcd.
    pub name: String,
    /// The name of this node; that of the host if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The urls of the members of etcd.
    pub etcd: Vec<String>,
    /// A file with the certificates of those who may sign that of etcd; those of the system if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// A file with the certificate of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// A file with the key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The user that the gateway runs as; gaggled's own if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the programs come from, with their groups and the sets of nodes.
    #[serde(skip_serializing_if = "is_file")]
    pub config: ConfigFrom,
    /// How long a node must be silent to be taken for dead.
    #[serde(skip_serializing_if = "is_default_dead_after")]
    pub dead_after: Millis,
    /// The command that `gaggled_clustergate fence NODE` runs with the name of the node, to switch that off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
    /// Whether an etcd on other machines may be spoken to without TLS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// How much earlier a permit ends than others could notice: a daemon that has died just then is replaced in this time, and has
/// heard of its permit.
const PERMIT_MARGIN: Millis = Millis(1250);

const DEAD_AFTER: Millis = Millis(10_000);

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            node: None,
            etcd: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            config: ConfigFrom::File,
            dead_after: DEAD_AFTER,
            fence: None,
            insecure: false,
        }
    }
}

impl ClusterConfig {
    /// How long the session of a node lasts after it was renewed for the last time.
    pub fn session(&self) -> Millis {
        self.dead_after.half().max(Millis(2000))
    }

    /// How often it is renewed.
    pub fn renewal(&self) -> Millis {
        Millis(self.session().0 / 3)
    }

    /// The shortest `dead_after` with groups that run on one node at a time: one answer of the store may be lost, and the permit
    /// lasts.
    pub const SHARED_DEAD_AFTER: Millis = Millis(6000);

    /// How long a node may run what it has claimed after it has asked a majority of the store whether it still holds it. That is
    /// shorter than what others wait for ([`takeover_after`](Self::takeover_after)), because clocks may differ in rate by 1 %, and
    /// nothing happens at once.
    pub fn permit(&self) -> Millis {
        let silence = self.silence();
        Millis((silence.0 - silence.0 / 50).saturating_sub(PERMIT_MARGIN.0))
    }

    /// For how long others leave a node alone whose session is gone. A group of it is left to them when as much time has passed,
    /// and that for its longest stop.
    fn silence(&self) -> Millis {
        Millis(self.dead_after.0.saturating_sub(self.session().0 * 2 / 3))
    }

    /// How long a node waits after it has seen that the session of another is gone, until nothing runs there any more of a
    /// group that stops in this time.
    pub fn takeover_after(&self, stop: Millis) -> Millis {
        Millis(self.silence().0 + stop.0 + stop.0 / 50)
    }

    /// How long a node must be without a session to be lost. One whose session was revoked by mistake opens another within
    /// this time.
    pub fn lost_after(&self) -> Millis {
        self.session().half()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_dead_after(value: &Millis) -> bool {
    *value == DEAD_AFTER
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_file(value: &ConfigFrom) -> bool {
    *value == ConfigFrom::File
}
