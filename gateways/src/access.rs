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
#[error("{what} \"{name}\" may use the sockets, and does not exist here")]
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

/// The roles of users at a local socket. Groups are looked up once: a change of their members takes effect after a
/// reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    operate: Members,
    observe: Members,
    /// The user of the cluster gateway.
    gateway: Members,
    /// Whether anything is configured: without it only root and gaggled's own user reach the sockets.
    is_open: bool,
}

impl Access {
    /// Looks up the users and groups of a configuration, and the user of its cluster gateway, if that is another than
    /// gaggled's own.
    ///
    /// # Errors
    /// A name that does not exist here.
    pub fn find(config: &AccessConfig, gateway: Option<&str>) -> Result<Self, Unknown> {
        let (operate, observe) = (Members::find(&config.operate)?, Members::find(&config.observe)?);
        let is_open = !config.is_empty() || gateway.is_some();
        let gateway = Members::find(&gateway.map(str::to_owned).into_iter().collect::<Vec<_>>())?;
        Ok(Self { operate, observe, gateway, is_open })
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
        } else if self.gateway.has(peer) {
            Role::Gateway
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

/// How many requests a second any user but root and gaggled's own may send, over all its connections, and how many at
/// once.
pub(crate) const RATE: f64 = 50.0;
const AT_ONCE: f64 = 100.0;
/// How many held requests a connection may have before it is closed.
const HELD_MAX: usize = 8;

/// How many requests a user may send, as counted at a moment.
#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    fn left(&self, now: Instant) -> f64 {
        let more = now.duration_since(self.since).as_secs_f64() * RATE;
        (self.left + more).min(AT_ONCE)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.left(now) >= AT_ONCE
    }

    /// Counts one request; false if it exceeds the rate.
    fn take(&mut self, now: Instant) -> bool {
        (self.left, self.since) = (self.left(now), now);
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
    /// `None` if it is not known, as for tcp.
    user: Option<u32>,
    /// How many requests wait to be refused.
    held: usize,
}

/// The sender whose allowance a request is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    User(u32),
    /// A connection whose user is not known, as of tcp.
    Pipe(i32),
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered.
    Answer,
    /// It exceeds the rate, and is refused after a delay: a client that waits for the refusal sends nothing meanwhile.
    Hold,
    /// The client does not wait for refusals, and the connection is closed.
    Close,
}

#[derive(Debug, Default)]
struct Known {
    pipes: BTreeMap<i32, Connection>,
    /// The allowances that are not full. Root and gaggled's own user have none: their requests are not limited.
    allowances: BTreeMap<Sender, Allowance>,
    /// The users of whom a connection was refused, which is logged once for each.
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
            // Logged once for each user, against a flood of lines; without the lock, because writing to the log may
            // block.
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
        known.pipes.insert(id, Connection { user, held: 0 });
        true
    }

    /// Counts a request of a connection.
    pub(crate) fn count(&self, id: i32) -> Verdict {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).count(id, now())
    }

    /// Records that a held request is refused now.
    pub(crate) fn release(&self, id: i32) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = known.pipes.get_mut(&id) {
            connection.held = connection.held.saturating_sub(1);
        }
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pipes.len()
    }

    /// Removes a connection that has ended.
    pub(crate) fn forget(&self, id: i32) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.pipes.remove(&id);
        known.allowances.remove(&Sender::Pipe(id));
    }
}

impl Known {
    fn count(&mut self, id: i32, now: Instant) -> Verdict {
        let Some(connection) = self.pipes.get_mut(&id) else { return Verdict::Close };
        if connection.user.is_some_and(is_own) {
            return Verdict::Answer;
        }
        let sender = connection.user.map_or(Sender::Pipe(id), Sender::User);
        if self.allowances.entry(sender).or_insert_with(|| Allowance::new(now)).take(now) {
            // A full allowance need not be kept: a missing one counts as full.
            self.allowances.retain(|_, allowance| !allowance.is_full(now));
            return Verdict::Answer;
        }
        connection.held += 1;
        if connection.held > HELD_MAX { Verdict::Close } else { Verdict::Hold }
    }
}

#[expect(clippy::disallowed_methods, reason = "the rate of requests is measured in real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_user_may_send_so_many_requests_and_no_more() {
        let begun = now();
        let mut allowance = Allowance::new(begun);
        let taken = |allowance: &mut Allowance, at: Instant| (0..1000).filter(|_| allowance.take(at)).count();
        assert_eq!(taken(&mut allowance, begun), 100, "at once");
        assert_eq!(taken(&mut allowance, begun + Duration::from_secs(1)), 50, "a second later");
        assert_eq!(taken(&mut allowance, begun + Duration::from_secs(60)), 100, "never more than at once");
    }

    #[test]
    fn who_sends_too_much_waits_for_refusals_or_is_ended_and_another_connection_does_not_help() {
        let mut known = Known::default();
        let (own, stranger, begun) = (geteuid().as_raw(), geteuid().as_raw() + 1, now());
        for (id, user) in [(1, own), (2, stranger), (3, stranger)] {
            known.pipes.insert(id, Connection { user: Some(user), held: 0 });
        }
        let verdicts = |known: &mut Known, id, count| (0..count).map(|_| known.count(id, begun)).collect::<Vec<_>>();
        assert!(verdicts(&mut known, 1, 1000).iter().all(|verdict| *verdict == Verdict::Answer));
        assert!(verdicts(&mut known, 2, 100).iter().all(|verdict| *verdict == Verdict::Answer));
        assert!(verdicts(&mut known, 2, HELD_MAX).iter().all(|verdict| *verdict == Verdict::Hold));
        assert_eq!(known.count(2, begun), Verdict::Close);
        assert_eq!(known.count(3, begun), Verdict::Hold);
        assert_eq!(known.count(3, begun + Duration::from_secs(1)), Verdict::Answer);
        assert_eq!(known.allowances.len(), 1);
    }
}
