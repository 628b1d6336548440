//! A configuration with everything that follows from it before anything is started.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
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

use super::own_programs;
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
}

impl LoadedConfig {
    /// Reads a configuration and checks everything that can be checked without starting anything. What is wrong has
    /// been printed when this returns `None`.
    pub fn check(path: &Path, ignore_interrupts: bool) -> Option<Self> {
        if let Some(why) = diagnostics::untrusted(path) {
            eprintln!("Error: {} {why}", path.display());
            return None;
        }
        let (parsed, text) = diagnostics::load(path).ok()?;
        let text = ConfigSource { path: absolute(path), text };
        let (system, found) = Self::examine(parsed, text, ignore_interrupts, None);
        diagnostics::show(path, &system.text.text, &found);
        let usable = found.iter().all(|finding| finding.severity != Severity::Error);
        usable.then_some(system)
    }

    /// Reads and checks a configuration for the gaggled whose journal is here; what is wrong with it is returned in words.
    pub(super) fn load(path: &Path, ignore_interrupts: bool, state: &Path) -> Result<Self, String> {
        if let Some(why) = diagnostics::untrusted(path) {
            return Err(format!("{} {why}", path.display()));
        }
        let text = diagnostics::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
        let join_diagnostics = |found: &[Diagnostic]| {
            let errors = found.iter().filter(|finding| finding.severity == Severity::Error);
            let lines: Vec<String> = errors.map(|finding| diagnostics::line(path, &text, finding)).collect();
            lines.join("\n")
        };
        let parsed = Config::parse(&text).map_err(|found| join_diagnostics(&found))?;
        let place = ConfigSource { path: absolute(path), text: text.clone() };
        let (system, found) = Self::examine(parsed, place, ignore_interrupts, Some(state));
        let wrong = join_diagnostics(&found);
        if wrong.is_empty() { Ok(system) } else { Err(wrong) }
    }

    /// A configuration that is already in force, with the journal here. Files that it needs may be gone by now, but the
    /// programs that run must still be supervised.
    pub(super) fn in_force(text: ConfigSource, ignore_interrupts: bool, state: &Path) -> Option<Self> {
        let parsed = Config::parse(&text.text).ok()?;
        Some(Self::examine(parsed, text, ignore_interrupts, Some(state)).0)
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
        (Self { config, text, urls, search, log_routes, ignore_interrupts }, found)
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
