//! Publishing a configuration: what it changes on each node is shown before, and what each node says of it after.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use gaggled_core::{
    cluster::store::{Applied, Pointer},
    config::{Config, Diagnostic, Parsed, own_externals},
    planning::plan::{Change, Plan},
};
use gaggled_tools::common::diagnostics;

use super::{AdminError, Administrator, say, who};
use crate::etcd::publication::{Publications, describe};

/// How many revisions are kept.
const KEPT: usize = 20;

/// How long a note may be, in bytes.
const NOTE_MAX: usize = 500;

/// How something is published.
#[derive(Clone, Debug, clap::Args)]
pub struct PublishArgs {
    /// Let this node try it first: all others get it only if it takes it. Can be given more than once
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    canary: Vec<String>,

    /// What is said of it in the list of revisions
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,

    /// Do not ask before it is published
    #[arg(short, long)]
    yes: bool,

    /// Only check it and show what it changes
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// How long the nodes may take to load it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

impl Administrator {
    /// Publishes a file.
    ///
    /// # Errors
    ///
    /// It cannot be used on a node, etcd refuses, another publisher was quicker, or a node does not take it.
    pub async fn publish_file(&self, path: &Path, arguments: &PublishArgs) -> Result<(), AdminError> {
        let text = diagnostics::read(path).map_err(|why| AdminError::Refused(format!("{}: {why}", path.display())))?;
        self.publish(path, &text, arguments).await
    }

    /// Publishes the text of an earlier revision again; that before the present one if none is given.
    ///
    /// # Errors
    ///
    /// There is no such revision, or as for a file.
    pub async fn roll_back(&self, revision: Option<u64>, arguments: &PublishArgs) -> Result<(), AdminError> {
        let known = &self.known;
        let current = known.current.as_ref().map_or(0, |pointer| pointer.revision);
        let before = known.revisions.values().rev().find(|pointer| match revision {
            Some(revision) => pointer.revision == revision,
            None => {
                pointer.revision < current && known.current.as_ref().is_some_and(|now| now.sha256 != pointer.sha256)
            }
        });
        let Some(pointer) = before else {
            return Err(AdminError::Refused(match revision {
                Some(revision) => format!("there is no revision {revision}: gaggled_clustergate revisions lists them"),
                None => "there is no earlier revision to go back to".to_owned(),
            }));
        };
        let text = self.connection.fetch(pointer).await?.map_err(AdminError::Refused)?;
        let note = format!("revision {} again", pointer.revision);
        let note = if arguments.note.is_empty() { note } else { arguments.note.clone() };
        let place = format!("revision {}", pointer.revision);
        self.publish(Path::new(&place), &text, &PublishArgs { note, ..arguments.clone() }).await
    }

    async fn publish(&self, path: &Path, text: &str, arguments: &PublishArgs) -> Result<(), AdminError> {
        let (known, wrong) = (&self.known, |found: Vec<Diagnostic>| shown_in(path, text, &found));
        let new = Config::parse_published(text, &self.config.gaggled).map_err(wrong)?;
        let canaries: BTreeSet<Arc<str>> = arguments.canary.iter().map(|node| node.as_str().into()).collect();
        if let Some(absent) = canaries.iter().find(|node| !follows(known, node)) {
            return Err(AdminError::Refused(format!(
                "{absent} cannot try it: it is no node that is there and has its programs from the published configuration"
            )));
        }
        let nodes: BTreeSet<Arc<str>> = known.sessions.keys().filter(|node| follows(known, node)).cloned().collect();
        let declared = new.config.declared_nodes().into_iter().map(Arc::from);
        let all: BTreeSet<Arc<str>> = declared.chain(known.applied.keys().cloned()).collect();
        let mistakes = mistakes(&new, &all);
        if !mistakes.is_empty() {
            return Err(wrong(mistakes));
        }
        let old = self.present(&all).await?;
        if arguments.note.len() > NOTE_MAX {
            return Err(AdminError::Refused(format!(
                "the note has {} bytes, and may have {NOTE_MAX}",
                arguments.note.len()
            )));
        }
        let revision = known.next_revision();
        say(&match &known.current {
            Some(current) => format!("revision {revision}, after {}", current.revision),
            None => format!("revision {revision}, the first"),
        });
        say(&changes(&old, &new.config, &nodes));
        if arguments.dry_run {
            return Ok(());
        }
        if !arguments.yes {
            confirm(revision)?;
        }
        let pointer = self.describe(revision, text, &arguments.note);
        if !self.connection.write_text(&pointer, text).await? {
            return Err(AdminError::Refused(format!(
                "revision {revision} was published by another just now: look at it with gaggled_clustergate revisions, and publish again"
            )));
        }
        let within = Duration::from_secs(arguments.timeout);
        if !canaries.is_empty() {
            self.connection.publish_to(&canaries, &pointer).await?;
            match self.all_take(&pointer, &canaries, within).await {
                Ok(true) => {}
                Ok(false) => return Err(self.take_back(&canaries).await?),
                Err(error) => {
                    say(&error.to_string());
                    return Err(self.take_back(&canaries).await?);
                }
            }
        }
        if !self.connection.publish(&pointer, known).await? {
            return Err(AdminError::Refused(
                "another configuration was published just now: look at it with gaggled_clustergate revisions, and publish again".to_owned(),
            ));
        }
        for old in known.revisions.keys().rev().skip(KEPT - 1) {
            self.connection.delete_text(*old).await?;
        }
        if self.all_take(&pointer, &nodes, within).await? {
            return Ok(());
        }
        Err(AdminError::Refused(format!(
            "revision {revision} is published, and not in force everywhere: correct it and publish again, or give gaggled_clustergate rollback"
        )))
    }

    /// The configuration that each of these nodes has now, as far as it is known: that which is published if the node is not
    /// there.
    async fn present(&self, nodes: &BTreeSet<Arc<str>>) -> Result<BTreeMap<Arc<str>, Arc<Config>>, AdminError> {
        let known = &self.known;
        let nothing = Arc::new(Config { gaggled: self.config.gaggled.clone(), ..Config::default() });
        let current = known.current.as_ref().map_or(0, |pointer| pointer.revision);
        let mut read: BTreeMap<u64, Arc<Config>> = BTreeMap::new();
        let mut present = BTreeMap::new();
        for node in nodes {
            let revision = known.applied.get(node).map_or(current, |applied| applied.revision);
            if let Entry::Vacant(place) = read.entry(revision) {
                let pointer = known.revisions.get(&revision);
                let text = match pointer {
                    Some(pointer) => self.connection.fetch(pointer).await?.ok(),
                    None => None,
                };
                let parsed = text.and_then(|text| Config::parse_published(&text, &self.config.gaggled).ok());
                // One that cannot be read is no reason not to publish a better one.
                place.insert(parsed.map_or(nothing.clone(), |parsed| Arc::new(parsed.config)));
            }
            present.insert(node.clone(), read[&revision].clone());
        }
        Ok(present)
    }

    fn describe(&self, revision: u64, text: &str, note: &str) -> Pointer {
        Pointer { by: who(), time: self.clock.wall(), note: note.to_owned(), ..describe(revision, text) }
    }

    /// Waits until these nodes have said whether they take a revision, and shows what they say; whether all take it.
    async fn all_take(
        &self,
        pointer: &Pointer,
        nodes: &BTreeSet<Arc<str>>,
        within: Duration,
    ) -> Result<bool, AdminError> {
        let revision = pointer.revision;
        let (mut waiting, mut is_well) = (nodes.clone(), true);
        let tell = |node: Arc<str>, applied: Applied| {
            if waiting.contains(&node)
                && let Some((line, takes)) = verdict(&node, &applied, revision)
            {
                waiting.remove(&node);
                is_well &= takes;
                say(&line);
            }
            waiting.is_empty()
        };
        if !nodes.is_empty() {
            match tokio::time::timeout(within, self.connection.watch_applied(self.known.read_at + 1, tell)).await {
                Ok(watched) => watched?,
                Err(_) => is_well = false,
            }
        }
        for node in waiting {
            say(&format!("{node}  has not said within {} s whether it takes revision {revision}", within.as_secs()));
        }
        Ok(is_well)
    }

    /// Gives nodes that were to try a configuration the present one again, as a new revision.
    async fn take_back(&self, canaries: &BTreeSet<Arc<str>>) -> Result<AdminError, AdminError> {
        let Some(current) = &self.known.current else {
            let why = "it is not published to the others; there is no earlier revision to go back to";
            return Ok(AdminError::Refused(why.to_owned()));
        };
        let text = self.connection.fetch(current).await?.map_err(AdminError::Refused)?;
        let revision = self.connection.publications().await?.next_revision();
        let pointer = self.describe(revision, &text, &format!("revision {} again", current.revision));
        if self.connection.write_text(&pointer, &text).await? {
            self.connection.publish_to(canaries, &pointer).await?;
        }
        Ok(AdminError::Refused(format!(
            "it is not published to the others; who tried it gets revision {} again, as {revision}",
            current.revision
        )))
    }
}

/// Shows what is wrong with a text.
fn shown_in(path: &Path, text: &str, found: &[Diagnostic]) -> AdminError {
    diagnostics::show(path, text, found);
    AdminError::Shown
}

/// What is wrong with a configuration on these nodes.
fn mistakes(parsed: &Parsed, nodes: &BTreeSet<Arc<str>>) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = Vec::new();
    for node in nodes {
        let of_node = own_externals(&parsed.config, node, &parsed.locator);
        for mut error in of_node.into_iter().chain(parsed.config.project(node).errors(&parsed.locator)) {
            error.message = format!("on node {node}: {}", error.message);
            // One node is enough to show a mistake.
            if found.iter().all(|known| known.span != error.span || error.span.is_none()) {
                found.push(error);
            }
        }
    }
    found
}

/// Whether a node is there and has its programs from the published configuration: such a node says which one it has.
fn follows(known: &Publications, node: &str) -> bool {
    known.sessions.contains_key(node) && known.applied.contains_key(node)
}

/// What a node says of a revision, once it does, and whether it takes it.
fn verdict(node: &str, applied: &Applied, revision: u64) -> Option<(String, bool)> {
    match &applied.refused {
        _ if applied.revision >= revision => Some((format!("{node}  has revision {}", applied.revision), true)),
        Some(refused) if refused.revision == revision => {
            let line = format!("{node}  does not take it, and stays on revision {}: {}", applied.revision, refused.why);
            Some((line, false))
        }
        Some(_) | None => None,
    }
}

/// What changes on each node, a line each.
fn changes(old: &BTreeMap<Arc<str>, Arc<Config>>, new: &Config, present: &BTreeSet<Arc<str>>) -> String {
    let mut lines = String::new();
    for (node, old) in old {
        let plan = Plan::if_all_run(&old.project(node), &new.project(node));
        let word = |change: Change| match change {
            Change::Start => "start",
            Change::Stop => "stop",
            Change::Restart => "restart",
            Change::ApplyLive => "change",
            Change::Unchanged => "keep",
        };
        let mut told: Vec<String> = Vec::new();
        for step in plan.steps.iter().filter(|step| step.change != Change::Unchanged) {
            told.push(format!("{} {} ({})", word(step.change), step.program, step.reason));
        }
        let kept = plan.steps.len() - told.len();
        if kept > 0 || told.is_empty() {
            told.push(format!("keep {kept}"));
        }
        let absent = if present.contains(node) { "" } else { "  (not there: it gets it when it is)" };
        let _ = writeln!(lines, "{node}  {}{absent}", told.join(", "));
    }
    lines.trim_end().to_owned()
}

/// Asks whether to go on.
fn confirm(revision: u64) -> Result<(), AdminError> {
    if !io::stdin().is_terminal() {
        return Err(AdminError::Refused(format!("revision {revision} is not published: add --yes")));
    }
    let mut out = io::stdout();
    let _ = write!(out, "publish revision {revision}? [y/N] ").and_then(|()| out.flush());
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(AdminError::Refused(format!("revision {revision} is not published"))),
    }
}
