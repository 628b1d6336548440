//! Who may send which requests.

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// No rights: the bus refuses the connection, the control channel every request.
    Nothing,
    /// Query the state, and follow the events.
    Observe,
    /// Also report what is seen of other nodes.
    Gateway,
    /// Also start, stop and signal programs.
    Operate,
    /// Also stop gaggled, or change its configuration or its version.
    Admin,
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity, for the journal.
    pub who: String,
    /// What it may do.
    pub role: Role,
}
