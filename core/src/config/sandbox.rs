//! As whom a program runs, and within which limits: what the kernel holds it to.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the kernel holds a program to. Whatever of it cannot be had, the program is not started without it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// As whom it runs, if not as gaggled itself.
    pub identity: Option<Credentials>,
    /// The directory that is the root of all its paths.
    pub chroot: Option<String>,
    /// Which rights new files do not get.
    pub umask: Option<Umask>,
    /// How readily it gives way to others, from -20 to 19.
    pub nice: Option<i8>,
    /// How soon the kernel takes it when memory runs out, from -1000 to 1000.
    pub oom_score_adj: Option<i16>,
    /// Resource limits (setrlimit).
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// The capabilities that it keeps, a bit for each by its number; what its user has if there is none.
    pub capabilities: Option<u64>,
    /// Whether no command that it executes gains rights.
    pub no_new_privs: bool,
}

/// The cgroup that each run of a program has to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The directory in which they are made.
    pub parent: String,
    /// What is written to which file of it, before anything runs in it.
    pub settings: Vec<(String, String)>,
}

impl Cgroup {
    /// The controller that a setting is for, such as `memory` for `memory.max`, if there may be such a setting.
    pub fn controller(setting: &str) -> Option<&str> {
        let usable = |letter: char| letter.is_ascii_alphanumeric() || "._".contains(letter);
        let (controller, file) = setting.split_once('.').filter(|_| setting.chars().all(usable))?;
        // Those of cgroups themselves are no limits, and gaggled's to use.
        let is_own = controller == "cgroup";
        // These are no settings but orders, and forgotten when they have been given.
        let passes = ["pressure", "reclaim"].contains(&file);
        (!controller.is_empty() && !file.is_empty() && !is_own && !passes).then_some(controller)
    }
}

/// The numbers of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// The rights that new files do not get. In a configuration it is a text of octal digits: `"027"`.
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

/// Something of which a process may have only so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Addresses, in bytes.
    As,
    /// The size of a core, in bytes.
    Core,
    /// Time of a processor, in seconds.
    Cpu,
    /// Data, in bytes.
    Data,
    /// The size of a file, in bytes.
    Fsize,
    /// Locked memory, in bytes.
    Memlock,
    /// Message queues, in bytes.
    Msgqueue,
    /// How far it may go against others: 20 less the lowest niceness.
    Nice,
    /// Descriptors.
    Nofile,
    /// Processes of its user.
    Nproc,
    /// Resident memory, in bytes; the kernel does not keep it.
    Rss,
    /// The highest real-time priority.
    Rtprio,
    /// Time of a processor without a pause at a real-time priority, in microseconds.
    Rttime,
    /// Signals that wait.
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

/// How much a process may have of a resource: what it has, and how far it may raise that itself.
///
/// In a configuration it is a number for both, `"unlimited"`, or a text with both: `"1024:4096"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// What it has.
    pub soft: u64,
    /// How far it may raise that.
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
