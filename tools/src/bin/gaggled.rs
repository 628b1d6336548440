//! The daemon.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use gaggled_tools::{
    VERSION,
    common::{endpoints::Urls, output},
    daemon::subreaper::{self, InheritedFds, Takeover},
    daemon::{self, BAD_CONFIGURATION, LoadedConfig, Options},
    keeper, logger,
    offline::graph,
    offline::import,
    offline::journal,
    offline::nodes,
    offline::simulate,
};

/// Run and supervise programs that depend on each other
///
/// Exit status: 0 everything has stopped as requested; 1 the configuration cannot be used; 2 the arguments cannot be
/// used; 3 programs could not be ended; 100 gaggled cannot run here, for instance because another one already does.
#[derive(Parser)]
#[command(name = "gaggled", version = VERSION, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration
    #[arg(short, long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,

    /// Check the configuration and start nothing
    #[arg(short, long)]
    test: bool,

    /// Ignore the interrupt of the terminal (SIGINT), as do the programs
    #[arg(short, long)]
    no_interrupt: bool,

    /// Use a state directory of another configuration, with its history and the commands of its operators
    #[arg(long)]
    take_state: bool,

    /// Descriptors that the subreaper hands to the daemon
    #[arg(long, hide = true)]
    inherit: Option<InheritedFds>,

    /// State directory that the first daemon of a subreaper resumes
    #[arg(long, hide = true)]
    resume: Option<String>,

    /// Descriptors of sockets that outlive daemons, for a subreaper that takes the place of another
    #[arg(long, hide = true, requires = "resume")]
    stash: Option<String>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Convert a configuration of another program; check the result with -t where it will run
    Import {
        /// The format of the file
        format: import::Format,
        /// The file
        file: PathBuf,
        /// The node whose programs are imported from the file of a diprocd master; without it those of all, to be published
        #[arg(long)]
        node: Option<String>,
    },
    /// Draw the dependencies, with their state if gaggled runs
    Graph(graph::Arguments),
    /// Simulate a system in virtual time, with failures
    Simulate(simulate::Arguments),
    /// Write the logs of programs: gaggled runs this itself
    #[command(hide = true)]
    Logger {
        /// The directory of the journal
        state: PathBuf,
        /// A fingerprint of the list of logs, so that a change of the list restarts the logger
        fingerprint: String,
    },
    /// Kill what gaggled cannot stop of a group that runs on one node at a time: gaggled runs this itself
    #[command(hide = true)]
    Keeper {
        /// The directory of the journal
        state: PathBuf,
        /// The url of the event channel
        event: String,
        /// The url of the control channel
        control: String,
    },
    /// List the hosts of a set of nodes, or the sets of a host
    Nodes(nodes::Query),
    /// Verify, show or export a journal without a running gaggled
    Journal {
        /// What to do
        #[command(subcommand)]
        command: journal::Command,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Check whether this binary can take over a journal
    #[command(hide = true)]
    CheckTakeover {
        /// The directory of the journal
        state: PathBuf,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Import { format, file, node }) => import::run(format, &file, node.as_deref()),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "gaggled", &mut script);
            output::end(output::line(String::from_utf8_lossy(&script).trim_end()))
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Arguments::command()).render(&mut page);
            output::end(rendered.and_then(|()| output::line(String::from_utf8_lossy(&page).trim_end())))
        }
        Some(Command::Graph(arguments)) => graph::run(&arguments),
        Some(Command::Simulate(arguments)) => simulate::run(&arguments),
        Some(Command::Logger { state, .. }) => logger::run(&state),
        Some(Command::Keeper { state, event, control }) => keeper::run(&state, &Urls { event, control }),
        Some(Command::Nodes(query)) => nodes::run(&query),
        Some(Command::Journal { command }) => journal::run(&command),
        Some(Command::CheckTakeover { state }) => daemon::check_takeover(&state),
        None => {
            let config = arguments.config.unwrap_or_default();
            if arguments.test {
                return check(&config);
            }
            if arguments.inherit.is_none() {
                let takeover = arguments.resume.map(|state| Takeover::new(state, arguments.stash.as_deref()));
                return subreaper::run(own_arguments(), takeover);
            }
            let Arguments { no_interrupt: ignore_interrupts, take_state, inherit, .. } = arguments;
            daemon::run(&Options { config, ignore_interrupts, take_state, inherit })
        }
    }
}

fn check(config: &Path) -> ExitCode {
    let Some(system) = LoadedConfig::check(config, false) else { return ExitCode::from(BAD_CONFIGURATION) };
    let (programs, dependencies) = system.size();
    let summary = format!("{}: ok, {programs} programs, {dependencies} dependencies", config.display());
    output::end(output::line(&summary))
}

/// The arguments for the daemon: those of this process, without the options that only the subreaper uses.
fn own_arguments() -> Vec<OsString> {
    let mut words = std::env::args_os().skip(1);
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "--resume" || word == "--stash" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept
}
