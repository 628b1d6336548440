//! Which urls may be used, and where the default ones are.
//!
//! Local sockets are the rule: their directory decides who may connect, and the kernel reports the identity of the
//! peer. Plain tcp does not identify its peer, so a url that other machines can reach is refused, unless the
//! configuration lists it as `insecure`; through a url of this machine alone, peers may only query the state.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// The longest path of a local socket.
const PATH_MAX: usize = 107;

/// Why a url cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UrlError {
    /// Its scheme is not supported.
    #[error("url \"{0}\" is not understood: write ipc:///absolute/path, or tcp://127.0.0.1:PORT")]
    Unknown(String),
    /// Its path is not absolute.
    #[error("url \"{0}\" has no absolute path: write ipc:///absolute/path")]
    Relative(String),
    /// Its path is too long for a socket.
    #[error("url \"{url}\" has a path of {length} bytes, a local socket can have {PATH_MAX}: use a shorter one")]
    TooLong {
        /// The url.
        url: String,
        /// The length of its path.
        length: usize,
    },
    /// Every host on the network could connect.
    #[error(
        "url \"{0}\" can be reached from other machines, and nothing protects it: use ipc:///path or tcp://127.0.0.1:PORT, \
         or add it to gaggled.insecure if you know who can reach it"
    )]
    Exposed(String),
    /// It has no port, or none that is a number.
    #[error("url \"{0}\" has no port: write tcp://127.0.0.1:PORT")]
    NoPort(String),
    /// The path exists, and is not a socket.
    #[error("{path} is {what}, not a socket: remove it, or use another path")]
    NotASocket {
        /// The path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The directory of the socket does not exist, or is not safe.
    #[error("{path} {why}")]
    Directory {
        /// The path.
        path: String,
        /// What is wrong, and the cure.
        why: String,
    },
    /// There is no default place.
    #[error(
        "XDG_RUNTIME_DIR is not set, so there is no default place for sockets: set it, or give eventurl and controlurl"
    )]
    NoDefault,
}

/// A url that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// A local socket.
    Ipc(PathBuf),
    /// A tcp port.
    Tcp {
        /// The url.
        text: String,
        /// Whether its peers may do everything although their identity is not known.
        trusted: bool,
    },
}

impl Url {
    /// Reads a url, given those that the configuration lists as insecure.
    pub fn parse(text: &str, insecure: &[String]) -> Result<Self, UrlError> {
        let trusted = insecure.iter().any(|url| url == text);
        if let Some(path) = text.strip_prefix("ipc://") {
            if !path.starts_with('/') {
                return Err(UrlError::Relative(text.to_owned()));
            }
            if path.len() > PATH_MAX {
                return Err(UrlError::TooLong { url: text.to_owned(), length: path.len() });
            }
            return Ok(Self::Ipc(path.into()));
        }
        let Some(address) = text.strip_prefix("tcp://") else { return Err(UrlError::Unknown(text.to_owned())) };
        let (host, port) = address.rsplit_once(':').ok_or_else(|| UrlError::NoPort(text.to_owned()))?;
        if port.parse::<u16>().is_err() {
            return Err(UrlError::NoPort(text.to_owned()));
        }
        let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        let local = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        if local || trusted {
            Ok(Self::Tcp { text: text.to_owned(), trusted })
        } else {
            Err(UrlError::Exposed(text.to_owned()))
        }
    }

    /// The url as nng takes it.
    pub fn text(&self) -> String {
        match self {
            Self::Ipc(path) => format!("ipc://{}", path.display()),
            Self::Tcp { text, .. } => text.clone(),
        }
    }

    /// Checks that a socket can be created safely: nng removes an existing file at its path.
    pub fn prepare(&self) -> Result<(), UrlError> {
        let Self::Ipc(path) = self else { return Ok(()) };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let wrong = |why: &str| UrlError::Directory { path: directory.display().to_string(), why: why.to_owned() };
        let metadata = fs::metadata(directory)
            .map_err(|error| wrong(&format!("cannot hold a socket ({error}): create it, or use another path")))?;
        if !metadata.is_dir() {
            return Err(wrong("is not a directory: use another path"));
        }
        let mode = metadata.permissions().mode();
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Err(wrong(
                "can be written by others, who could replace the socket: chmod go-w it, or use another path",
            ));
        }
        let own = nix::unistd::geteuid().as_raw();
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(wrong("belongs to another user, who could replace the socket: use another path"));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                let kind = there.file_type();
                let what = match () {
                    () if kind.is_symlink() => "a symbolic link",
                    () if kind.is_dir() => "a directory",
                    () if kind.is_fifo() => "a fifo",
                    () => "a file",
                };
                Err(UrlError::NotASocket { path: path.display().to_string(), what })
            }
            Ok(there) if there.uid() != own && own != 0 => Err(UrlError::Directory {
                path: path.display().to_string(),
                why: "is the socket of another user: use another path".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// The directory of the default urls: `/run/gaggled` for root, `$XDG_RUNTIME_DIR/gaggled` for others.
pub fn default_directory() -> Result<PathBuf, UrlError> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/run/gaggled".into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).ok_or(UrlError::NoDefault)?;
    Ok(PathBuf::from(runtime).join("gaggled"))
}

/// Makes the directory of the default urls, for its owner alone.
pub fn make_default_directory() -> Result<PathBuf, UrlError> {
    make_default_directory_for(false)
}

/// The same; with `others`, other users may enter the directory, but neither list nor change it.
pub fn make_default_directory_for(others: bool) -> Result<PathBuf, UrlError> {
    let directory = default_directory()?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|error| UrlError::Directory {
        path: directory.display().to_string(),
        why: format!("cannot be made ({error}): make it, or give eventurl and controlurl"),
    })?;
    // Further permissions that an operator has granted are kept.
    if let Some(mode) = fs::metadata(&directory).ok().map(|found| found.mode() & 0o777).filter(|_| others) {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(mode | 0o011));
    }
    Ok(directory)
}

/// The default url of the events.
pub fn default_eventurl(directory: &Path) -> String {
    format!("ipc://{}/events.ipc", directory.display())
}

/// The default url of the control channel.
pub fn default_controlurl(directory: &Path) -> String {
    format!("ipc://{}/control.ipc", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_local_is_taken_without_being_listed() {
        let none: [String; 0] = [];
        for good in ["ipc:///run/x", "tcp://127.0.0.1:5000", "tcp://[::1]:5000", "tcp://localhost:1"] {
            assert!(Url::parse(good, &none).is_ok(), "{good}");
        }
        for exposed in ["tcp://*:5000", "tcp://192.0.2.1:5000", "tcp://[::]:5000", "tcp://example.com:80"] {
            assert_eq!(Url::parse(exposed, &none), Err(UrlError::Exposed(exposed.into())), "{exposed}");
            assert!(Url::parse(exposed, &[exposed.to_owned()]).is_ok(), "{exposed} listed");
        }
        for wrong in [
            "",
            "notaurl",
            "abstract://x",
            "inproc://x",
            "ipc://relative",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:x",
            "ws://x:1",
        ] {
            assert!(Url::parse(wrong, &none).is_err(), "{wrong}");
        }
        let long = format!("ipc:///{}", "x".repeat(200));
        assert!(matches!(Url::parse(&long, &none), Err(UrlError::TooLong { .. })));
    }
}
