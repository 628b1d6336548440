//! `gaggled graph`: the dependencies of a configuration, for people and for Graphviz; with their state if a gaggled runs.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use gaggled_core::{
    base::{
        ids::EpochId,
        time::{Millis, WallTime},
    },
    config::Config,
    graph::Condition,
    protocol::{Action, Request, View},
    state::State,
};
use gaggled_gateways::client::ControlClient;
use petgraph::{dot, graph::DiGraph};

use crate::{
    common::{diagnostics, endpoints, output},
    controller::state_format::{self, Dump, Row},
    daemon::own_programs,
};

/// What is drawn.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Print the dependencies for Graphviz: gaggled graph -c system.ron --dot | dot -Tsvg
    #[arg(long)]
    dot: bool,
}

/// How long a gaggled may take to send its state.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints the dependencies.
pub fn run(arguments: &Arguments) -> ExitCode {
    let Ok((mut parsed, _)) = diagnostics::load(&arguments.config) else { return ExitCode::FAILURE };
    own_programs::add(&mut parsed.config, &arguments.config, None);
    let url = endpoints::of_settings(&parsed.config.gaggled).ok().map(|urls| urls.control);
    let running = url.and_then(|url| state_of(&url));
    let graph = parsed.config.graph();
    // Another configuration may be in force: then its state says nothing about this one.
    let running = running.filter(|state| *state.graph == graph);
    let has_state = running.is_some();
    let state = running.unwrap_or_else(|| State::new(Arc::new(graph), EpochId(0)));
    let view = View::at(&state, state.at).dump(WallTime(0), 0, usize::MAX);
    let dump = serde_json::to_value(view).and_then(serde_json::from_value::<Dump>);
    let dump = dump.map(|dump| mark_own(dump, &parsed.config));
    match dump {
        Ok(dump) if arguments.dot => output::end(output::line(&to_dot(&dump, has_state))),
        Ok(dump) => output::end(output::line(&state_format::tree(&dump, has_state))),
        Err(why) => {
            eprintln!("Error: the dependencies cannot be drawn: {why}");
            ExitCode::FAILURE
        }
    }
}

fn state_of(url: &str) -> Option<State> {
    let caller = ControlClient::dial(url).ok()?;
    let reply = caller.call(&Request::new("graph", Action::Snapshot), PATIENCE).ok()?;
    serde_json::from_str(reply.body?.get()).ok()
}

fn to_dot(dump: &Dump, has_state: bool) -> String {
    let mut graph: DiGraph<&Row, String> = DiGraph::new();
    let nodes: Vec<_> = dump.programs.iter().map(|row| graph.add_node(row)).collect();
    let node = |name: &str| dump.programs.iter().position(|row| row.program == name).map(|at| nodes[at]);
    for dependency in &dump.dependencies {
        if let (Some(of), Some(on)) = (node(&dependency.dependent), node(&dependency.dependency)) {
            let until = match dependency.condition {
                Condition::Started => None,
                Condition::Ready => Some("ready".to_owned()),
                Condition::Completed => Some("completed".to_owned()),
            };
            let delay = (dependency.delay_ms > Millis(0)).then(|| format!("after {}", dependency.delay_ms));
            let rules: Vec<String> = until.into_iter().chain(delay).collect();
            let style = if dependency.propagate { "bold" } else { "solid" };
            graph.add_edge(of, on, format!("label = \"{}\", style = {style}", rules.join(", ")));
        }
    }
    let of_edge = |_, dependency: petgraph::graph::EdgeReference<'_, String>| dependency.weight().clone();
    let of_node = |_, (_, row): (_, &&Row)| {
        let colour =
            if has_state { format!(", style = filled, fillcolor = {}", row.colour_name()) } else { String::new() };
        format!("label = \"{}\", shape = box{colour}", row.program)
    };
    let nothing = [dot::Config::NodeNoLabel, dot::Config::EdgeNoLabel];
    let drawn = dot::Dot::with_attr_getters(&graph, &nothing, &of_edge, &of_node);
    format!("{drawn:?}").trim_end().to_owned()
}

/// Marks the programs that gaggled has added, in their names.
fn mark_own(mut dump: Dump, config: &Config) -> Dump {
    let programs = dump.programs.iter_mut().map(|row| &mut row.program);
    let dependencies = dump.dependencies.iter_mut().flat_map(|one| [&mut one.dependent, &mut one.dependency]);
    for name in programs.chain(dependencies).filter(|name| own_programs::is_own(config, name)) {
        name.push_str(" (added by gaggled)");
    }
    dump
}
