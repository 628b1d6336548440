//! A configuration with everything that follows from it before anything is started.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use actix::Recipient;
use gaggled_actors::{control::ControlRequest, host, spec};
use gaggled_core::{
    config::{Config, Diagnostic, Parsed, Severity, SpanIndex, log_policy::LogRoute, own_externals},
    journal::segment::ConfigSource,
    protocol::Reply,
};
use gaggled_gateways::{
    access::{Access, Unknown},
    bus::Publisher,
    control::{Handler, Server},
    url::{Url, default_directory, make_default_directory_for},
};

use super::{own_programs, published_config::PublishedConfig};
use crate::common::{
    diagnostics,
    endpoints::{self, Urls},
    host::host_name,
};

/// A configuration that can be run here.
pub struct LoadedConfig {
    pub(super) config: Config,
    pub(super) text: ConfigSource,
    pub(super) urls: Urls,
    pub(super) search: Vec<String>,
    /// Where the output of each program goes.
    pub(super) log_routes: Vec<LogRoute>,
    pub(super) ignore_interrupts: bool,
    /// The revision of the published configuration, if the programs come from there; 0 if nothing has been published yet.
    pub(super) published: Option<Arc<AtomicU64>>,
}

/// A configuration that was read: from a file, or from a file and the published configuration.
struct ReadConfig {
    parsed: Parsed,
    /// The text that mistakes are shown in.
    text: String,
    /// Where that text is from.
    path: PathBuf,
    /// The revision of the published configuration, if it is needed.
    published: Option<u64>,
}

/// What is wrong with a configuration, and in which text.
struct Mistakes {
    found: Vec<Diagnostic>,
    text: String,
    path: PathBuf,
}

impl Mistakes {
    /// A mistake with no place in a text.
    fn whole(path: &Path, why: String) -> Self {
        Self { found: vec![Diagnostic::error(why)], text: String::new(), path: path.to_owned() }
    }

    fn has_errors(&self) -> bool {
        self.found.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// The errors, a line each.
    fn lines(&self) -> String {
        let errors = self.found.iter().filter(|finding| finding.severity == Severity::Error);
        let lines: Vec<String> = errors.map(|finding| diagnostics::line(&self.path, &self.text, finding)).collect();
        lines.join("\n")
    }
}

impl ReadConfig {
    /// Reads a file, and the published configuration if the file says so: this one, or the last one in the state directory.
    fn read(path: &Path, state: Option<&Path>, published: Option<&PublishedConfig>) -> Result<Self, Mistakes> {
        if let Some(why) = diagnostics::untrusted(path) {
            return Err(Mistakes::whole(path, format!("the file {why}")));
        }
        let text = diagnostics::read(path).map_err(|why| Mistakes::whole(path, why))?;
        let parsed = match Config::parse(&text) {
            Ok(parsed) => parsed,
            Err(found) => return Err(Mistakes { found, text, path: path.to_owned() }),
        };
        let wrong = parsed.config.beside_published(&parsed.locator);
        if !wrong.is_empty() {
            return Err(Mistakes { found: wrong, text, path: path.to_owned() });
        }
        if !parsed.config.is_published() {
            return Ok(Self { parsed, text, path: path.to_owned(), published: None });
        }
        let settings = parsed.config.gaggled.clone();
        let found = if let Some(published) = published {
            Some((published.clone(), PathBuf::from(format!("revision {}", published.revision))))
        } else {
            let state = state.map_or_else(|| endpoints::state_directory(&settings), |state| Ok(state.to_owned()));
            let last = state.and_then(|state| Ok(PublishedConfig::last(&state)?.map(|last| (last, state))));
            let last = last.map_err(|why| Mistakes::whole(path, why))?;
            last.map(|(last, state)| {
                let place = PublishedConfig::path(&state, last.revision);
                (last, place)
            })
        };
        let Some((PublishedConfig { revision, text: published }, place)) = found else {
            return Ok(Self { parsed, text, path: path.to_owned(), published: Some(0) });
        };
        match Config::parse_published(&published, &settings) {
            Ok(parsed) => Ok(Self { parsed, text: published, path: place, published: Some(revision) }),
            Err(found) => Err(Mistakes { found, text: published, path: place }),
        }
    }
}

impl LoadedConfig {
    /// Reads a configuration and checks everything that can be checked without starting anything. What is wrong has
    /// been printed when this returns `None`.
    pub fn check(path: &Path, ignore_interrupts: bool) -> Option<Self> {
        let (system, mistakes) = match Self::build(path, ignore_interrupts, None, None) {
            Ok((system, mistakes)) => (Some(system), mistakes),
            Err(mistakes) => (None, mistakes),
        };
        diagnostics::show(&mistakes.path, &mistakes.text, &mistakes.found);
        system.filter(|_| !mistakes.has_errors())
    }

    /// Reads and checks a configuration for the gaggled whose journal is here; what is wrong with it is returned in words.
    /// `published` is the published configuration, if that is not the one in the state directory.
    pub(super) fn load(
        path: &Path,
        ignore_interrupts: bool,
        state: &Path,
        published: Option<&PublishedConfig>,
    ) -> Result<Self, String> {
        match Self::build(path, ignore_interrupts, Some(state), published) {
            Ok((system, mistakes)) if !mistakes.has_errors() => Ok(system),
            Ok((_, mistakes)) | Err(mistakes) => Err(mistakes.lines()),
        }
    }

    fn build(
        path: &Path,
        ignore_interrupts: bool,
        state: Option<&Path>,
        published: Option<&PublishedConfig>,
    ) -> Result<(Self, Mistakes), Mistakes> {
        let mut read = ReadConfig::read(path, state, published)?;
        let text = match read.published {
            // The journal needs one text that has everything.
            Some(1..) => read.parsed.config.print().map_err(|why| Mistakes::whole(path, why.to_string()))?,
            Some(0) | None => read.text.clone(),
        };
        let source = ConfigSource { path: absolute(path), text };
        let warnings = std::mem::take(&mut read.parsed.warnings);
        let (mut system, found) = Self::examine(read.parsed, source, ignore_interrupts, state);
        system.published = read.published.map(AtomicU64::new).map(Arc::new);
        let found = warnings.into_iter().chain(found).collect();
        Ok((system, Mistakes { found, text: read.text, path: read.path }))
    }

    /// A configuration that is already in force, with the journal here. Files that it needs may be gone by now, but the
    /// programs that run must still be supervised.
    pub(super) fn in_force(text: ConfigSource, ignore_interrupts: bool, state: &Path) -> Option<Self> {
        let parsed = Config::parse(&text.text).ok()?;
        let published = parsed.config.is_published().then(|| {
            let last = PublishedConfig::last(state).ok().flatten();
            Arc::new(AtomicU64::new(last.map_or(0, |last| last.revision)))
        });
        Some(Self { published, ..Self::examine(parsed, text, ignore_interrupts, Some(state)).0 })
    }

    fn examine(
        parsed: Parsed,
        text: ConfigSource,
        ignore_interrupts: bool,
        state: Option<&Path>,
    ) -> (Self, Vec<Diagnostic>) {
        let Parsed { config: whole, locator, .. } = parsed;
        let node = node_name(&whole);
        let mut config = whole.project(&node);
        if let Some(cluster) = &mut config.gaggled.cluster {
            cluster.node = Some(node.clone());
        }
        let search = spec::search_path(&config, &std::env::var("PATH").unwrap_or_default());
        let mut found = spec::check(&config, &locator, &search);
        found.extend(check_gate(&config, &locator));
        if whole.gaggled.cluster.is_some() {
            found.extend(own_externals(&whole, &node, &locator));
            // What differs on this node may be wrong.
            found.extend(config.errors(&locator));
            found.extend(own_programs::check_cluster_gate(&config, &locator, &search));
            found.extend(own_programs::check_cluster_files(&config, &locator));
        }
        if let Err(error) = access(&config) {
            let gateway = config.gaggled.cluster.as_ref().and_then(|cluster| cluster.user.as_ref());
            let place: &[&str] =
                if gateway == Some(&error.name) { &["gaggled", "cluster", "user"] } else { &["gaggled", "access"] };
            let help = "correct the name, or add it; a group has an @ before its name";
            found.push(Diagnostic::error(error.to_string()).at(locator.nearest(place)).help(help));
        }
        let urls = endpoints::of_settings(&config.gaggled);
        if let Err(error) = &urls {
            let settings = &config.gaggled;
            let wrong = |url: &String| Url::parse(url, &settings.insecure).is_err();
            let field = if settings.eventurl.as_ref().is_some_and(wrong) { "eventurl" } else { "controlurl" };
            found.push(Diagnostic::error(error.to_string()).at(locator.nearest(&["gaggled", field])));
        }
        let urls = urls.unwrap_or_default();
        if !urls.event.is_empty() && urls.event == urls.control {
            let at = locator.find(&["gaggled", "controlurl"]);
            found.push(
                Diagnostic::error("eventurl and controlurl are the same").at(at).help("give each a url of its own"),
            );
        }
        let log_routes = own_programs::add(&mut config, Path::new(&text.path), state);
        (Self { config, text, urls, search, log_routes, ignore_interrupts, published: None }, found)
    }

    /// How many programs and dependencies there are.
    pub fn size(&self) -> (usize, usize) {
        let graph = self.config.graph();
        let own = graph.programs.values().filter(|policy| policy.is_here());
        (own.count(), graph.dependencies.len())
    }

    /// Opens everything that could be refused, before anything is started.
    pub(super) fn open_channels(&self) -> Result<Channels, String> {
        host::close_on_exec().map_err(|error| format!("cannot look at /proc/self/fd: {error}"))?;
        host::become_subreaper().map_err(|error| format!("cannot become the parent of orphans: {error}"))?;
        let default = default_directory().ok().map(|directory| directory.display().to_string());
        let access = access(&self.config).map_err(|error| error.to_string())?;
        let in_default =
            |url: &str| default.as_ref().is_some_and(|directory| url.starts_with(&format!("ipc://{directory}/")));
        if in_default(&self.urls.event) || in_default(&self.urls.control) {
            make_default_directory_for(access.is_open()).map_err(|error| error.to_string())?;
        }
        let insecure = &self.config.gaggled.insecure;
        let url = |text: &str| {
            let url = Url::parse(text, insecure).map_err(|error| error.to_string())?;
            url.prepare().map_err(|error| error.to_string())?;
            Ok::<_, String>(url)
        };
        let control: Arc<OnceLock<Recipient<ControlRequest>>> = Arc::default();
        let server = Server::bind(&url(&self.urls.control)?, access.clone(), handler(control.clone()))
            .map_err(|error| error.to_string())?;
        let publisher = Publisher::bind(&url(&self.urls.event)?, access).map_err(|error| error.to_string())?;
        Ok((publisher, server, control))
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

pub(super) type Channels = (Publisher, Arc<Server>, Arc<OnceLock<Recipient<ControlRequest>>>);

fn handler(control: Arc<OnceLock<Recipient<ControlRequest>>>) -> Handler {
    Arc::new(move |peer, request, responder| {
        let answer = Box::new(move |reply: Reply| responder.send(&reply));
        if let Some(control) = control.get() {
            // A mailbox that is full drops the request, and the responder sends the client an error.
            let _ = control.try_send(ControlRequest { peer, request, answer });
        }
    })
}

/// Who may use the sockets.
fn access(config: &Config) -> Result<Access, Unknown> {
    let gateway = config.gaggled.cluster.as_ref().and_then(|cluster| cluster.user.as_deref());
    Access::find(&config.gaggled.access, gateway)
}

/// The name of this node: that of the host, if the configuration does not name it.
fn node_name(config: &Config) -> String {
    let given = config.gaggled.cluster.as_ref().and_then(|cluster| cluster.node.clone());
    given.unwrap_or_else(host_name)
}

fn check_gate(config: &Config, locator: &SpanIndex) -> Option<Diagnostic> {
    let gate = config.gaggled.smtpgate.as_ref()?;
    let error = gaggled_gateways::smtp::check(gate).err()?;
    Some(Diagnostic::error(error.to_string()).at(locator.find(&["gaggled", "smtpgate"])))
}
