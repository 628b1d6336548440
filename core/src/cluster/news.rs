//! What the cluster gateway reports, and what machines are told of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{claims::ClaimsSight, published::Sight};

/// What a machine is told of the cluster.
#[derive(Clone, Debug)]
pub enum News {
    /// It is in reach, and nothing has changed.
    Contact,
    /// How the program of another node is seen.
    Sight(Sight),
    /// How the claims on groups are seen.
    Claims(Arc<ClaimsSight>),
}

/// One report of the cluster gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    /// The cluster is in reach, and nothing has changed since the last report.
    Contact,
    /// How a program of another node is seen.
    External {
        /// Its name here: `db@n1`.
        program: String,
        /// How it is seen.
        sight: Sight,
    },
    /// How the claims on the groups of this node are seen.
    Claims(ClaimsSight),
}
