//! The user that a program runs as, and the limits that the kernel enforces on it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the kernel enforces on a program. If any of it cannot be set, the program is not started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The user and groups that it runs as, if not those of gaggled itself.
    pub identity: Option<Credentials>,
    /// The directory that is the root of all its paths.
    pub chroot: Option<String>,
    /// The permissions that new files do not get.
    pub umask: Option<Umask>,
    /// Its niceness, from -20 (highest priority) to 19 (lowest).
    pub nice: Option<i8>,
    /// How soon the kernel kills it when memory runs out, from -1000 (never) to 1000 (first).
    pub oom_score_adj: Option<i16>,
    /// Resource limits (setrlimit).
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// The capabilities that it keeps, as a bit mask; if it is not given, those of its user.
    pub capabilities: Option<u64>,
    /// Whether commands that it executes cannot gain privileges.
    pub no_new_privs: bool,
}

/// The cgroup that each run of a program has to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The directory in which they are made.
    pub parent: String,
    /// The files of the cgroup and the values that are written to them before a process runs in it.
    pub settings: Vec<(String, String)>,
}

impl Cgroup {
    /// The controller that a setting is for, such as `memory` for `memory.max`, if there may be such a setting.
    pub fn controller(setting: &str) -> Option<&str> {
        let usable = |letter: char| letter.is_ascii_alphanumeric() || "._".contains(letter);
        let (controller, file) = setting.split_once('.').filter(|_| setting.chars().all(usable))?;
        // Files of the controller `cgroup` are not limits, and gaggled itself uses them.
        let is_own = controller == "cgroup";
        // Writing to these triggers an action, and sets nothing.
        let passes = ["pressure", "reclaim"].contains(&file);
        (!controller.is_empty() && !file.is_empty() && !is_own && !passes).then_some(controller)
    }
}

/// The numeric ids of a user and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// The permissions that new files do not get. In a configuration it is a text of octal digits: `"027"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Umask(pub u16);

impl Serialize for Umask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:03o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Umask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u16::from_str_radix(&text, 8).ok().filter(|number| *number <= 0o777);
        number.map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "umask {text:?} is not understood: write octal digits in quotes, such as \"027\""
            ))
        })
    }
}

/// A resource with a limit (`RLIMIT_...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Address space, in bytes.
    As,
    /// The size of a core, in bytes.
    Core,
    /// Processor time, in seconds.
    Cpu,
    /// The data segment, in bytes.
    Data,
    /// The size of a file, in bytes.
    Fsize,
    /// Locked memory, in bytes.
    Memlock,
    /// Message queues, in bytes.
    Msgqueue,
    /// How far it may lower its niceness: 20 minus the lowest value.
    Nice,
    /// Descriptors.
    Nofile,
    /// Processes of its user.
    Nproc,
    /// Resident memory, in bytes; the kernel does not enforce it.
    Rss,
    /// The highest real-time priority.
    Rtprio,
    /// Processor time at a real-time priority without a blocking system call, in microseconds.
    Rttime,
    /// Pending signals.
    Sigpending,
    /// The stack, in bytes.
    Stack,
}

impl Resource {
    /// All of them, by their names in a configuration.
    pub const ALL: [(&'static str, Self); 15] = [
        ("as", Self::As),
        ("core", Self::Core),
        ("cpu", Self::Cpu),
        ("data", Self::Data),
        ("fsize", Self::Fsize),
        ("memlock", Self::Memlock),
        ("msgqueue", Self::Msgqueue),
        ("nice", Self::Nice),
        ("nofile", Self::Nofile),
        ("nproc", Self::Nproc),
        ("rss", Self::Rss),
        ("rtprio", Self::Rtprio),
        ("rttime", Self::Rttime),
        ("sigpending", Self::Sigpending),
        ("stack", Self::Stack),
    ];

    /// The resource of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
    }
}

/// The limit of a resource: the limit in force, and how far the process itself may raise it.
///
/// In a configuration it is a number for both, `"unlimited"`, or a text with both: `"1024:4096"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// The limit in force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

impl Rlimit {
    /// No limit.
    pub const UNLIMITED: u64 = u64::MAX;

    /// Reads `unlimited`, a number, or two of these with a colon between them.
    fn parse(text: &str) -> Option<Self> {
        let one = |text: &str| match text.trim() {
            "unlimited" => Some(Self::UNLIMITED),
            digits => digits.parse().ok(),
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let limit = Self { soft: one(soft)?, hard: one(hard)? };
        (limit.soft <= limit.hard).then_some(limit)
    }
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |value: u64| if value == Self::UNLIMITED { "unlimited".to_owned() } else { value.to_string() };
        if self.soft == self.hard {
            f.write_str(&one(self.soft))
        } else {
            write!(f, "{}:{}", one(self.soft), one(self.hard))
        }
    }
}

impl Serialize for Rlimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rlimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Rlimit;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a limit: a number, \"unlimited\", or two of these as in \"1024:4096\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Rlimit, E> {
                Ok(Rlimit { soft: number, hard: number })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rlimit, E> {
                Rlimit::parse(text).ok_or_else(|| {
                    E::custom(format!(
                        "limit {text:?} is not understood: write a number, \"unlimited\", or soft:hard as in \"1024:4096\""
                    ))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_cgroup_is_for_a_controller() {
        assert_eq!(Cgroup::controller("memory.swap.max"), Some("memory"));
        for none in [
            "memory.pressure",
            "memory.reclaim",
            "memory",
            "memory.",
            ".max",
            "cgroup.procs",
            "../memory.max",
            "memory.max/x",
            "",
        ] {
            assert_eq!(Cgroup::controller(none), None, "{none}");
        }
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        for text in ["1024", "unlimited", "1024:4096", "0:unlimited"] {
            assert_eq!(Rlimit::parse(text).map(|limit| limit.to_string()).as_deref(), Some(text));
        }
        for text in ["", "-1", "many", "4096:1024", "unlimited:5", "1:2:3", "1k"] {
            assert_eq!(Rlimit::parse(text), None, "{text}");
        }
    }
}
