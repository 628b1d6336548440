//! The gate from events to mail.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use gaggled_gateways::{
    follow::{Follower, StartPosition},
    smtp::MailSpool,
};
use gaggled_tools::{
    VERSION,
    common::{diagnostics, endpoints, gateway_log, host::host_name},
    smtpgate::MailGateway,
};

/// Send mail about programs of a running gaggled that go down and come up, as the configuration says
///
/// Exit status: 1 the configuration cannot be used; 2 the arguments cannot be used.
#[derive(Parser)]
#[command(name = "gaggled_smtpgate", version = VERSION)]
struct Arguments {
    /// The configuration, with a section gaggled.smtpgate
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Also log events that lead to no mail
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok((parsed, _)) = diagnostics::load(&arguments.config) else { return ExitCode::FAILURE };
    let settings = parsed.config.gaggled;
    let Some(config) = settings.smtpgate.clone() else {
        eprintln!("Error: {}: there is no section gaggled.smtpgate: add one", arguments.config.display());
        return ExitCode::FAILURE;
    };
    let urls = match endpoints::of_settings(&settings) {
        Ok(urls) => urls,
        Err(error) => {
            eprintln!("Error: {}: {error}", arguments.config.display());
            return ExitCode::FAILURE;
        }
    };
    let (logger, host) = (gateway_log::logger(arguments.verbose), host_name());
    let gate = endpoints::state_directory(&settings)
        .and_then(|directory| MailSpool::open(&directory).map_err(|error| error.to_string()))
        .and_then(|ledger| {
            let since =
                ledger.position().map(|position| StartPosition { epoch: Some(position.epoch), seq: position.seq });
            let follower = Follower::new(&urls.event, &urls.control, since).map_err(|error| error.to_string())?;
            MailGateway::new(&config, &host, follower, ledger, logger).map_err(|error| error.to_string())
        });
    match gate {
        Ok(gate) => gate.run(),
        Err(error) => {
            eprintln!("Error: {}: {error}", arguments.config.display());
            ExitCode::FAILURE
        }
    }
}
