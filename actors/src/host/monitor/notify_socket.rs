//! The notify sockets, at which programs report that they are ready and alive, as `sd_notify(3)` describes.
//!
//! Each program has its own, whose address is the same in every run of gaggled, and so stays valid as long as the
//! program runs. It is a path in a directory that only gaggled can write to, so that no other user can take it while
//! gaggled does not run, and programs in other network namespaces can reach it. The [`Stash`] keeps the socket and its
//! queued messages when the daemon dies.
//!
//! A program with another root directory cannot reach the path. It gets an abstract address instead, as do all programs
//! if the path cannot be created; others can take such an address while neither gaggled nor its subreaper runs.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::Permissions,
    io::{self, IoSliceMut},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use gaggled_core::{
    base::ids::{IdVec, InstanceId, ProgramId},
    host::{HostEvent, LaunchSpec, probe::ReadinessProbe},
};
use nix::{
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::PassCred},
    unistd::geteuid,
};
use sha2::{Digest, Sha256};
use tokio::{io::Interest, time::Instant};

use crate::{
    host::{recover::stash::Stash, track::tracker::ProcessTracker},
    journal::directory::make_private,
};

/// The longest message that is looked at, in bytes.
const DATAGRAM_MAX: usize = 4096;
/// How many messages of one program are read before those of others.
const DATAGRAMS_PER_TURN: usize = 256;
/// The longest path that a socket can have, in bytes.
const PATH_MAX: usize = 107;

/// Where the sockets of root's gaggled are: programs of every user must be able to reach them.
const SHARED_DIRECTORY: &str = "/run/gaggled-notify";

/// Where the notify sockets of the gaggled with this state directory and journal are.
pub fn notify_directory(state: &Path, journal: &str) -> PathBuf {
    if geteuid().is_root() { Path::new(SHARED_DIRECTORY).join(digest(journal, "")) } else { state.join("notify") }
}

/// The addresses of programs, for the spawner, which binds the sockets that do not exist yet.
pub(crate) struct Addresses {
    known: BTreeMap<ProgramId, String>,
    binder: Binder,
}

impl Addresses {
    /// The value of `$NOTIFY_SOCKET` for a program, and its socket if that has just been made.
    pub(in crate::host) fn of(
        &mut self,
        program: ProgramId,
        launch: &LaunchSpec,
    ) -> io::Result<(Option<String>, Option<UnixDatagram>)> {
        if !speaks(launch) {
            return Ok((None, None));
        }
        if let Some(known) = self.known.get(&program) {
            return Ok((Some(known.clone()), None));
        }
        let (address, socket) = self.binder.bind(launch)?;
        self.known.insert(program, address.clone());
        Ok((Some(address), Some(socket)))
    }
}

/// Whether a program needs a notify socket.
fn speaks(launch: &LaunchSpec) -> bool {
    launch.ready == Some(ReadinessProbe::Notify) || launch.watchdog.is_some()
}

/// Makes sockets.
struct Binder {
    journal: String,
    directory: PathBuf,
    stash: Arc<Stash>,
}

impl Binder {
    /// A socket of a program, and its address.
    fn bind(&self, launch: &LaunchSpec) -> io::Result<(String, UnixDatagram)> {
        let (address, socket) = match self.path(launch) {
            Some(path) if make_private(&self.directory, 0o711).is_ok() => {
                let socket = bind_path(&path, launch)?;
                (path.display().to_string(), socket)
            }
            Some(_) | None => {
                let name = self.name(launch);
                (format!("@{name}"), UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?)
            }
        };
        socket.set_nonblocking(true)?;
        setsockopt(&socket, PassCred, &true)?;
        self.stash.put(&address, &socket);
        Ok((address, socket))
    }

    /// The path that the socket of a program should have.
    fn path(&self, launch: &LaunchSpec) -> Option<PathBuf> {
        let has_root = launch.sandbox.as_ref().is_some_and(|sandbox| sandbox.chroot.is_some());
        let path = self.directory.join(digest(&self.journal, &launch.name));
        (!has_root && path.as_os_str().len() <= PATH_MAX).then_some(path)
    }

    fn name(&self, launch: &LaunchSpec) -> String {
        format!("gaggled/{}", digest(&self.journal, &launch.name))
    }

    /// Whether a socket that was kept is still the one that programs reach at this address.
    fn is_current(&self, address: &str, launch: &LaunchSpec) -> bool {
        if let Some(name) = address.strip_prefix('@') {
            return name == self.name(launch);
        }
        let found = std::fs::symlink_metadata(address);
        self.path(launch).is_some_and(|path| path == Path::new(address))
            && found.is_ok_and(|found| found.file_type().is_socket() && found.uid() == owner(launch))
    }
}

/// The owner of a program's socket, who may send to it: its user. If that is root anyone may, because the program may
/// change its user before it sends.
fn owner(launch: &LaunchSpec) -> u32 {
    let identity = launch.sandbox.as_ref().and_then(|sandbox| sandbox.identity.as_ref());
    identity.map_or_else(|| geteuid().as_raw(), |identity| identity.uid)
}

/// Binds a socket under another name and renames it, so that a program that sends meanwhile always finds one.
fn bind_path(path: &Path, launch: &LaunchSpec) -> io::Result<UnixDatagram> {
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixDatagram::bind(&new)?;
    let owner = owner(launch);
    chown(&new, Some(owner), None)?;
    std::fs::set_permissions(&new, Permissions::from_mode(if owner == 0 { 0o666 } else { 0o600 }))?;
    std::fs::rename(&new, path)?;
    Ok(socket)
}

/// A name that has the same length for every program.
fn digest(journal: &str, program: &str) -> String {
    let digest = Sha256::new().chain_update(journal).chain_update("\0").chain_update(program).finalize();
    format!("{:032x}", digest.first_chunk().map_or(0, |first| u128::from_be_bytes(*first)))
}

/// The notify sockets that exist when gaggled begins.
pub(crate) struct Sockets(Vec<(ProgramId, UnixDatagram)>);

impl Sockets {
    /// Takes the sockets that were kept, and makes those that are missing. One that cannot be made is tried again when its
    /// program is started.
    pub(crate) fn bind(
        specs: &IdVec<ProgramId, LaunchSpec>,
        journal: &str,
        directory: PathBuf,
        stash: Arc<Stash>,
    ) -> (Self, Addresses) {
        let mut kept = stash.take();
        let binder = Binder { journal: journal.to_owned(), directory, stash };
        let (mut sockets, mut known) = (Vec::new(), BTreeMap::new());
        for (program, launch) in specs.iter().filter(|(_, launch)| speaks(launch)) {
            let current = kept.keys().find(|address| binder.is_current(address, launch)).cloned();
            let inherited = current.and_then(|address| kept.remove_entry(&address));
            let bound = match inherited {
                Some((address, socket)) => {
                    binder.stash.put(&address, &socket);
                    Ok((address, UnixDatagram::from(socket)))
                }
                None => binder.bind(launch),
            };
            if let Ok((address, socket)) = bound {
                known.insert(program, address);
                sockets.push((program, socket));
            }
        }
        (Self(sockets), Addresses { known, binder })
    }

    /// Listens at all of them.
    pub(crate) fn listen(self, shared: &Arc<ProcessTracker>) -> BTreeMap<ProgramId, Rc<NotifyReader>> {
        let ear = |(program, socket)| Some((program, NotifyReader::listen(program, socket, shared).ok()?));
        self.0.into_iter().filter_map(ear).collect()
    }
}

/// A message, and the process and user that sent it.
struct Message {
    pid: i32,
    uid: u32,
    text: String,
}

fn receive(socket: &impl AsRawFd) -> io::Result<Message> {
    let mut bytes = [0; DATAGRAM_MAX];
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

/// The shortest interval between reports that a program is alive, however often it sends one.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Listens to one program.
pub(crate) struct NotifyReader {
    program: ProgramId,
    socket: tokio::net::UnixDatagram,
    shared: Arc<ProcessTracker>,
    heard: RefCell<NotifyState>,
}

/// What a program has reported so far.
#[derive(Default)]
struct NotifyState {
    ready: Option<InstanceId>,
    alive: Option<Instant>,
}

impl NotifyReader {
    /// Listens at a socket from now on.
    pub(crate) fn listen(
        program: ProgramId,
        socket: UnixDatagram,
        shared: &Arc<ProcessTracker>,
    ) -> io::Result<Rc<Self>> {
        let socket = tokio::net::UnixDatagram::from_std(socket)?;
        let ear = Rc::new(Self { program, socket, shared: shared.clone(), heard: RefCell::default() });
        let listening = ear.clone();
        tokio::task::spawn_local(async move {
            while listening.socket.readable().await.is_ok() {
                listening.hear();
                tokio::task::yield_now().await;
            }
        });
        Ok(ear)
    }

    /// Reads the queued messages, up to a limit. After a handover they are left to the next daemon.
    pub(crate) fn hear(&self) {
        for _ in 0..DATAGRAMS_PER_TURN {
            if self.shared.is_handed_over() {
                return;
            }
            let received = self.socket.try_io(Interest::READABLE, || receive(&self.socket));
            match received {
                Ok(message) => self.understand(&message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A message that is malformed has still been removed from the queue.
                Err(_) => {}
            }
        }
    }

    fn understand(&self, message: &Message) {
        let Self { program, shared, .. } = self;
        let Some(instance) = shared.authorised_sender(*program, message.pid, message.uid) else { return };
        let mut heard = self.heard.borrow_mut();
        let says = |what: &str| message.text.lines().any(|line| line.trim() == what);
        if says("READY=1") && heard.ready != Some(instance) {
            heard.ready = Some(instance);
            shared.tell(*program, instance, HostEvent::Ready);
        }
        if says("WATCHDOG=1") && heard.alive.is_none_or(|last| last.elapsed() >= MIN_INTERVAL) {
            heard.alive = Some(Instant::now());
            shared.tell(*program, instance, HostEvent::WatchdogPing);
        }
    }
}
