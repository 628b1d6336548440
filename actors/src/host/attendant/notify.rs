//! The sockets at which programs say that they are ready and alive, as `sd_notify(3)` describes it.
//!
//! Each program has one of its own, with a name that is the same in every life of gaggled: what a program was given when
//! it was started is good for as long as it runs. The name is not in the file system, so that a program under another
//! user, or with another root, reaches it.

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use gaggled_core::{
    health::Ready,
    host::{Fact, Launch},
    ids::{InstanceId, ProgramId, Table},
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::PassCred};
use sha2::{Digest, Sha256};
use tokio::{io::Interest, time::Instant};

use crate::host::shared::Shared;

/// The longest message that is looked at, in bytes.
const LONGEST: usize = 4096;

/// Where programs say something: the value of `$NOTIFY_SOCKET` of each that does.
pub(in crate::host) type Addresses = BTreeMap<ProgramId, String>;

/// The sockets.
pub(super) struct Sockets(BTreeMap<ProgramId, (String, UnixDatagram)>);

impl Sockets {
    /// Binds one for each program that needs it.
    pub(super) fn bind(launches: &Table<ProgramId, Launch>, journal: &str) -> io::Result<Self> {
        let speaks = |launch: &Launch| launch.ready == Some(Ready::Notify) || launch.watchdog.is_some();
        let mut sockets = BTreeMap::new();
        for (program, launch) in launches.iter().filter(|(_, launch)| speaks(launch)) {
            let mut name = name_of(journal, &launch.name);
            let bind = |name: &str| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?);
            let bound = bind(&name).or_else(|_| {
                // Somebody has taken it. What runs already is not heard any more; what is started now is.
                name = format!("{name}.{}", std::process::id());
                bind(&name)
            });
            let socket = bound.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("the notify socket of \"{}\" cannot be made: {error}", launch.name),
                )
            })?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, PassCred, &true)?;
            sockets.insert(program, (format!("@{name}"), socket));
        }
        Ok(Self(sockets))
    }

    pub(super) fn addresses(&self) -> Addresses {
        self.0.iter().map(|(program, (address, _))| (*program, address.clone())).collect()
    }

    /// Listens at all of them.
    pub(super) fn listen(self, shared: &Arc<Shared>) -> io::Result<()> {
        for (program, (_, socket)) in self.0 {
            let socket = tokio::net::UnixDatagram::from_std(socket)?;
            let shared = shared.clone();
            let mut heard = Heard::default();
            tokio::task::spawn_local(async move {
                while socket.readable().await.is_ok() {
                    // Otherwise nobody has spoken after all, or not so that it could be understood.
                    if let Ok(message) = socket.try_io(Interest::READABLE, || receive(&socket)) {
                        heard.hear(&shared, program, &message);
                    }
                }
            });
        }
        Ok(())
    }
}

/// The name cannot be guessed by whoever does not know the journal, so that nobody takes it before gaggled does.
fn name_of(journal: &str, program: &str) -> String {
    let digest = Sha256::new().chain_update(journal).chain_update("\0").chain_update(program).finalize();
    let number = digest.first_chunk().map_or(0, |first| u128::from_be_bytes(*first));
    format!("gaggled/{number:032x}")
}

/// What was said, and by whom.
struct Message {
    pid: i32,
    uid: u32,
    text: String,
}

fn receive(socket: &impl AsRawFd) -> io::Result<Message> {
    let mut bytes = [0; LONGEST];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let (mut pid, mut uid) = (0, u32::MAX);
    // For descriptors there is no space: the kernel closes them.
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmCredentials(who) = control {
            (pid, uid) = (who.pid(), who.uid());
        }
    }
    let length = received.bytes;
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
    Ok(Message { pid, uid, text })
}

/// How often a program is heard to be alive at most: it may say so as often as it likes.
const OFTEN: Duration = Duration::from_millis(100);

/// What was heard of a program so far.
#[derive(Default)]
struct Heard {
    ready: Option<InstanceId>,
    alive: Option<Instant>,
}

impl Heard {
    fn hear(&mut self, shared: &Shared, program: ProgramId, message: &Message) {
        let Some(instance) = shared.speaker(program, message.pid, message.uid) else { return };
        let says = |what: &str| message.text.lines().any(|line| line.trim() == what);
        if says("READY=1") && self.ready != Some(instance) {
            self.ready = Some(instance);
            shared.tell(program, instance, Fact::Ready);
        }
        if says("WATCHDOG=1") && self.alive.is_none_or(|last| last.elapsed() >= OFTEN) {
            self.alive = Some(Instant::now());
            shared.tell(program, instance, Fact::Alive);
        }
    }
}
