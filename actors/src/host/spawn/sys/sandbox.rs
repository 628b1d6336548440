//! The system calls by which a child applies the restrictions of its program to itself.
//!
//! They are made directly, because the C library would apply some of them to every thread of the daemon: a child that
//! shares the memory of its parent must change only itself.

use std::{
    ffi::{CString, c_char, c_int, c_long},
    ptr,
};

use gaggled_core::{
    config::sandbox::{Credentials, Resource, Rlimit, Sandbox},
    process::SpawnStage,
};

/// The restrictions of a child, prepared before it is created.
#[derive(Debug, Default)]
pub struct PreparedSandbox {
    limits: Vec<(c_int, [u64; 2])>,
    nice: Option<c_int>,
    /// What is written to `/proc/self/oom_score_adj`.
    oom_score_adj: Option<CString>,
    umask: Option<libc::mode_t>,
    root: Option<CString>,
    identity: Option<Credentials>,
    capabilities: Option<u64>,
    no_new_privs: bool,
}

/// The largest number of capabilities that a kernel can have.
const CAPABILITIES: c_long = 64;

/// The third version of the kernel's structures for capabilities.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl PreparedSandbox {
    /// Prepares the restrictions; `None` if a text holds a null byte. `descriptors` is the limit that gaggled had
    /// before it raised it.
    pub fn new(sandbox: &Sandbox, descriptors: Option<Rlimit>) -> Option<Self> {
        let has_own = sandbox.rlimits.iter().any(|(resource, _)| *resource == Resource::Nofile);
        let given = descriptors.filter(|_| !has_own).map(|limit| (number(Resource::Nofile), pair(limit)));
        let limits = sandbox.rlimits.iter().map(|(resource, limit)| (number(*resource), pair(*limit)));
        Some(Self {
            limits: limits.chain(given).collect(),
            nice: sandbox.nice.map(c_int::from),
            oom_score_adj: sandbox.oom_score_adj.map(|score| CString::new(score.to_string())).transpose().ok()?,
            umask: sandbox.umask.map(|umask| umask.0.into()),
            root: sandbox.chroot.as_deref().map(CString::new).transpose().ok()?,
            identity: sandbox.identity.clone(),
            capabilities: sandbox.capabilities,
            no_new_privs: sandbox.no_new_privs,
        })
    }

    /// Applies the restrictions, in the child. If a step fails it is returned, and the child must not go on.
    ///
    /// # Safety
    /// Only in a child that was made with `vfork`, before it executes its command.
    pub(crate) unsafe fn apply(&self) -> Result<(), SpawnStage> {
        let (user, limits) = (SpawnStage::User, SpawnStage::Limits);
        // SAFETY: system calls on numbers, on locals, and on texts that end with a null byte.
        unsafe {
            for (resource, limit) in &self.limits {
                let none = ptr::null_mut::<u64>();
                done(libc::syscall(libc::SYS_prlimit64, 0, *resource, limit.as_ptr(), none), limits)?;
            }
            if let Some(nice) = self.nice {
                done(libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice), limits)?;
            }
            if let Some(score) = &self.oom_score_adj {
                write_score(score)?;
            }
            if let Some(umask) = self.umask {
                libc::umask(umask);
            }
            if let Some(root) = &self.root {
                done(libc::syscall(libc::SYS_chroot, root.as_ptr()), SpawnStage::Chroot)?;
                done(libc::syscall(libc::SYS_chdir, c"/".as_ptr()), SpawnStage::Chroot)?;
            }
            if let Some(kept) = self.capabilities {
                drop_from_bounds(kept)?;
                done(libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0), user)?;
            }
            if let Some(Credentials { uid, gid, groups }) = &self.identity {
                done(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), user)?;
                done(libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid), user)?;
                done(libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid), user)?;
            }
            match (self.capabilities, &self.identity) {
                (Some(kept), _) => keep(kept)?,
                // A gaggled that is not root may have capabilities that its programs would keep.
                (None, Some(identity)) if identity.uid != 0 => keep(0)?,
                (None, _) => {}
            }
            if self.no_new_privs {
                done(libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), user)?;
            }
        }
        Ok(())
    }
}

fn done(result: c_long, stage: SpawnStage) -> Result<(), SpawnStage> {
    if result < 0 { Err(stage) } else { Ok(()) }
}

/// # Safety
/// As for [`PreparedSandbox::apply`].
unsafe fn write_score(score: &CString) -> Result<(), SpawnStage> {
    let stage = SpawnStage::Limits;
    let path: *const c_char = c"/proc/self/oom_score_adj".as_ptr();
    let bytes = score.as_bytes();
    // SAFETY: the path ends with a null byte, and the length is that of the bytes.
    unsafe {
        let file = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC, 0);
        done(file, stage)?;
        let written = libc::syscall(libc::SYS_write, file, bytes.as_ptr(), bytes.len());
        // The error of the write is the one to report, if there is one.
        if written >= 0 {
            libc::syscall(libc::SYS_close, file);
        }
        done(written, stage)
    }
}

/// Drops all but these capabilities from the bounding set, so that no command can gain them.
///
/// # Safety
/// As for [`PreparedSandbox::apply`].
unsafe fn drop_from_bounds(kept: u64) -> Result<(), SpawnStage> {
    for capability in 0..CAPABILITIES {
        // SAFETY: only numbers are passed.
        unsafe {
            // Those that this kernel does not know need not be dropped.
            let known = libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_READ, capability, 0, 0, 0) >= 0;
            if known && kept >> capability & 1 == 0 {
                done(libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0), SpawnStage::User)?;
            }
        }
    }
    Ok(())
}

/// Sets exactly these capabilities, so that they are kept when the command is executed.
///
/// # Safety
/// As for [`PreparedSandbox::apply`].
#[expect(clippy::cast_possible_truncation, reason = "the kernel takes them in two halves")]
unsafe fn keep(kept: u64) -> Result<(), SpawnStage> {
    let stage = SpawnStage::User;
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let half = |bits: u32| CapabilityData { effective: bits, permitted: bits, inheritable: bits };
    let data = [half(kept as u32), half((kept >> 32) as u32)];
    // SAFETY: both structures are as this version of the call has them; the rest are numbers.
    unsafe {
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
        done(libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, clear, 0, 0, 0), stage)?;
        done(libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()), stage)?;
        for capability in (0..CAPABILITIES).filter(|capability| kept >> capability & 1 == 1) {
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            done(libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, raise, capability, 0, 0), stage)?;
        }
    }
    Ok(())
}

fn pair(limit: Rlimit) -> [u64; 2] {
    [limit.soft, limit.hard]
}

fn number(resource: Resource) -> c_int {
    let number = match resource {
        Resource::As => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
        Resource::Nice => libc::RLIMIT_NICE,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Rss => libc::RLIMIT_RSS,
        Resource::Rtprio => libc::RLIMIT_RTPRIO,
        Resource::Rttime => libc::RLIMIT_RTTIME,
        Resource::Sigpending => libc::RLIMIT_SIGPENDING,
        Resource::Stack => libc::RLIMIT_STACK,
    };
    number.cast_signed()
}
