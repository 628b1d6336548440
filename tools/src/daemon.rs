//! The daemon: a checked configuration becomes actors, channels and a log, until everything has stopped.

mod outlets;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use actix::{Actor, Arbiter, Recipient};
use gaggled_actors::{
    clock::Clock,
    control::{About, Ask, ControlActor, Farewell},
    host::{self, Environment, HostActor, LinuxHost},
    journal::{JournalActor, Propose},
    launch,
    root::{self, HostAddress},
    shell::Saw,
};
use gaggled_core::{
    config::{Config, Diagnostic, Locator, Parsed, ProgramConfig, Severity},
    event::{Cause, Event, SystemEvent},
    ids::EpochId,
    state::State,
    wire::Reply,
};
use gaggled_gateways::{
    bus::Publisher,
    control::{Handler, Server},
    url::{Url, default_directory, make_default_directory},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use self::outlets::{ControlSlot, Threads};
use crate::{
    VERSION,
    address::{self, CONTROL_VARIABLE, EVENT_VARIABLE, Urls},
    diagnostics,
    journal_log::JournalLog,
};

/// Exit status: the configuration cannot be used.
pub const BAD_CONFIGURATION: u8 = 1;
/// Exit status: programs could not be ended.
pub const SURVIVORS: u8 = 3;
/// Exit status: gaggled cannot work here, for instance because another one does.
pub const CANNOT_RUN: u8 = 100;

/// How long a log that is not read may hold up the end.
const PATIENCE_WITH_LOG: Duration = Duration::from_millis(200);

/// A configuration that can be run here.
pub struct System {
    config: Config,
    urls: Urls,
    search: Vec<String>,
    ignore_interrupts: bool,
}

impl System {
    /// Reads a configuration and checks everything that can be checked without starting anything. What is wrong has
    /// been printed when this returns `None`.
    pub fn check(path: &Path, ignore_interrupts: bool) -> Option<Self> {
        let (parsed, text) = diagnostics::load(path).ok()?;
        let Parsed { mut config, locator, .. } = parsed;
        let search = launch::search_path(&config, &std::env::var("PATH").unwrap_or_default());
        let mut found = launch::check(&config, &locator, &search);
        found.extend(check_gate(&config, &locator));
        let urls = address::of_settings(&config.gaggled);
        if let Err(error) = &urls {
            let settings = &config.gaggled;
            let wrong = |url: &String| Url::parse(url, &settings.insecure).is_err();
            let field = if settings.eventurl.as_ref().is_some_and(wrong) { "eventurl" } else { "controlurl" };
            found.push(Diagnostic::error(error.to_string()).at(locator.nearest(&["gaggled", field])));
        }
        let urls = urls.ok();
        if urls.as_ref().is_some_and(|urls| urls.event == urls.control) {
            let at = locator.find(&["gaggled", "controlurl"]);
            found.push(
                Diagnostic::error("eventurl and controlurl are the same").at(at).help("give each a url of its own"),
            );
        }
        diagnostics::show(path, &text, &found);
        if found.iter().any(|finding| finding.severity == Severity::Error) {
            return None;
        }
        add_gate(&mut config, path);
        Some(Self { config, urls: urls?, search, ignore_interrupts })
    }

    /// How many programs and dependencies there are.
    pub fn size(&self) -> (usize, usize) {
        let graph = self.config.graph();
        (graph.programs.len(), graph.edges.len())
    }

    /// Runs until everything has stopped.
    pub fn run(self) -> ExitCode {
        if self.ignore_interrupts {
            host::ignore_interrupts();
        }
        let opened = self.open_channels();
        let (publisher, server, control) = match opened {
            Ok(channels) => channels,
            Err(why) => {
                eprintln!("Error: {why}");
                return ExitCode::from(CANNOT_RUN);
            }
        };
        let socket = Url::parse(&self.urls.control, &self.config.gaggled.insecure);
        let ended = actix::System::new().block_on(self.live(publisher, &server, &control));
        // The contexts of the server belong to threads of nng that end with the process.
        std::mem::forget(server);
        if let Ok(Url::Ipc(path)) = socket {
            // Whoever looks for gaggled now is told at once that it is not there.
            let _ = std::fs::remove_file(path);
        }
        match ended {
            Ok(0) => ExitCode::SUCCESS,
            Ok(survivors) => {
                eprintln!("Error: {survivors} programs could not be ended; they wait in the kernel for a device");
                ExitCode::from(SURVIVORS)
            }
            Err(why) => {
                eprintln!("Error: {why}");
                ExitCode::from(CANNOT_RUN)
            }
        }
    }

    /// Opens everything that could be refused, before anything is started.
    fn open_channels(&self) -> Result<Channels, String> {
        host::close_on_exec().map_err(|error| format!("cannot look at /proc/self/fd: {error}"))?;
        host::become_subreaper().map_err(|error| format!("cannot become the parent of orphans: {error}"))?;
        let default = default_directory().ok().map(|directory| directory.display().to_string());
        let in_default =
            |url: &str| default.as_ref().is_some_and(|directory| url.starts_with(&format!("ipc://{directory}/")));
        if in_default(&self.urls.event) || in_default(&self.urls.control) {
            make_default_directory().map_err(|error| error.to_string())?;
        }
        let insecure = &self.config.gaggled.insecure;
        let url = |text: &str| {
            let url = Url::parse(text, insecure).map_err(|error| error.to_string())?;
            url.prepare().map_err(|error| error.to_string())?;
            Ok::<_, String>(url)
        };
        let control: Arc<OnceLock<Recipient<Ask>>> = Arc::default();
        let server =
            Server::bind(&url(&self.urls.control)?, handler(control.clone())).map_err(|error| error.to_string())?;
        let publisher = Publisher::bind(&url(&self.urls.event)?).map_err(|error| error.to_string())?;
        Ok((publisher, server, control))
    }

    async fn live(
        &self,
        publisher: Publisher,
        server: &Arc<Server>,
        control: &Arc<OnceLock<Recipient<Ask>>>,
    ) -> Result<u32, String> {
        let clock = Clock::real();
        let epoch = EpochId(u64::try_from(clock.wall().0 / 1000).unwrap_or(1));
        let graph = Arc::new(self.config.graph());
        let state = State::new(graph.clone(), epoch);
        let in_words = |error: std::io::Error| error.to_string();

        let (events, envelopes) = crossbeam_channel::unbounded();
        let publishing = publisher.publish(state.clone(), envelopes).map_err(in_words)?;
        let (log, logged) = JournalLog::start(graph.clone()).map_err(in_words)?;
        let host = self.start_host(epoch).map_err(in_words)?;

        let (completed, completion) = oneshot::channel();
        let slot = ControlSlot::default();
        let sinks = vec![slot.sink(), Threads { events, log: log.clone(), completed }.sink()];
        let programs = graph.programs.len();
        let journal = root::start(graph, epoch, clock, &host, sinks, slot.decline());
        // Clients are answered by a thread of their own: however much they ask, supervision does not wait.
        let (about, to_journal) = (self.about(), journal.clone());
        let clients = Arbiter::new();
        let actor = ControlActor::start_in_arbiter(&clients.handle(), move |_| {
            ControlActor::new(state, clock, to_journal, about)
        });
        slot.fill(actor.clone());
        let _ = control.set(actor.clone().recipient());
        server.serve().map_err(|error| error.to_string())?;
        root::open(&journal, VERSION, programs);
        self.watch_signals(&journal, &log).map_err(in_words)?;

        let survivors = completion.await.map_err(|_| "the journal ended early".to_owned())?;
        let _ = actor.send(Farewell).await;
        // The last event was the last message to both threads; a log that is stuck is not waited for long.
        let _ = publishing.join();
        let _ = logged.recv_timeout(PATIENCE_WITH_LOG);
        Ok(survivors)
    }

    fn about(&self) -> About {
        About {
            version: VERSION,
            pid: std::process::id(),
            eventurl: self.urls.event.clone(),
            controlurl: self.urls.control.clone(),
        }
    }

    fn start_host(&self, epoch: EpochId) -> std::io::Result<HostAddress> {
        let about = [
            (EVENT_VARIABLE, self.urls.event.clone()),
            (CONTROL_VARIABLE, self.urls.control.clone()),
            (
                "GAGGLED_HOST",
                nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()),
            ),
        ];
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let environment = Environment {
            variables: launch::variables(&self.config, own, &self.search, about),
            search: self.search.clone(),
            epoch,
            keep_ignored: if self.ignore_interrupts { vec![nix::libc::SIGINT] } else { Vec::new() },
        };
        let saw: Arc<OnceLock<Recipient<Saw>>> = Arc::default();
        let to_actor = saw.clone();
        let report = move |observed| {
            if let Some(actor) = to_actor.get() {
                actor.do_send(Saw(observed));
            }
        };
        let host = LinuxHost::new(launch::launches(&self.config), environment, Box::new(report))?;
        let address = HostActor::new(host).start();
        let _ = saw.set(address.clone().recipient());
        Ok(HostAddress { perform: address.clone().recipient(), connect: address.recipient() })
    }

    fn watch_signals(&self, journal: &actix::Addr<JournalActor>, log: &JournalLog) -> std::io::Result<()> {
        let mut wanted = vec![(SignalKind::terminate(), "SIGTERM")];
        if !self.ignore_interrupts {
            wanted.push((SignalKind::interrupt(), "SIGINT"));
        }
        for (kind, name) in wanted {
            let (mut stream, journal) = (signal(kind)?, journal.downgrade());
            actix::spawn(async move {
                while stream.recv().await.is_some() {
                    let cause = Cause::Operator { who: name.into(), command: "".into() };
                    let event = Event::System(SystemEvent::ShutdownBegun);
                    if let Some(journal) = journal.upgrade() {
                        journal.do_send(Propose { from: None, event, cause });
                    }
                }
            });
        }
        let (mut hangups, log) = (signal(SignalKind::hangup())?, log.clone());
        actix::spawn(async move {
            while hangups.recv().await.is_some() {
                log.warning(
                    "SIGHUP has no effect: to take a changed configuration, shut gaggled down and start it again",
                );
            }
        });
        Ok(())
    }
}

type Channels = (Publisher, Arc<Server>, Arc<OnceLock<Recipient<Ask>>>);

fn handler(control: Arc<OnceLock<Recipient<Ask>>>) -> Handler {
    Arc::new(move |peer, request, responder| {
        let answer = Box::new(move |reply: Reply| responder.send(&reply));
        if let Some(control) = control.get() {
            // A mailbox that is full drops the request, and the responder tells the client so.
            let _ = control.try_send(Ask { peer, request, answer });
        }
    })
}

fn check_gate(config: &Config, locator: &Locator) -> Option<Diagnostic> {
    let gate = config.gaggled.smtpgate.as_ref()?;
    let error = crate::smtpgate::check(gate).err()?;
    Some(Diagnostic::error(error.to_string()).at(locator.find(&["gaggled", "smtpgate"])))
}

/// Adds the program that `smtpgate: (auto: true)` asks for.
fn add_gate(config: &mut Config, path: &Path) {
    if !config.gaggled.smtpgate.as_ref().is_some_and(|gate| gate.auto) {
        return;
    }
    let beside =
        std::env::current_exe().ok().map(|own| own.with_file_name("gaggled_smtpgate")).filter(|gate| gate.is_file());
    let command = beside.unwrap_or_else(|| PathBuf::from("gaggled_smtpgate")).display().to_string();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let program =
        ProgramConfig { command: Some(command), argv: vec!["-c".to_owned(), path], ..ProgramConfig::default() };
    config.programs.0.push(("smtpgate".to_owned(), program));
}
