//! The daemon.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use gaggled_tools::{
    VERSION,
    daemon::{BAD_CONFIGURATION, System},
    import, output,
};

/// Runs programs that depend on each other
///
/// Exit status: 0 everything has stopped as asked; 1 the configuration cannot be used; 2 the arguments cannot be used;
/// 3 programs could not be ended; 100 gaggled cannot work here, for instance because another one already does.
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

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print a configuration of another program as one of gaggled
    Import {
        /// The program that the file is for
        format: import::Format,
        /// The file
        file: PathBuf,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Import { format, file }) => import::run(format, &file),
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
        None => {
            let path = arguments.config.unwrap_or_default();
            let Some(system) = System::check(&path, arguments.no_interrupt) else {
                return ExitCode::from(BAD_CONFIGURATION);
            };
            if arguments.test {
                let (programs, dependencies) = system.size();
                let summary = format!("{}: ok, {programs} programs, {dependencies} dependencies", path.display());
                return output::end(output::line(&summary));
            }
            system.run()
        }
    }
}
