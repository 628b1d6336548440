//! Who may use the sockets of gaggled, and how many connections each user may have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use gaggled_core::{config::AccessConfig, protocol::access::Role};
use nix::unistd::{Group, User, geteuid};
use nng::Pipe;
use thiserror::Error;

use crate::nng_ffi::{LocalPeer, local_peer};

/// A user or group of the configuration that does not exist here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("access names {what} \"{name}\", which does not exist here")]
pub struct Unknown {
    /// `user` or `group`.
    pub what: &'static str,
    /// Its name.
    pub name: String,
}

/// Users, and groups by their numbers and members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Members {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Members {
    /// Looks up names: `deploy` is a user, `@wheel` a group.
    fn find(names: &[String]) -> Result<Self, Unknown> {
        let mut members = Self::default();
        for name in names {
            if let Some(group) = name.strip_prefix('@') {
                let unknown = || Unknown { what: "group", name: group.to_owned() };
                let group = Group::from_name(group).ok().flatten().ok_or_else(unknown)?;
                members.groups.insert(group.gid.as_raw());
                let users = group.mem.iter().filter_map(|name| User::from_name(name).ok().flatten());
                members.users.extend(users.map(|user| user.uid.as_raw()));
            } else {
                let unknown = || Unknown { what: "user", name: name.clone() };
                let user = User::from_name(name).ok().flatten().ok_or_else(unknown)?;
                members.users.insert(user.uid.as_raw());
            }
        }
        Ok(members)
    }

    fn has(&self, peer: LocalPeer) -> bool {
        self.users.contains(&peer.uid) || self.groups.contains(&peer.gid)
    }
}

/// Who may do what at a local socket. Groups are looked up once: a change of their members counts after a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    operate: Members,
    observe: Members,
    /// Whether anything is configured: without it only root and gaggled's own user reach the sockets.
    is_open: bool,
}

impl Access {
    /// Looks up what a configuration says.
    ///
    /// # Errors
    /// A name that does not exist here.
    pub fn find(config: &AccessConfig) -> Result<Self, Unknown> {
        let (operate, observe) = (Members::find(&config.operate)?, Members::find(&config.observe)?);
        Ok(Self { operate, observe, is_open: !config.is_empty() })
    }

    /// Whether users other than root and gaggled's own can reach the sockets.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// What a peer may do.
    pub(crate) fn role(&self, peer: LocalPeer) -> Role {
        if is_own(peer.uid) {
            Role::Admin
        } else if self.operate.has(peer) {
            Role::Operate
        } else if !self.is_open || self.observe.has(peer) {
            Role::Observe
        } else {
            Role::Nothing
        }
    }
}

fn is_own(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// How many connections all users together may have at a socket; root and gaggled's own user may have as many again.
const ALL_MAX: usize = 256;
/// How many connections one user may have.
const USER_MAX: usize = 32;

/// How many requests a second a connection of another user may send, and how many at once.
const RATE: f64 = 50.0;
const AT_ONCE: f64 = 100.0;

/// How many requests a connection may send now, and since when that is so.
#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    /// Takes one request; false if it is too many.
    fn take(&mut self, now: Instant) -> bool {
        let more = now.duration_since(self.since).as_secs_f64() * RATE;
        (self.left, self.since) = ((self.left + more).min(AT_ONCE), now);
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}

/// The connections of a socket.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Connection {
    /// None if it is not known, as of tcp.
    user: Option<u32>,
    /// None of root and gaggled's own user, who may send as many as they like.
    allowance: Option<Allowance>,
}

#[derive(Debug, Default)]
struct Known {
    pipes: BTreeMap<i32, Connection>,
    /// The users whose last connection was refused.
    refused: BTreeSet<Option<u32>>,
}

impl Peers {
    /// Takes a connection that is about to be made; false if there are too many already.
    pub(crate) fn admit(&self, pipe: Pipe, id: i32) -> bool {
        let user = local_peer(pipe).map(|peer| peer.uid);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = user.is_some_and(is_own);
        let users = || known.pipes.values().map(|connection| connection.user);
        let total = users().filter(|user| user.is_some_and(is_own) == own).count();
        let of_user = users().filter(|other| *other == user).count();
        let is_full = total >= ALL_MAX || !own && user.is_some() && of_user >= USER_MAX;
        if is_full {
            // Once for each user: a flood must not become one of lines. Nothing waits for a log that is stuck.
            let first = known.refused.insert(user);
            drop(known);
            if first {
                let who = user.map_or_else(|| "a peer".to_owned(), |uid| format!("uid {uid}"));
                eprintln!(
                    "Error: {who} has too many connections ({of_user}, {total} in all): further ones are refused"
                );
            }
            return false;
        }
        let allowance = (!own).then(|| Allowance::new(now()));
        known.pipes.insert(id, Connection { user, allowance });
        true
    }

    /// Counts a request of a connection; how many it may send in a second, if this one is too many.
    pub(crate) fn count(&self, id: i32) -> Result<(), f64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = known.pipes.get_mut(&id).and_then(|connection| connection.allowance.as_mut());
        if allowance.is_none_or(|allowance| allowance.take(now())) { Ok(()) } else { Err(RATE) }
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pipes.len()
    }

    /// A connection has ended.
    pub(crate) fn forget(&self, id: i32) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pipes.remove(&id);
    }
}

#[expect(clippy::disallowed_methods, reason = "the rate of requests is one of real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_may_send_so_many_requests_and_no_more() {
        let begun = now();
        let mut allowance = Allowance::new(begun);
        let taken = |allowance: &mut Allowance, at: Instant| (0..1000).filter(|_| allowance.take(at)).count();
        assert_eq!(taken(&mut allowance, begun), 100, "at once");
        assert_eq!(taken(&mut allowance, begun + Duration::from_secs(1)), 50, "a second later");
        assert_eq!(taken(&mut allowance, begun + Duration::from_secs(60)), 100, "never more than at once");
    }
}
