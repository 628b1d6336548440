//! Who may send which requests.

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing: it may connect, and is refused.
    Nothing,
    /// Look.
    Observe,
    /// Start and stop programs.
    Operate,
    /// End gaggled, change its configuration or its version.
    Admin,
}

/// Who gave a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who that is, for the journal.
    pub who: String,
    /// What it may do.
    pub role: Role,
}
