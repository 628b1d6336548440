//! `gaggled simulate`: what would happen to a system if something failed, before it does.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use gaggled_core::{
    base::{
        ids::ProgramId,
        time::{Instant, Millis},
    },
    event::{Event, SystemEvent},
    graph::Graph,
    planning::simulate::{Fault, Impact, Scenario, Simulation},
    protocol::{describe_event, encode_event_with_state},
};

use crate::{
    common::{diagnostics, event_format, output, time_args},
    daemon::own_programs,
};

/// What is assumed.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// A program that is killed, and when: db@10s
    #[arg(long, value_name = "PROGRAM@TIME")]
    fail: Vec<String>,
    /// A program that ends at once whenever it is started, from when until when: db@10s..2m
    #[arg(long = "break", value_name = "PROGRAM@TIME..TIME")]
    broken: Vec<String>,
    /// How long to simulate
    #[arg(long, value_name = "TIME", value_parser = time_args::span, default_value = "5m")]
    until: Millis,
    /// The seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print events as JSON, a line each
    #[arg(long)]
    json: bool,
}

/// Exit status: there is no such program.
const NO_SUCH_PROGRAM: u8 = 3;
/// Exit status: the arguments are not understood.
const USAGE: u8 = 2;

/// Prints the timeline, and the effects of the faults.
pub fn run(arguments: &Arguments) -> ExitCode {
    let Ok((mut parsed, _)) = diagnostics::load(&arguments.config) else { return ExitCode::FAILURE };
    own_programs::add(&mut parsed.config, &arguments.config, None);
    let graph = parsed.config.graph();
    let scenario = match scenario(arguments, &graph) {
        Ok(scenario) => scenario,
        Err((code, why)) => {
            eprintln!("Error: {why}");
            return ExitCode::from(code);
        }
    };
    let simulation = Simulation::new(&graph, &scenario);
    let mut lines = Vec::new();
    let mut state = simulation.start.clone();
    for envelope in &simulation.envelopes {
        state.apply(envelope);
        if arguments.json {
            let after = state.graph.subject(&envelope.event).map(|program| (program, &state.programs[program]));
            lines.push(encode_event_with_state(envelope, &state.graph, after));
        } else {
            let why = event_format::because(&envelope.cause);
            let why = if why.is_empty() { why } else { format!("  ({why})") };
            if matches!(envelope.event, Event::System(SystemEvent::DaemonStarted { .. })) {
                continue;
            }
            let words = describe_event(envelope, &state.graph);
            lines.push(format!("{:>10} {:>5}  {words}{why}", seconds(envelope.monotonic), envelope.seq));
        }
    }
    if !arguments.json {
        if simulation.envelopes.len() >= Simulation::MOST {
            lines.push(format!("and so on: only the first {} events are shown", Simulation::MOST));
        }
        lines.push(String::new());
        let well = Simulation::new(&graph, &Scenario { faults: Vec::new(), ..scenario.clone() });
        lines.push(told(&simulation.impacts(&well, &scenario), &graph, &scenario));
    }
    output::end(output::line(&lines.join("\n")))
}

fn scenario(arguments: &Arguments, graph: &Graph) -> Result<Scenario, (u8, String)> {
    let names = graph.names();
    let program = |name: &str| -> Result<ProgramId, (u8, String)> {
        let id = names.get(name).copied();
        let id = id.ok_or_else(|| (NO_SUCH_PROGRAM, format!("there is no program \"{name}\"")))?;
        match &graph.programs[id].external {
            None => Ok(id),
            Some(external) => {
                let place = external.place();
                Err((
                    USAGE,
                    format!("{name} runs {place}: simulate its failure with the configuration of a node there"),
                ))
            }
        }
    };
    let moment = |text: &str| -> Result<Instant, (u8, String)> {
        time_args::span(text).map(|span| Instant::default() + span).map_err(|why| (USAGE, why))
    };
    let mut faults = Vec::new();
    for text in &arguments.fail {
        let (name, at) =
            text.rsplit_once('@').ok_or((USAGE, format!("--fail {text}: write PROGRAM@TIME, as in db@10s")))?;
        faults.push(Fault::Fail(program(name)?, moment(at)?));
    }
    for text in &arguments.broken {
        let parts = text.rsplit_once('@').and_then(|(name, span)| Some((name, span.split_once("..")?)));
        let (name, (from, to)) =
            parts.ok_or((USAGE, format!("--break {text}: write PROGRAM@TIME..TIME, as in db@10s..2m")))?;
        let until = if to.is_empty() { Instant::default() + arguments.until } else { moment(to)? };
        faults.push(Fault::Broken(program(name)?, moment(from)?, until));
    }
    let end = Instant::default() + arguments.until;
    for fault in &faults {
        let (program, at) = fault.begins();
        let name = &graph.programs[program].name;
        if at >= end {
            return Err((
                USAGE,
                format!(
                    "{name} would fail at {}, and the simulation ends at {}: give a longer --until",
                    seconds(at),
                    arguments.until
                ),
            ));
        }
        if let Fault::Broken(_, from, to) = fault
            && to <= from
        {
            return Err((
                USAGE,
                format!("{name} would be well again at {}, before it breaks at {}", seconds(*to), seconds(*from)),
            ));
        }
    }
    Ok(Scenario { faults, until: Instant::default() + arguments.until, seed: arguments.seed })
}

fn seconds(at: Instant) -> String {
    let millis = at.as_millis();
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

/// The programs that the faults affect, as a table.
fn told(impacts: &[Impact], graph: &Graph, scenario: &Scenario) -> String {
    if scenario.faults.is_empty() {
        return "Nothing fails. See what would happen if something did: --fail PROGRAM@TIME".to_owned();
    }
    if impacts.is_empty() {
        return "No other program notices.".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["PROGRAM", "STARTS", "NOT READY FOR", "READY AGAIN"]);
    for impact in impacts {
        let back = impact.back.map_or_else(|| "not before the end".to_owned(), |at| format!("at {}", seconds(at)));
        let name = &graph.programs[impact.program].name;
        table.add_row([name.to_string(), impact.starts.to_string(), impact.out.to_string(), back]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let untouched = graph.programs.len() - impacts.len();
    let rest = match untouched {
        1 => "1 other program does not notice.".to_owned(),
        untouched => format!("{untouched} other programs do not notice."),
    };
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    format!("{}\n\n{rest}", lines.join("\n"))
}
