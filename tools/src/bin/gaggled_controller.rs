//! Show the state of a running gaggled, and send it commands.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gaggled_core::{
    base::time::Millis,
    protocol::{Action, PointInTime, Selection, WaitState},
};
use gaggled_tools::{
    VERSION,
    common::endpoints::EndpointArgs,
    common::output,
    common::time_args,
    controller::{CommandError, Controller},
};

/// Show the state of a running gaggled, and send it commands
///
/// Without -u and -c the url is that in `GAGGLED_CONTROL_URL`, or else the default one. PROGRAM is the name of a
/// program or a group, or a pattern such as 'web-*'; none means everything. Exit status: 0 done; 1 refused or failed; 2
/// the arguments cannot be used, or no such group or level; 3 no such program; 4 gaggled cannot be reached; 5 timed
/// out.
#[derive(Parser)]
#[command(name = "gaggled_controller", version = VERSION)]
struct Arguments {
    #[command(flatten)]
    place: EndpointArgs,

    /// Print JSON
    #[arg(short, long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct TargetArgs {
    /// Names or patterns; none means all
    #[arg(value_name = "PROGRAM")]
    programs: Vec<String>,

    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,

    /// How long to wait, for instance 500ms or 2m
    #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
    timeout: Millis,
}

impl TargetArgs {
    fn selection(self) -> Selection {
        Selection { programs: self.programs, wait: !self.no_wait, timeout_ms: Some(self.timeout) }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitStateArg {
    Up,
    Down,
}

#[derive(Subcommand)]
enum Command {
    /// Start programs, and keep them started after a restart of gaggled
    Up(TargetArgs),
    /// Stop programs; they stay down until they are started, also after a restart of gaggled
    Down(TargetArgs),
    /// Restart programs; without names, all but those that an operator has stopped, or has not started
    Restart(TargetArgs),
    /// Move a group to a level: stop the programs that do not run there, then start those that do, in order
    Tell {
        /// The group
        group: String,
        /// The level; 'restart' restarts the group
        level: String,
        /// Do not wait until the group has reached the level
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
        timeout: Millis,
    },
    /// Send a signal to programs that are up: TERM and KILL to all their processes, others to the main process
    Signal {
        /// A name such as HUP, or a number
        signal: String,
        /// Names or patterns
        #[arg(value_name = "PROGRAM", required = true)]
        programs: Vec<String>,
    },
    /// Show the state of programs
    Dump {
        /// Names or patterns; none means all
        #[arg(value_name = "PROGRAM")]
        programs: Vec<String>,
        /// Draw the dependencies
        #[arg(long, conflicts_with = "json")]
        tree: bool,
        /// The state after an event, or at a time: 42, 14:03:07, "2026-11-20 14:03", 10m ago
        #[arg(long, value_name = "MOMENT", value_parser = time_args::parse)]
        at: Option<PointInTime>,
    },
    /// Explain the state of a program by the events that led to it
    Why {
        /// Its name
        program: String,
        /// Its state after an event, or at a time
        #[arg(long, value_name = "MOMENT", value_parser = time_args::parse)]
        at: Option<PointInTime>,
    },
    /// Show what a program has written to its log
    Logs {
        /// Its name
        program: String,
        /// How many of the last lines
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
        lines: usize,
        /// Only lines from this time on: 14:03:07, 10m ago; for logs with rotate: (timestamps: true)
        #[arg(long, value_name = "TIME", value_parser = time_args::parse)]
        since: Option<PointInTime>,
        /// Follow the log
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the backoff of a program, and how close it is to its start limit
    Backoff {
        /// Its name
        program: String,
    },
    /// Wait until programs are up, or down
    Wait {
        /// Names or patterns; none means all
        #[arg(value_name = "PROGRAM")]
        programs: Vec<String>,
        /// What to wait for
        #[arg(long = "for", value_name = "STATE", default_value = "up")]
        goal: WaitStateArg,
        /// How long
        #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
        timeout: Millis,
    },
    /// Show events
    Events {
        /// After the event of this number, or from this time on: 42, 14:03:07, "2026-11-20 14:03", 10m ago
        #[arg(short, long, value_name = "MOMENT", value_parser = time_args::parse, default_value = "0")]
        since: PointInTime,
        /// Up to the event of this number, or this time
        #[arg(long, value_name = "MOMENT", value_parser = time_args::parse)]
        until: Option<PointInTime>,
        /// Only what concerns this program
        #[arg(short, long, value_name = "NAME")]
        program: Option<String>,
    },
    /// Print the whole state as JSON, as followers get it
    Snapshot,
    /// Show version, process id, urls and counts of gaggled itself
    Status,
    /// Show what a changed configuration would do, without doing it
    Plan {
        /// The configuration; by default the one that gaggled was started with
        file: Option<PathBuf>,
    },
    /// Apply a changed configuration, whole or not at all; unchanged programs are not touched
    Reload {
        /// The configuration; by default the one that gaggled was started with
        file: Option<PathBuf>,
        /// How long to wait until gaggled has restarted with it
        #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
        timeout: Millis,
    },
    /// Hand over to another version of gaggled; programs keep running
    Upgrade {
        /// The binary; by default the one at the path that gaggled was started from
        binary: Option<PathBuf>,
        /// How long to wait until it has taken over
        #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
        timeout: Millis,
    },
    /// Stop everything, dependents first, and end gaggled
    Shutdown {
        /// Do not wait until everything has stopped
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(short, long, value_name = "TIME", value_parser = time_args::span, default_value = "30s")]
        timeout: Millis,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let url = match arguments.place.control() {
        Ok(url) => url,
        Err(nowhere) => {
            nowhere.print();
            return ExitCode::from(nowhere.code());
        }
    };
    let controller = Controller { url, json: arguments.json };
    match run(&controller, arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::Output(error)) => output::end(Err(error)),
        Err(failure) => {
            eprintln!("Error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Carries out the command.
fn run(controller: &Controller, command: Command) -> Result<(), CommandError> {
    let wait = |chosen: &TargetArgs| if chosen.no_wait { Millis(0) } else { chosen.timeout };
    match command {
        Command::Up(chosen) => controller.change(wait(&chosen), Action::Up(chosen.selection())),
        Command::Down(chosen) => controller.change(wait(&chosen), Action::Down(chosen.selection())),
        Command::Restart(chosen) => controller.change(wait(&chosen), Action::Restart(chosen.selection())),
        Command::Tell { group, level, no_wait, timeout } => {
            let timeout_ms = Some(timeout);
            let waits = if no_wait { Millis(0) } else { timeout };
            controller.change(waits, Action::Tell { group, level, wait: !no_wait, timeout_ms })
        }
        Command::Signal { signal, programs } => controller.change(Millis(0), Action::Signal { programs, signal }),
        Command::Wait { programs, goal, timeout } => {
            let goal = match goal {
                WaitStateArg::Up => WaitState::Up,
                WaitStateArg::Down => WaitState::Down,
            };
            controller.change(timeout, Action::Wait { programs, goal, timeout_ms: Some(timeout) })
        }
        Command::Dump { programs, tree, at } => controller.dump(&programs, tree, at),
        Command::Logs { program, lines, since, follow } => controller.logs(&program, lines, since, follow),
        Command::Backoff { program } => controller.backoff(&program),
        Command::Why { program, at } => controller.why(program, at),
        Command::Events { since, until, program } => controller.events(since, until, program),
        Command::Plan { file } => controller.plan(file),
        Command::Reload { file, timeout } => controller.reload(file, timeout),
        Command::Upgrade { binary, timeout } => controller.upgrade(binary, timeout),
        Command::Snapshot => controller.snapshot(),
        Command::Status => controller.status(),
        Command::Shutdown { no_wait, timeout } => controller.shutdown((!no_wait).then_some(timeout)),
    }
}
