//! Sockets that outlive the daemon: the kernel keeps them in the queue of a pair of sockets whose ends the subreaper holds.
//!
//! A descriptor that was sent and not received is neither closed nor lost when its sender dies. So the daemon sends
//! each notify socket to itself, and the next daemon receives them. The subreaper only holds the ends open.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// The pair of sockets, or nothing if there is no subreaper that holds one.
#[derive(Debug, Default)]
pub struct Stash(Option<Ends>);

#[derive(Debug)]
struct Ends {
    into: OwnedFd,
    out_of: OwnedFd,
}

/// The longest name, in bytes.
const NAME_MAX: usize = 128;

impl Stash {
    /// The stash with these ends.
    pub fn new(into: OwnedFd, out_of: OwnedFd) -> Self {
        Self(Some(Ends { into, out_of }))
    }

    /// Duplicates of its ends; `None` if there is no stash.
    pub fn try_clone(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let Some(Ends { into, out_of }) = &self.0 else { return Ok(None) };
        Ok(Some((into.try_clone()?, out_of.try_clone()?)))
    }

    /// Keeps a descriptor under a name, if there is room for it.
    pub(crate) fn put(&self, name: &str, descriptor: &impl AsFd) {
        let Some(ends) = self.0.as_ref().filter(|_| name.len() <= NAME_MAX) else { return };
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendmsg(&ends.into, &[IoSlice::new(name.as_bytes())], &mut rights, flags);
    }

    /// Takes everything that is kept, by name.
    pub(crate) fn take(&self) -> BTreeMap<String, OwnedFd> {
        let mut kept = BTreeMap::new();
        let Some(ends) = &self.0 else { return kept };
        loop {
            let mut name = [0; NAME_MAX];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let Ok(received) = recvmsg(&ends.out_of, &mut [IoSliceMut::new(&mut name)], &mut rights, flags) else {
                return kept;
            };
            let name = String::from_utf8_lossy(name.get(..received.bytes).unwrap_or_default()).into_owned();
            for message in rights.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    kept.extend(descriptors.map(|descriptor| (name.clone(), descriptor)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_socket_that_was_kept_has_what_was_sent_to_it_meanwhile() {
        let (into, out_of) = UnixDatagram::pair().expect("a pair");
        let stash = Stash::new(into.into(), out_of.into());
        let (sender, receiver) = UnixDatagram::pair().expect("a pair");
        stash.put("web", &receiver);
        drop(receiver);
        sender.send(b"READY=1").expect("it can be sent");
        let mut kept = stash.take();
        let receiver = UnixDatagram::from(kept.remove("web").expect("it was kept"));
        let mut bytes = [0; 16];
        assert_eq!(receiver.recv(&mut bytes).expect("a message"), 7);
        assert!(stash.take().is_empty(), "it is taken once");
    }
}
