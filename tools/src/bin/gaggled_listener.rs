//! Watches what happens.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use gaggled_core::{event::Envelope, ids::Seq, state::State, wire::View};
use gaggled_gateways::follow::{Follower, Heard};
use gaggled_tools::{VERSION, address::Where, dump, render};

/// Prints what happens in a running gaggled, from now on or from an event on
///
/// It waits for a gaggled that is not there, connects again to one that comes back, and says so when it has missed
/// something. Exit status: 0 its output was closed; 2 the arguments cannot be used; 4 it is not known where gaggled is.
#[derive(Parser)]
#[command(name = "gaggled_listener", version = VERSION)]
struct Arguments {
    #[command(flatten)]
    place: Where,

    /// The url of the control channel, if it cannot be found
    #[arg(long, value_name = "URL")]
    control: Option<String>,

    /// Print JSON, one event a line
    #[arg(short, long)]
    json: bool,

    /// Print only what concerns this program; may be given several times
    #[arg(short, long, value_name = "NAME")]
    program: Vec<String>,

    /// Begin after the event of this number, 0 for the first that is kept
    #[arg(short, long, value_name = "SEQ")]
    since: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let urls = match arguments.place.both(arguments.control.as_ref()) {
        Ok(urls) => urls,
        Err(nowhere) => {
            nowhere.print();
            return ExitCode::from(4);
        }
    };
    let follower = match Follower::new(&urls.event, &urls.control, arguments.since.map(Seq)) {
        Ok(follower) => follower,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(4);
        }
    };
    let listener = Listener { follower, coloured: std::io::stdout().is_terminal() && !arguments.json, arguments };
    listener.run();
    ExitCode::SUCCESS
}

struct Listener {
    follower: Follower,
    arguments: Arguments,
    coloured: bool,
}

impl Listener {
    /// Works until the output is closed.
    fn run(mut self) {
        let mut first = true;
        loop {
            let heard = self.follower.next(None);
            let go_on = match heard {
                Heard::Synchronised { missed } => {
                    let go_on = self.synchronised(first, missed);
                    first = false;
                    go_on
                }
                Heard::Event(envelope, text) => self.event(&envelope, &text),
                Heard::Silent if first => self.notice("waiting for gaggled"),
                Heard::Silent => self.notice("nothing is heard of gaggled"),
                Heard::Back => self.notice("gaggled is heard again"),
                Heard::Garbled(why) => self.notice(&why),
                Heard::Nothing => true,
            };
            if !go_on {
                return;
            }
        }
    }

    fn synchronised(&self, first: bool, missed: bool) -> bool {
        if missed {
            self.notice("some events were missed and are no longer kept; this is the state now");
        } else if !first {
            self.notice("gaggled has begun anew; this is the state now");
        }
        self.follower.state().is_none_or(|state| self.state(state))
    }

    /// Prints the state, so that the events that follow say something.
    fn state(&self, state: &State) -> bool {
        let dump = View::at(state, state.at).dump(gaggled_core::time::WallTime::default(), 0, usize::MAX);
        if self.arguments.json {
            return true;
        }
        let dump = serde_json::to_value(&dump).ok().and_then(|dump| serde_json::from_value::<dump::Dump>(dump).ok());
        dump.is_none_or(|dump| self.print(&format!("following from event {}: {}", state.seq, dump::summary(&dump))))
    }

    fn event(&self, envelope: &Envelope, text: &str) -> bool {
        let Some(state) = self.follower.state() else { return true };
        let subject = state.graph.subject(&envelope.event).map(|id| &*state.graph.programs[id].name);
        let wanted = &self.arguments.program;
        if !wanted.is_empty() && !subject.is_some_and(|name| wanted.iter().any(|wanted| wanted == name)) {
            return true;
        }
        if self.arguments.json {
            return self.print(text);
        }
        self.print(&render::line(envelope, &state.graph, self.coloured))
    }

    fn notice(&self, text: &str) -> bool {
        eprintln!("-- {text}");
        let _ = self;
        true
    }

    fn print(&self, line: &str) -> bool {
        let mut out = std::io::stdout().lock();
        let _ = self;
        writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    }
}
