//! Prints the events of a running gaggled.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use gaggled_core::{
    base::{
        ids::{EpochId, Seq},
        time::WallTime,
    },
    event::Envelope,
    protocol::View,
    state::State,
};
use gaggled_gateways::follow::{FollowEvent, Follower, StartPosition};
use gaggled_tools::{
    VERSION, common::endpoints::EndpointArgs, common::event_format, common::output, controller::state_format,
};
use globset::{Glob, GlobMatcher};

/// Print the events of a running gaggled, from now on or from an earlier event on
///
/// It waits for a gaggled that is not running yet, reconnects to one that comes back, and reports missed events. Exit
/// status: 0 its output was closed; 2 the arguments cannot be used; 4 the urls of gaggled are not known.
#[derive(Parser)]
#[command(name = "gaggled_listener", version = VERSION)]
struct Arguments {
    #[command(flatten)]
    place: EndpointArgs,

    /// The url of the control channel, if it cannot be found
    #[arg(long, value_name = "URL")]
    control: Option<String>,

    /// Print JSON, one event a line
    #[arg(short, long)]
    json: bool,

    /// Print only events of this program, or of those that match this pattern; may be given several times
    #[arg(short, long, value_name = "NAME")]
    program: Vec<String>,

    /// Begin after the event of this number, 0 for the first that is kept; EPOCH:SEQ also names its epoch
    #[arg(short, long, value_name = "SEQ", value_parser = since)]
    since: Option<StartPosition>,
}

fn since(text: &str) -> Result<StartPosition, String> {
    let number = |word: &str| word.parse::<u64>().map_err(|_| format!("\"{word}\" is not a number"));
    match text.split_once(':') {
        Some((epoch, seq)) => Ok(StartPosition { epoch: Some(EpochId(number(epoch)?)), seq: Seq(number(seq)?) }),
        None => Ok(StartPosition { epoch: None, seq: Seq(number(text)?) }),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let urls = match arguments.place.both(arguments.control.as_ref()) {
        Ok(urls) => urls,
        Err(nowhere) => {
            nowhere.print();
            return ExitCode::from(nowhere.code());
        }
    };
    let follower = match Follower::new(&urls.event, &urls.control, arguments.since) {
        Ok(follower) => follower,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(4);
        }
    };
    let programs: Result<Vec<GlobMatcher>, _> =
        arguments.program.iter().map(|word| Glob::new(word).map(|glob| glob.compile_matcher())).collect();
    let programs = match programs {
        Ok(programs) => programs,
        Err(error) => {
            eprintln!("Error: pattern is not understood: {error}");
            return ExitCode::from(2);
        }
    };
    let coloured = io::stdout().is_terminal() && !arguments.json;
    output::end(Listener { follower, programs, json: arguments.json, coloured }.run())
}

struct Listener {
    follower: Follower,
    /// Which programs are wanted; all if there is none.
    programs: Vec<GlobMatcher>,
    json: bool,
    coloured: bool,
}

impl Listener {
    /// Works until the output is closed.
    fn run(mut self) -> io::Result<()> {
        let mut first = true;
        loop {
            match self.follower.next(None) {
                FollowEvent::Synchronised { missed } => {
                    self.synchronised(first, missed)?;
                    first = false;
                }
                FollowEvent::Event(envelope, text) => self.event(&envelope, &text)?,
                FollowEvent::Past(text) => self.past(&text)?,
                FollowEvent::Silent if first => notice("waiting for gaggled"),
                FollowEvent::Silent => notice("no message from gaggled"),
                FollowEvent::Back => notice("gaggled is back"),
                FollowEvent::Garbled(why) => notice(&why),
                FollowEvent::Permits(_) | FollowEvent::Nothing => {}
            }
        }
    }

    fn synchronised(&self, first: bool, missed: bool) -> io::Result<()> {
        if missed {
            notice("some events were missed and are no longer kept; this is the state now");
        } else if !first {
            notice("gaggled has restarted; this is the state now");
        }
        let Some(state) = self.follower.state() else { return Ok(()) };
        for wanted in &self.programs {
            if !state.graph.programs.values().any(|policy| wanted.is_match(&*policy.name)) {
                notice(&format!("gaggled has no program \"{}\"", wanted.glob()));
            }
        }
        if self.json { Ok(()) } else { output::line(&summary(state)) }
    }

    fn event(&self, envelope: &Envelope, text: &str) -> io::Result<()> {
        let Some(state) = self.follower.state() else { return Ok(()) };
        let subject = state.graph.subject(&envelope.event).map(|id| &*state.graph.programs[id].name);
        let wanted = |name: &str| self.programs.iter().any(|wanted| wanted.is_match(name));
        if !self.programs.is_empty() && !subject.is_some_and(wanted) {
            return Ok(());
        }
        if self.json {
            return output::line(text);
        }
        output::line(&event_format::line(envelope, &state.graph, self.coloured))
    }

    /// An event about a program that no longer exists is shown as it was written.
    fn past(&self, text: &str) -> io::Result<()> {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(text) else { return Ok(()) };
        let name = event["program"].as_str();
        if !self.programs.is_empty()
            && !name.is_some_and(|name| self.programs.iter().any(|wanted| wanted.is_match(name)))
        {
            return Ok(());
        }
        if self.json { output::line(text) } else { output::line(&event_format::raw_line(&event)) }
    }
}

/// The line about the state that precedes the events.
fn summary(state: &State) -> String {
    let dump = View::at(state, state.at).dump(WallTime::default(), 0, usize::MAX);
    let dump = serde_json::to_value(&dump).and_then(serde_json::from_value::<state_format::Dump>);
    let counts = dump.map_or_else(|_| String::new(), |dump| state_format::summary(&dump));
    format!("following from event {}: {counts}", state.seq)
}

fn notice(text: &str) {
    eprintln!("-- {text}");
}
