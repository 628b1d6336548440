//! Resolves the user, groups and capabilities of a program on this machine: names become numbers.

use std::{ffi::CString, fs, str::FromStr, sync::OnceLock};

use caps::{CapSet, Capability};
use gaggled_core::config::{
    ProgramConfig,
    sandbox::{Credentials, Resource, Sandbox},
};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist};

/// The restrictions of a program, and the variables for its user.
#[derive(Debug, Default)]
pub(super) struct ResolvedSandbox {
    pub sandbox: Sandbox,
    pub variables: Vec<(String, String)>,
}

/// A setting that cannot be applied here: its field, why not, and how to correct it.
#[derive(Debug)]
pub(super) struct SandboxError {
    pub field: &'static str,
    pub why: String,
    pub help: &'static str,
}

impl SandboxError {
    fn new(field: &'static str, why: String, help: &'static str) -> Self {
        Self { field, why, help }
    }
}

/// Resolves the restrictions of a program.
pub(super) fn resolve(program: &ProgramConfig) -> Result<ResolvedSandbox, SandboxError> {
    let (identity, variables) = identity(program)?;
    let rlimits = program.rlimits.iter().filter_map(|(name, limit)| Some((Resource::parse(name)?, *limit)));
    let sandbox = Sandbox {
        identity,
        chroot: program.chroot.clone(),
        umask: program.umask,
        nice: program.nice,
        oom_score_adj: program.oom_score_adj.or_else(unprotected),
        rlimits: rlimits.collect(),
        capabilities: capabilities(program)?,
        no_new_privs: program.no_new_privs,
    };
    allowed(&sandbox)?;
    Ok(ResolvedSandbox { sandbox, variables })
}

/// Refuses what the kernel would refuse when the program is started.
fn allowed(sandbox: &Sandbox) -> Result<(), SandboxError> {
    let refuse = |field, asks: String| Err(SandboxError::new(field, asks, "run gaggled as root, or remove the field"));
    if sandbox.chroot.is_some() && !may(Capability::CAP_SYS_CHROOT) {
        return refuse("chroot", "asks for another root, which gaggled may not change".to_owned());
    }
    if let Some(nice) = sandbox.nice
        && i32::from(nice) < rustix::process::getpriority_process(None).unwrap_or(0)
        && !may(Capability::CAP_SYS_NICE)
    {
        return refuse("nice", format!("asks for niceness {nice}, which is less than gaggled may give"));
    }
    if let Some(score) = sandbox.oom_score_adj
        && own_score().is_some_and(|own| score < own)
        && !may(Capability::CAP_SYS_RESOURCE)
    {
        return refuse("oom_score_adj", format!("asks for score {score}, which is less than gaggled may give"));
    }
    Ok(())
}

/// The score for programs if gaggled is protected from being killed for lack of memory: they must not inherit that.
fn unprotected() -> Option<i16> {
    own_score().filter(|score| *score < 0).map(|_| 0)
}

/// The OOM score of gaggled, which programs inherit.
fn own_score() -> Option<i16> {
    static OWN: OnceLock<Option<i16>> = OnceLock::new();
    *OWN.get_or_init(|| fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok())
}

fn capabilities(program: &ProgramConfig) -> Result<Option<u64>, SandboxError> {
    let Some(names) = &program.capabilities else { return Ok(None) };
    let mut kept = 0;
    for name in names {
        let whole = name.to_ascii_uppercase();
        let whole = if whole.starts_with("CAP_") { whole } else { format!("CAP_{whole}") };
        let capability = Capability::from_str(&whole).map_err(|_| {
            let why = format!("asks for capability \"{name}\", which is not known");
            SandboxError::new("capabilities", why, "write a name such as \"net_bind_service\"")
        })?;
        if !may(capability) {
            let why = format!("asks for capability \"{name}\", which gaggled itself does not have");
            return Err(SandboxError::new("capabilities", why, "run gaggled with it, or remove it"));
        }
        kept |= 1 << capability.index();
    }
    Ok(Some(kept))
}

fn may(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Permitted, capability).unwrap_or(false)
}

type Variables = Vec<(String, String)>;

fn identity(program: &ProgramConfig) -> Result<(Option<Credentials>, Variables), SandboxError> {
    if program.user.is_none() && program.supplementary_groups.is_none() {
        return Ok((None, Variables::new()));
    }
    let wanted = program.user.as_deref().map(user).transpose()?;
    let (uid, gid) = wanted.as_ref().map_or_else(|| (geteuid(), getegid()), |wanted| (wanted.uid, wanted.gid));
    let named = wanted.and_then(|wanted| wanted.entry);
    let groups = match &program.supplementary_groups {
        Some(groups) => groups.iter().map(|name| group(name, "supplementary_groups")).collect::<Result<_, _>>()?,
        None => named.as_ref().map_or_else(Vec::new, |user| groups_of(user, gid)),
    };
    let same = uid == geteuid() && gid == getegid();
    if !(may(Capability::CAP_SETUID) && may(Capability::CAP_SETGID)) {
        if same && program.supplementary_groups.is_none() {
            return Ok((None, Variables::new()));
        }
        let (field, what) = if same { ("supplementary_groups", "its groups") } else { ("user", "another user") };
        let why = format!("is to run with {what}, which gaggled may not do: it runs as user {}", geteuid());
        return Err(SandboxError::new(field, why, "run gaggled as root, or remove the field"));
    }
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    // A user without an entry gets defaults, and none of the variables of gaggled's user.
    let unknown = || {
        let name = uid.to_string();
        vec![("HOME", "/".to_owned()), ("LOGNAME", name.clone()), ("SHELL", "/bin/sh".to_owned()), ("USER", name)]
    };
    let unknown = || unknown().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let variables = match named {
        Some(user) => variables(&user),
        None if program.user.is_some() => unknown(),
        None => Variables::new(),
    };
    Ok((Some(Credentials { uid: uid.as_raw(), gid: gid.as_raw(), groups }), variables))
}

/// A user who was named.
struct UserSpec {
    uid: Uid,
    gid: Gid,
    /// Its entry in the user database, if it has one.
    entry: Option<User>,
}

/// Finds a user: `name`, `number`, or either with a group.
fn user(text: &str) -> Result<UserSpec, SandboxError> {
    let (name, own_group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let asked =
        |why: nix::Error| SandboxError::new("user", format!("has a user who cannot be looked up: {why}"), "try again");
    let number: Option<u32> = name.parse().ok();
    let entry = match (User::from_name(name).map_err(asked)?, number) {
        (Some(user), _) => Some(user),
        (None, Some(number)) => User::from_uid(number.into()).map_err(asked)?,
        (None, None) => {
            let why = format!("is to run as user \"{name}\", who does not exist here");
            return Err(SandboxError::new("user", why, "correct the name, or add the user"));
        }
    };
    let gid = match (own_group, &entry) {
        (Some(name), _) => group(name, "user")?,
        (None, Some(user)) => user.gid,
        (None, None) => {
            let why = format!("is to run as user {name}, of whom no group is known");
            return Err(SandboxError::new("user", why, "write user:group"));
        }
    };
    let uid = entry.as_ref().map(|user| user.uid).or(number.map(Uid::from_raw)).unwrap_or_else(geteuid);
    Ok(UserSpec { uid, gid, entry })
}

fn group(name: &str, field: &'static str) -> Result<Gid, SandboxError> {
    let found = Group::from_name(name).ok().flatten().map(|group| group.gid);
    found.or_else(|| name.parse().ok().map(Gid::from_raw)).ok_or_else(|| {
        let why = format!("is to run with group \"{name}\", which does not exist here");
        SandboxError::new(field, why, "correct the name, or add the group")
    })
}

fn groups_of(user: &User, gid: Gid) -> Vec<Gid> {
    let name = CString::new(user.name.as_str()).unwrap_or_default();
    getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid])
}

fn variables(user: &User) -> Variables {
    let text = |path: &std::path::Path| path.display().to_string();
    [
        ("HOME", text(&user.dir)),
        ("LOGNAME", user.name.clone()),
        ("SHELL", text(&user.shell)),
        ("USER", user.name.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
