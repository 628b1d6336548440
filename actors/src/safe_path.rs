//! Opens, makes, renames and removes the files of a program: its log, the rotated logs beside it, its pid file.
//!
//! gaggled may run as root, and the directory of such a file may belong to the program's user, who can replace any part
//! of the path at any moment. So a path is walked one component at a time, each opened relative to the one before:
//!
//! - a symbolic link is followed only if root or gaggled's own user owns it and no other user can write to the directory
//!   that it is in (systemd calls a path that breaks such a rule an unsafe path transition);
//! - from then on the directory is known by its descriptor, and files in it by one name without a slash;
//! - where others can write to the directory, only regular files with a single name are opened, so that neither a fifo,
//!   nor a device, nor a hard link to another's file is taken for the program's;
//! - a file is first looked at through a descriptor that cannot read or write it, because the mere opening of a device
//!   may have an effect, and nothing is ever waited for.
//!
//! No other code in gaggled opens a path of a program; a test of the sources enforces that.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, open, openat, readlinkat, renameat, renameat2},
    sys::{
        stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
    unistd::{Gid, UnlinkatFlags, fchown, geteuid, unlinkat},
};

/// How many symbolic links are followed at most, as in the kernel.
const LINKS_MAX: usize = 40;

/// A directory that a file of a program is in, known by its descriptor.
#[derive(Debug)]
pub struct SafeDirectory {
    descriptor: OwnedFd,
    trust: Trust,
}

/// Who can change the entries of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Only root and gaggled's user.
    Own,
    /// Everyone can add entries, and change only their own (the sticky bit).
    Sticky,
    /// Others, too.
    Others,
}

/// A file of a program: a name in a directory. The file need not exist.
#[derive(Debug)]
pub struct SafePath {
    /// The directory.
    pub directory: SafeDirectory,
    /// The name in that directory.
    pub name: OsString,
    /// Whether it is a link of `/proc` that only the kernel can follow, such as `/proc/self/fd/1`.
    is_magic: bool,
}

impl SafePath {
    /// Walks to a file.
    ///
    /// # Errors
    /// `ELOOP` if the path leads through a symbolic link that another user could have made, `EISDIR` if it names a
    /// directory by `..` or `/`, and whatever the kernel says of a directory on the way.
    pub fn find(path: &Path) -> io::Result<Self> {
        let start = if path.is_absolute() { Path::new("/") } else { Path::new(".") };
        let mut directory = SafeDirectory::open_start(start)?;
        let mut pending = reversed(path);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                directory = directory.child(&name)?;
                continue;
            }
            let is_last = pending.is_empty();
            let found = match directory.look(&name) {
                Ok(found) => found,
                Err(Errno::ENOENT) if is_last => return Ok(Self { directory, name, is_magic: false }),
                Err(errno) => return Err(errno.into()),
            };
            if kind(&found) != SFlag::S_IFLNK {
                if is_last {
                    return Ok(Self { directory, name, is_magic: false });
                }
                directory = directory.child(&name)?;
                continue;
            }
            links += 1;
            if links > LINKS_MAX || !directory.trusts(&found) {
                return Err(Errno::ELOOP.into());
            }
            if directory.is_of_proc() && name != "self" && name != "thread-self" {
                if is_last {
                    return Ok(Self { directory, name, is_magic: true });
                }
                directory = directory.magic_child(&name)?;
                continue;
            }
            let target = PathBuf::from(readlinkat(&directory.descriptor, &*name)?);
            if target.is_absolute() {
                directory = SafeDirectory::open_start(Path::new("/"))?;
            }
            pending.extend(reversed(&target));
        }
        Err(Errno::EISDIR.into())
    }

    /// Opens the file for appending, and makes it (mode 0640) if it does not exist. It is open with `O_NONBLOCK`.
    ///
    /// # Errors
    /// As [`SafeDirectory::read`], and `EACCES` for a file of another user in a directory such as `/tmp`.
    pub fn append(&self) -> io::Result<File> {
        let access = OFlag::O_WRONLY | OFlag::O_APPEND;
        if self.is_magic {
            return Ok(openat(&self.directory.descriptor, &*self.name, access | QUIET, Mode::empty())?.into());
        }
        loop {
            match self.directory.open(&self.name, access) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => match self.directory.make(&self.name, 0o640) {
                    // It has been made meanwhile, so it is looked at like any other.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => return made,
                },
                opened => return opened,
            }
        }
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// As [`SafeDirectory::read`].
    pub fn read(&self) -> io::Result<File> {
        self.directory.read(&self.name)
    }

    /// The name with something added to it, in the same directory.
    pub fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }
}

/// Does not block, acquires no controlling terminal, and is not inherited by programs.
const QUIET: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);
/// Finds the file without opening it.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl SafeDirectory {
    /// The directory that a path names, by the same rules as for files.
    ///
    /// # Errors
    /// As [`SafePath::find`], and `ENOTDIR`.
    pub fn find(path: &Path) -> io::Result<Self> {
        SafePath::find(&path.join("entry")).map(|found| found.directory)
    }

    fn open_start(path: &Path) -> io::Result<Self> {
        Self::of(open(path, LOOK | OFlag::O_DIRECTORY, Mode::empty())?)
    }

    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        let found = fstat(&descriptor)?;
        let mode = Mode::from_bits_truncate(found.st_mode);
        let trust = if !is_trusted(found.st_uid) {
            Trust::Others
        } else if !mode.intersects(Mode::S_IWGRP | Mode::S_IWOTH) {
            Trust::Own
        } else if mode.contains(Mode::S_ISVTX) {
            Trust::Sticky
        } else {
            Trust::Others
        };
        Ok(Self { descriptor, trust })
    }

    /// A directory in this one. Below a directory that others can change, no directory is trusted: they can replace it.
    fn child(&self, name: &OsStr) -> io::Result<Self> {
        let child = Self::of(openat(&self.descriptor, name, LOOK | OFlag::O_DIRECTORY, Mode::empty())?)?;
        let trust = if self.trust == Trust::Others { self.trust } else { child.trust };
        Ok(Self { trust, ..child })
    }

    fn magic_child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self::of(openat(&self.descriptor, name, flags, Mode::empty())?)
    }

    fn look(&self, name: &OsStr) -> Result<FileStat, Errno> {
        fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Whether only root or gaggled's user can have made an entry.
    fn trusts(&self, entry: &FileStat) -> bool {
        self.trust != Trust::Others && is_trusted(entry.st_uid)
    }

    fn is_of_proc(&self) -> bool {
        fstatfs(&self.descriptor).is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC)
    }

    /// Whether a user other than root and gaggled's own can replace it, or files in it.
    pub fn is_open_to_others(&self) -> bool {
        self.trust == Trust::Others
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file, `ELOOP` for a symbolic link, `EMLINK` for a file with several names in
    /// a directory that others can write to.
    pub fn read(&self, name: &OsStr) -> io::Result<File> {
        let file = self.open(name, OFlag::O_RDONLY)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::EINVAL.into()) }
    }

    fn open(&self, name: &OsStr, access: OFlag) -> io::Result<File> {
        let looked = openat(&self.descriptor, name, LOOK, Mode::empty())?;
        let found = fstat(&looked)?;
        match kind(&found) {
            SFlag::S_IFLNK => return Err(Errno::ELOOP.into()),
            SFlag::S_IFREG if self.trust == Trust::Own => {}
            SFlag::S_IFREG if found.st_nlink > 1 => return Err(Errno::EMLINK.into()),
            SFlag::S_IFREG => {
                let is_written = access.intersects(OFlag::O_WRONLY | OFlag::O_RDWR);
                if self.trust == Trust::Sticky && is_written && !is_trusted(found.st_uid) {
                    return Err(Errno::EACCES.into());
                }
            }
            _ if self.trusts(&found) => {}
            _ => return Err(Errno::EINVAL.into()),
        }
        reopen(&looked, access)
    }

    /// Makes a new regular file, open for writing.
    ///
    /// # Errors
    /// `EEXIST` if there is anything of that name, also a symbolic link.
    pub fn make(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | QUIET;
        Ok(openat(&self.descriptor, name, flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// Replaces an entry by a new regular file that only users who can read `like` can read.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` if another keeps making a file of that name.
    pub fn make_like(&self, name: &OsStr, like: &File) -> io::Result<File> {
        let found = fstat(like)?;
        self.remove(name)?;
        let file = self.make(name, 0o600)?;
        fchown(&file, None, Some(Gid::from_raw(found.st_gid)))?;
        fchmod(&file, Mode::from_bits_truncate(found.st_mode & 0o640))?;
        Ok(file)
    }

    /// Removes an entry that is not a directory; that there is none is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Gives an entry another name in the same directory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.descriptor, from, &self.descriptor, to)?)
    }

    /// Exchanges two entries in one step, where the file system can do that.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` where the file system cannot.
    pub fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        Ok(renameat2(&self.descriptor, one, &self.descriptor, other, RenameFlags::RENAME_EXCHANGE)?)
    }

    /// The size of an entry if it is a regular file.
    pub fn size(&self, name: &OsStr) -> Option<u64> {
        let found = self.look(name).ok().filter(|found| kind(found) == SFlag::S_IFREG)?;
        u64::try_from(found.st_size).ok()
    }

    /// A path by which inotify can watch exactly this directory.
    pub fn watchable(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }
}

impl AsFd for SafeDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Opens the file behind a descriptor again, for reading, if it is a regular file. The descriptor may be one of another
/// process, by its path in `/proc`.
///
/// # Errors
/// `EINVAL` for anything but a regular file.
pub fn reopen_regular(path: &Path) -> io::Result<File> {
    let looked = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    match kind(&fstat(&looked)?) {
        SFlag::S_IFREG => reopen(&looked, OFlag::O_RDONLY),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Opens the fifo that another process has open, for reading and writing; the mere opening of anything else may have an
/// effect.
///
/// # Errors
/// `EINVAL` for anything but a fifo.
pub fn reopen_fifo(path: &Path) -> io::Result<File> {
    let looked = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    match kind(&fstat(&looked)?) {
        SFlag::S_IFIFO => reopen(&looked, OFlag::O_RDWR),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Opens for reading the regular file that this descriptor writes.
///
/// # Errors
/// What the kernel says.
pub fn reopen_for_reading(file: &File) -> io::Result<File> {
    reopen(file, OFlag::O_RDONLY)
}

fn reopen(looked: &impl AsFd, access: OFlag) -> io::Result<File> {
    let path = CString::new(format!("/proc/self/fd/{}", looked.as_fd().as_raw_fd()))?;
    Ok(open(path.as_c_str(), access | QUIET, Mode::empty())?.into())
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// The components of a path, the first one last.
fn reversed(path: &Path) -> Vec<OsString> {
    let named = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    /// A directory that others can write to, as that of a program's user, and one that only gaggled can.
    fn directories() -> (TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().expect("a directory");
        let [open, own] = ["open", "own"].map(|name| root.path().join(name));
        fs::create_dir(&open).expect("a directory");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("a mode");
        fs::create_dir(&own).expect("a directory");
        (root, open, own)
    }

    #[test]
    fn a_link_is_followed_only_where_nobody_else_could_have_made_it() {
        let (_root, open, own) = directories();
        fs::create_dir(own.join("real")).expect("a directory");
        symlink(own.join("real"), own.join("link")).expect("a link");
        symlink(own.join("real"), open.join("link")).expect("a link");
        let mut file = SafePath::find(&own.join("link/log")).and_then(|path| path.append()).expect("a log");
        file.write_all(b"line\n").expect("it can be written");
        assert_eq!(fs::read(own.join("real/log")).expect("a log"), b"line\n");
        assert_eq!(errno(SafePath::find(&open.join("link/log"))), Some(libc::ELOOP));
        symlink(own.join("real/log"), open.join("log")).expect("a link");
        assert_eq!(errno(SafePath::find(&open.join("log"))), Some(libc::ELOOP));
        let dotted = own.join("link/../real/./log");
        assert!(SafePath::find(&dotted).and_then(|path| path.read()).is_ok());
        symlink("loop", own.join("loop")).expect("a link");
        assert_eq!(errno(SafePath::find(&own.join("loop"))), Some(libc::ELOOP));
        assert_eq!(errno(SafePath::find(Path::new("/"))), Some(libc::EISDIR));
    }

    #[test]
    fn only_regular_files_with_one_name_are_opened_where_others_can_write() {
        let (_root, open, own) = directories();
        mkfifo(&open.join("fifo"), Mode::S_IRWXU).expect("a fifo");
        let fifo = SafePath::find(&open.join("fifo")).expect("a path");
        assert_eq!(errno(fifo.append()), Some(libc::EINVAL), "and it is not waited for");
        assert_eq!(errno(fifo.read()), Some(libc::EINVAL));
        fs::write(own.join("secret"), "secret").expect("a file");
        fs::hard_link(own.join("secret"), open.join("hard")).expect("a link");
        let hard = SafePath::find(&open.join("hard")).expect("a path");
        assert_eq!(errno(hard.append()), Some(libc::EMLINK));
        assert_eq!(errno(hard.read()), Some(libc::EMLINK));
        let swapped = SafePath::find(&open.join("swapped")).expect("a path");
        symlink(own.join("secret"), open.join("swapped")).expect("a link");
        assert_eq!(errno(swapped.append()), Some(libc::ELOOP), "also if it was put there after the walk");
        assert_eq!(errno(swapped.directory.make(&swapped.name, 0o640)), Some(libc::EEXIST));
    }

    #[test]
    fn a_device_that_root_has_put_there_can_be_written_and_so_can_the_own_output() {
        let null = SafePath::find(Path::new("/dev/null")).expect("a path");
        assert_eq!(null.append().and_then(|mut null| null.write(b"x")).expect("it can be written"), 1);
        assert_eq!(errno(null.read()), Some(libc::EINVAL), "but there is no log to read");
        let output = SafePath::find(Path::new("/dev/stderr")).expect("a path");
        assert!(output.append().is_ok());
    }

    #[test]
    fn a_copy_can_be_read_by_nobody_who_cannot_read_the_original() {
        let (_root, open, _) = directories();
        let path = SafePath::find(&open.join("log")).expect("a path");
        let mut log = path.append().expect("a log");
        log.write_all(b"secret").expect("it can be written");
        log.set_permissions(fs::Permissions::from_mode(0o600)).expect("a mode");
        let copy = path.directory.make_like(&path.beside(".gz"), &log).expect("a copy");
        assert_eq!(copy.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        let mut text = String::new();
        reopen_for_reading(&log).and_then(|mut log| log.read_to_string(&mut text)).expect("it can be read");
        assert_eq!(text, "secret");
        assert_eq!(path.directory.size(&path.name), Some(6));
    }
}
