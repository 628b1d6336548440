//! The token that every instance carries in its environment, and so does everything that it starts.

use gaggled_core::ids::InstanceId;

/// The name of the variable.
pub(super) const VARIABLE: &str = "GAGGLED_INSTANCE";

/// Which run of which program of which gaggled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub instance: InstanceId,
    pub program: String,
}

impl Token {
    /// The value of the variable.
    pub(super) fn write(journal: &str, program: &str, instance: InstanceId) -> String {
        format!("{journal}:{instance}:{program}")
    }

    /// The token of a process of this gaggled, if it is one.
    pub(super) fn of(pid: i32, journal: &str) -> Option<Self> {
        let value = super::proc::variable(pid, VARIABLE)?;
        let (instance, program) = value.strip_prefix(journal)?.strip_prefix(':')?.split_once(':')?;
        Some(Self { instance: InstanceId(instance.parse().ok()?), program: program.to_owned() })
    }
}
