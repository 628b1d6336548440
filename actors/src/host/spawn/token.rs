//! The token that every instance carries in its environment, and so does everything that it starts.
//!
//! It is signed with the identity of the journal, which only gaggled can read: a program can show its own token, but
//! cannot make one for another program or another run.

use gaggled_core::base::ids::InstanceId;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The name of the variable.
pub(crate) const VARIABLE: &str = "GAGGLED_TOKEN";

/// The variable for stop commands and checks, which run beside a program and are no part of the run.
pub(crate) const HELPER: &str = "GAGGLED_HELPER_TOKEN";

/// Which run of which program of which gaggled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub instance: InstanceId,
    pub program: String,
}

impl Token {
    /// The value of the variable: `RUN:PROGRAM:SIGNATURE`.
    pub(crate) fn write(identity: &str, program: &str, instance: InstanceId) -> String {
        format!("{instance}:{program}:{:032x}", sign(identity, program, instance))
    }

    /// The token of a process of this gaggled, if it is one.
    pub(crate) fn of(pid: i32, identity: &str) -> Option<Self> {
        Self::read(&crate::host::procfs::variable(pid, VARIABLE)?, identity)
    }

    /// The run beside which a process runs, if it is a stop command or a check.
    pub(crate) fn of_helper(pid: i32, identity: &str) -> Option<Self> {
        Self::read(&crate::host::procfs::variable(pid, HELPER)?, identity)
    }

    /// Both: that of a process that is a stop command or a check, or was started by one, and that of a run.
    pub(crate) fn of_either(pid: i32, identity: &str) -> (Option<Self>, Option<Self>) {
        let values = crate::host::procfs::variables(pid, [HELPER, VARIABLE]);
        let [helper, run] = values.map(|value| Self::read(&value?, identity));
        (helper, run)
    }

    /// The token that the variable has, if it is one of this gaggled.
    pub(crate) fn read(value: &str, identity: &str) -> Option<Self> {
        let (instance, rest) = value.split_once(':')?;
        let (program, _) = rest.split_once(':')?;
        let instance = InstanceId(instance.parse().ok()?);
        (value == Self::write(identity, program, instance)).then(|| Self { instance, program: program.to_owned() })
    }
}

/// A name for a journal that may be shown to others: its identity cannot be derived from it.
pub fn public_id(identity: &str) -> String {
    format!("{:016x}", sign(identity, "", InstanceId(0)) >> 64)
}

fn sign(identity: &str, program: &str, instance: InstanceId) -> u128 {
    // A key may have any length.
    let Ok(mut signer) = Hmac::<Sha256>::new_from_slice(identity.as_bytes()) else { return 0 };
    signer.update(&instance.0.to_le_bytes());
    signer.update(program.as_bytes());
    let signature = signer.finalize().into_bytes();
    signature.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_who_has_written_it_and_cannot_be_changed() {
        let value = Token::write("secret", "web", InstanceId(7));
        let token = Token { instance: InstanceId(7), program: "web".into() };
        assert_eq!(Token::read(&value, "secret"), Some(token));
        assert_eq!(Token::read(&value, "another"), None);
        for forged in [value.replace("web", "db"), value.replace("7:", "8:"), "7:web:".to_owned(), String::new()] {
            assert_eq!(Token::read(&forged, "secret"), None, "{forged}");
        }
    }
}
