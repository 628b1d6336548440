//! Calls for which the `nng` crate has no safe interface, and a reference that makes the linker keep the C library.

#![expect(unsafe_code, reason = "the peer's user id is an option that the crate does not offer")]

use std::sync::Once;

use nng::{Pipe, Protocol, Socket};
use nng_c_sys::nng_init_parameter;

/// The crate that carries the C library must be named somewhere, or the linker leaves it out.
#[used]
static KEEP: unsafe extern "C" fn() -> *const core::ffi::c_char = nng_c_sys::nng_version;

/// The threads of the C library, by the numbers that `nng.h` gives to these parameters: for tasks, of which it wants at
/// least two, for timeouts, for sockets and for names. By default it makes up to ten for each core.
const THREADS: [(nng_init_parameter, u64); 4] = [(1, 2), (2, 1), (3, 1), (4, 1)];

/// Makes a socket. The first one makes the threads of the library.
pub(crate) fn socket(protocol: Protocol) -> nng::Result<Socket> {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        for (parameter, threads) in THREADS {
            // SAFETY: the library is not initialised before the first socket, and takes any number.
            unsafe { nng_c_sys::nng_init_set_parameter(parameter, threads) };
        }
    });
    Socket::new(protocol)
}

/// The peer of a local socket, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalPeer {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The process.
    pub pid: u32,
}

/// The peer of a connection, if it is on a local socket.
pub(crate) fn local_peer(pipe: Pipe) -> Option<LocalPeer> {
    let (uid, gid) = (option(pipe, c"ipc:peer-uid")?, option(pipe, c"ipc:peer-gid")?);
    Some(LocalPeer { uid, gid, pid: option(pipe, c"ipc:peer-pid").unwrap_or(0) })
}

/// What identifies a connection of a socket.
pub(crate) fn pipe_id(pipe: Pipe) -> i32 {
    // SAFETY: only the value of the handle is read.
    unsafe { nng::ffi::nng_pipe_id(pipe.nng_pipe()) }
}

/// Closes a connection. The crate's own function panics if the peer has just closed it.
pub(crate) fn close(pipe: Pipe) {
    // SAFETY: for a pipe that is closed already the call only returns an error, which is ignored.
    unsafe { nng::ffi::nng_pipe_close(pipe.nng_pipe()) };
}

fn option(pipe: Pipe, name: &core::ffi::CStr) -> Option<u32> {
    let mut value = 0_u64;
    // SAFETY: the name ends with NUL, the value is a local, and for a closed pipe the call returns an error.
    let failed = unsafe { nng::ffi::nng_pipe_get_uint64(pipe.nng_pipe(), name.as_ptr(), &raw mut value) };
    if failed == 0 { u32::try_from(value).ok() } else { None }
}
