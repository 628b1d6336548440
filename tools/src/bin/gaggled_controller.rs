//! Looks at a running gaggled, and tells it what to do.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gaggled_core::{
    command::Selection,
    ids::{EpochId, Seq},
    plan::Plan,
    state::State,
    time::Millis,
    wire::{Action, ErrorCode, Goal, GroupView, Moment, Reply, ReplyError, Request},
};
use gaggled_gateways::call::{CallError, Caller};
use gaggled_tools::{
    VERSION,
    address::Where,
    backoff, dump, logger,
    logs::{self, Wanted},
    output, render, when,
};
use serde_json::Value;

/// Looks at a running gaggled, and tells it what to do
///
/// Without -u and -c it looks at `GAGGLED_CONTROL_URL`, and then at the default place. PROGRAM is the name of a program or
/// a group, or a pattern such as 'web-*'; none means everything. Exit status: 0 done; 1 refused or failed; 2 the arguments
/// cannot be used, or no such group or level; 3 no such program; 4 gaggled cannot be reached; 5 not in time.
#[derive(Parser)]
#[command(name = "gaggled_controller", version = VERSION)]
struct Arguments {
    #[command(flatten)]
    place: Where,

    /// Print JSON
    #[arg(short, long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

/// A time on the command line: with a unit, or a number of milliseconds.
fn span(text: &str) -> Result<Millis, String> {
    text.parse().map(Millis).or_else(|_| Millis::parse(text))
}

#[derive(Args, Clone)]
struct Chosen {
    /// Names or patterns; none means all
    #[arg(value_name = "PROGRAM")]
    programs: Vec<String>,

    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,

    /// How long to wait, for instance 500ms or 2m
    #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
    timeout: Millis,
}

impl Chosen {
    fn selection(self) -> Selection {
        Selection { programs: self.programs, wait: !self.no_wait, timeout_ms: Some(self.timeout) }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Goals {
    Up,
    Down,
}

#[derive(Subcommand)]
enum Command {
    /// Start programs, and keep them started
    Up(Chosen),
    /// Stop programs, and keep them stopped
    Down(Chosen),
    /// Stop programs, and start them again
    Restart(Chosen),
    /// Move a group to a level: what does not run there stops, and then what does starts, in order
    Tell {
        /// The group
        group: String,
        /// The level; 'restart' restarts the group
        level: String,
        /// Do not wait until it is there
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
        timeout: Millis,
    },
    /// Send a signal to programs that are up: TERM and KILL to all their processes, others to the main one
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
        /// As it was after an event, or at a time: 42, 14:03:07, "2026-11-20 14:03", 10m ago
        #[arg(long, value_name = "MOMENT", value_parser = when::parse)]
        at: Option<Moment>,
    },
    /// Tell why a program is as it is
    Why {
        /// Its name
        program: String,
        /// Why it was as it was after an event, or at a time
        #[arg(long, value_name = "MOMENT", value_parser = when::parse)]
        at: Option<Moment>,
    },
    /// Show what a program has written to its log
    Logs {
        /// Its name
        program: String,
        /// How many of the last lines
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
        lines: usize,
        /// Only lines from this time on: 14:03:07, 10m ago; for logs with rotate: (stamp: true)
        #[arg(long, value_name = "TIME", value_parser = when::parse)]
        since: Option<Moment>,
        /// Go on with what is added
        #[arg(short, long)]
        follow: bool,
    },
    /// Tell how the starts of a program are spaced, and when it is given up
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
        goal: Goals,
        /// How long
        #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
        timeout: Millis,
    },
    /// Show what has happened
    Events {
        /// After the event of this number, or from this time on: 42, 14:03:07, "2026-11-20 14:03", 10m ago
        #[arg(short, long, value_name = "MOMENT", value_parser = when::parse, default_value = "0")]
        since: Moment,
        /// Up to the event of this number, or this time
        #[arg(long, value_name = "MOMENT", value_parser = when::parse)]
        until: Option<Moment>,
        /// Only what concerns this program
        #[arg(short, long, value_name = "NAME")]
        program: Option<String>,
    },
    /// Print the whole state, as followers get it
    Snapshot,
    /// Show what gaggled itself is and does
    Status,
    /// Show what another configuration would change, and change nothing
    Plan {
        /// The configuration; the one that gaggled was started with if it is not given
        file: Option<PathBuf>,
    },
    /// Take another configuration, whole or not at all; what has not changed is not touched
    Reload {
        /// The configuration; the one that gaggled was started with if it is not given
        file: Option<PathBuf>,
        /// How long to wait until gaggled has begun anew with it
        #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
        timeout: Millis,
    },
    /// Go on as another version of gaggled; no program notices
    Upgrade {
        /// The binary; the one that stands where gaggled was started from if it is not given
        binary: Option<PathBuf>,
        /// How long to wait until it has taken over
        #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
        timeout: Millis,
    },
    /// Stop everything, dependents first, and end gaggled
    Shutdown {
        /// Do not wait until everything has stopped
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(short, long, value_name = "TIME", value_parser = span, default_value = "30s")]
        timeout: Millis,
    },
}

/// Why a command was not done.
enum Failure {
    Call(CallError),
    Refused(ReplyError),
    Garbled(String),
    Output(std::io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Call(CallError::Unreachable { .. }) => 4,
            Self::Call(CallError::Silent { .. }) => 5,
            Self::Refused(error) => match error.code {
                ErrorCode::NoSuchGroup | ErrorCode::NoSuchLevel => 2,
                ErrorCode::NoSuchProgram => 3,
                ErrorCode::TimedOut => 5,
                ErrorCode::BadRequest
                | ErrorCode::BadVersion
                | ErrorCode::Forbidden
                | ErrorCode::ShuttingDown
                | ErrorCode::Failed
                | ErrorCode::Busy => 1,
            },
            Self::Call(CallError::Garbled { .. }) | Self::Garbled(_) | Self::Output(_) => 1,
        }
    }
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
    match controller.run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => output::end(Err(error)),
        Err(failure) => {
            match &failure {
                Failure::Call(error) => eprintln!("Error: {error}"),
                Failure::Refused(error) => eprintln!("Error: {}", error.message),
                Failure::Garbled(why) => eprintln!("Error: the answer of gaggled is not understood: {why}"),
                Failure::Output(_) => {}
            }
            ExitCode::from(failure.code())
        }
    }
}

struct Controller {
    url: String,
    json: bool,
}

impl Controller {
    fn run(&self, command: Command) -> Result<(), Failure> {
        let wait = |chosen: &Chosen| if chosen.no_wait { Millis(0) } else { chosen.timeout };
        match command {
            Command::Up(chosen) => self.change(wait(&chosen), Action::Up(chosen.selection())),
            Command::Down(chosen) => self.change(wait(&chosen), Action::Down(chosen.selection())),
            Command::Restart(chosen) => self.change(wait(&chosen), Action::Restart(chosen.selection())),
            Command::Tell { group, level, no_wait, timeout } => {
                let timeout_ms = Some(timeout);
                let waits = if no_wait { Millis(0) } else { timeout };
                self.change(waits, Action::Tell { group, level, wait: !no_wait, timeout_ms })
            }
            Command::Signal { signal, programs } => self.change(Millis(0), Action::Signal { programs, signal }),
            Command::Wait { programs, goal, timeout } => {
                let goal = match goal {
                    Goals::Up => Goal::Up,
                    Goals::Down => Goal::Down,
                };
                self.change(timeout, Action::Wait { programs, goal, timeout_ms: Some(timeout) })
            }
            Command::Dump { programs, tree, at } => self.dump(&programs, tree, at),
            Command::Logs { program, lines, since, follow } => self.logs(&program, lines, since, follow),
            Command::Backoff { program } => self.backoff(&program),
            Command::Why { program, at } => self.why(program, at),
            Command::Events { since, until, program } => self.events(since, until, program),
            Command::Plan { file } => self.plan(file),
            Command::Reload { file, timeout } => self.reload(file, timeout),
            Command::Upgrade { binary, timeout } => self.upgrade(binary, timeout),
            Command::Snapshot => self.show(&self.call(Action::Snapshot, Millis(0))?),
            Command::Status => self.status(),
            Command::Shutdown { no_wait, timeout } => self.shutdown((!no_wait).then_some(timeout)),
        }
    }

    fn call(&self, action: Action, wait: Millis) -> Result<Value, Failure> {
        let caller = Caller::dial(&self.url).map_err(Failure::Call)?;
        Self::ask(&caller, action, wait)
    }

    /// Asks. The id makes a request that is sent twice act once.
    fn ask(caller: &Caller, action: Action, wait: Millis) -> Result<Value, Failure> {
        Self::ask_within(caller, action, Caller::TIMEOUT + Duration::from_millis(wait.0))
    }

    fn ask_within(caller: &Caller, action: Action, within: Duration) -> Result<Value, Failure> {
        let id = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        match caller.call(&Request::new(id, action), within).map_err(Failure::Call)? {
            Reply { ok: true, body, .. } => match body {
                Some(body) => serde_json::from_str(body.get()).map_err(|why| Failure::Garbled(why.to_string())),
                None => Ok(Value::Null),
            },
            Reply { error: Some(error), .. } => Err(Failure::Refused(error)),
            Reply { .. } => Err(Failure::Garbled("neither done nor refused".to_owned())),
        }
    }

    /// A command that has nothing to show but that it was done.
    fn change(&self, wait: Millis, action: Action) -> Result<(), Failure> {
        let body = self.call(action, wait)?;
        if self.json { self.show(&body) } else { Ok(()) }
    }

    fn show(&self, body: &Value) -> Result<(), Failure> {
        let text = if self.json { body.to_string() } else { format!("{body:#}") };
        self.print(&text)
    }

    fn logs(&self, program: &str, lines: usize, since: Option<Moment>, follow: bool) -> Result<(), Failure> {
        let refused = |code, message| Failure::Refused(ReplyError { code, message });
        if self.json {
            let why = "a log is text, and has no JSON: leave --json out".to_owned();
            return Err(refused(ErrorCode::BadRequest, why));
        }
        let status = self.call(Action::Status, Millis(0))?;
        let since = match since {
            Some(Moment::Seq(_)) => {
                let why = "a log knows times and no numbers of events".to_owned();
                return Err(refused(ErrorCode::BadRequest, why));
            }
            Some(Moment::Time(time)) => Some(time),
            None => None,
        };
        let state = Path::new(status["state"].as_str().unwrap_or_default());
        let outlets = logger::list(state).map_err(|error| {
            refused(ErrorCode::Failed, format!("{}: which log is whose cannot be read: {error}", state.display()))
        })?;
        if !outlets.iter().any(|outlet| outlet.program == program) {
            return Err(refused(ErrorCode::NoSuchProgram, format!("there is no program \"{program}\"")));
        }
        logs::show(&outlets, program, Wanted { lines, since, follow }).map_err(|why| refused(ErrorCode::Failed, why))
    }

    fn backoff(&self, program: &str) -> Result<(), Failure> {
        let page = Action::Dump { programs: vec![program.to_owned()], from: 0, limit: None, at: None };
        let now = self.call(page, Millis(0))?;
        let state = self.call(Action::Snapshot, Millis(0))?;
        let state: State = serde_json::from_value(state).map_err(|why| Failure::Garbled(why.to_string()))?;
        let Some(id) = state.graph.names().get(program).copied() else {
            let message = format!("there is no program \"{program}\"");
            return Err(Failure::Refused(ReplyError { code: ErrorCode::NoSuchProgram, message }));
        };
        let wait = now["programs"][0]["wait_ms"].as_u64().filter(|_| state.programs[id].not_before.is_some());
        if self.json {
            return self.show(&backoff::body(&state, id, wait));
        }
        self.print(&backoff::in_words(&state, id, wait))
    }

    fn dump(&self, programs: &[String], tree: bool, at: Option<Moment>) -> Result<(), Failure> {
        let caller = Caller::dial(&self.url).map_err(Failure::Call)?;
        let page = |from| Action::Dump { programs: programs.to_vec(), from, limit: None, at };
        let mut body = Self::ask(&caller, page(0), Millis(0))?;
        // What does not fit on one page is put together here.
        while let Some(from) = body["next"].as_u64() {
            let from = usize::try_from(from).map_err(|why| Failure::Garbled(why.to_string()))?;
            let mut more = Self::ask(&caller, page(from), Millis(0))?;
            for list in ["programs", "dependencies"] {
                let more = more[list].as_array_mut().map(std::mem::take).unwrap_or_default();
                body[list].as_array_mut().into_iter().for_each(|all| all.extend(more.iter().cloned()));
            }
            body["next"] = more["next"].take();
        }
        if let Some(body) = body.as_object_mut() {
            body.remove("next");
        }
        if self.json {
            return self.show(&body);
        }
        let dump: dump::Dump = serde_json::from_value(body).map_err(|why| Failure::Garbled(why.to_string()))?;
        let coloured = std::io::stdout().is_terminal();
        let text = if tree { dump::tree(&dump, true) } else { dump::table(&dump, coloured) };
        let groups = dump::groups(&dump.groups);
        let groups = if groups.is_empty() { groups } else { format!("{groups}\n\n") };
        self.print(&format!("{text}\n\n{groups}{}", dump::summary(&dump)))
    }

    fn why(&self, program: String, at: Option<Moment>) -> Result<(), Failure> {
        let body = self.call(Action::Why { program, at }, Millis(0))?;
        if self.json {
            return self.show(&body);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (phase, reason) = (text(&body["state"]["phase"]), text(&body["state"]["reason"]));
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        let is = if at.is_some() { "was" } else { "is" };
        let mut lines = vec![format!("{} {is} {phase}{reason}", text(&body["program"]))];
        for (number, chain) in body["chains"].as_array().into_iter().flatten().enumerate() {
            lines.push(if number == 0 { String::new() } else { "\nbefore that".to_owned() });
            for (depth, link) in chain.as_array().into_iter().flatten().enumerate() {
                let because = if depth == 0 { "" } else { "because " };
                let time: Option<jiff::Timestamp> = link["time"].as_str().and_then(|time| time.parse().ok());
                let wall = gaggled_core::time::WallTime(time.map_or(0, jiff::Timestamp::as_microsecond));
                let time = render::date_time(wall);
                lines.push(format!("  {time} {:>6}  {because}{}", link["seq"], text(&link["words"])));
                if let Some(origin) = link["origin"].as_str() {
                    lines.push(format!("  {:>30}  and {origin}", ""));
                }
            }
        }
        lines.retain(|line| !line.is_empty());
        self.print(&lines.join("\n"))
    }

    fn events(&self, since: Moment, until: Option<Moment>, program: Option<String>) -> Result<(), Failure> {
        let caller = Caller::dial(&self.url).map_err(Failure::Call)?;
        let (mut after, from) = match since {
            Moment::Seq(seq) => (seq, None),
            Moment::Time(time) => (Seq(0), Some(time)),
        };
        let (last, until) = match until {
            Some(Moment::Seq(seq)) => (seq.0, None),
            Some(Moment::Time(time)) => (u64::MAX, Some(time)),
            None => (u64::MAX, None),
        };
        let mut epoch = None;
        loop {
            let action = Action::Events { epoch, since: after, limit: None, program: program.clone(), from, until };
            let body = Self::ask(&caller, action, Millis(0))?;
            for event in body["events"].as_array().into_iter().flatten() {
                if event["seq"].as_u64() > Some(last) {
                    return Ok(());
                }
                self.print(&if self.json { event.to_string() } else { render::raw_line(event) })?;
            }
            match body["next"].as_u64() {
                Some(next) => (after, epoch) = (Seq(next), body["next_epoch"].as_u64().map(EpochId)),
                None => return Ok(()),
            }
        }
    }

    fn plan(&self, file: Option<PathBuf>) -> Result<(), Failure> {
        let body = self.call(Action::Plan { file: file.map(|file| absolute(&file)) }, Millis(0))?;
        self.show_plan(body)
    }

    fn show_plan(&self, body: Value) -> Result<(), Failure> {
        if self.json {
            return self.show(&body);
        }
        let plan: Plan = serde_json::from_value(body).map_err(|why| Failure::Garbled(why.to_string()))?;
        self.print(&dump::plan(&plan))
    }

    fn reload(&self, file: Option<PathBuf>, timeout: Millis) -> Result<(), Failure> {
        let body = self.renew(Action::Reload { file: file.map(|file| absolute(&file)) }, timeout)?;
        self.show_plan(body)
    }

    fn upgrade(&self, binary: Option<PathBuf>, timeout: Millis) -> Result<(), Failure> {
        let body = self.renew(Action::Upgrade { binary: binary.map(|binary| absolute(&binary)) }, timeout)?;
        let after = self.call(Action::Status, Millis(0))?;
        let (wanted, is) = (body["to"].as_str().unwrap_or_default(), after["version"].as_str().unwrap_or_default());
        if wanted != is {
            return Err(Failure::Garbled(format!("gaggled {wanted} did not come up, and gaggled {is} goes on")));
        }
        if self.json { self.show(&body) } else { self.print(&format!("gaggled {is} has taken over")) }
    }

    /// Asks for another life, and waits until it answers: what this one has no time to answer is sent again to the next.
    fn renew(&self, action: Action, timeout: Millis) -> Result<Value, Failure> {
        let caller = Caller::dial(&self.url).map_err(Failure::Call)?;
        let body = Self::ask(&caller, action, timeout)?;
        match body["controlurl"].as_str().filter(|url| *url != self.url) {
            Some(url) => Self::ask(&Caller::dial_whenever(url).map_err(Failure::Call)?, Action::Status, timeout)?,
            None => Self::ask(&caller, Action::Status, timeout)?,
        };
        Ok(body)
    }

    fn status(&self) -> Result<(), Failure> {
        let body = self.call(Action::Status, Millis(0))?;
        if self.json {
            return self.show(&body);
        }
        let uptime = Millis(body["uptime_ms"].as_u64().unwrap_or(0));
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let ending = if body["shutting_down"] == Value::Bool(true) { ", shutting down" } else { "" };
        let groups: Vec<GroupView> = serde_json::from_value(body["groups"].clone()).unwrap_or_default();
        let groups = if groups.is_empty() { String::new() } else { format!("{}\n", dump::groups(&groups)) };
        self.print(&format!(
            "gaggled {} with pid {} has run for {uptime}{ending}\n{} of {} programs are up\n{groups}last event {} of epoch {}\nevents  {}\ncontrol {}",
            text("version"), body["pid"], body["up"], body["programs"], body["seq"], body["epoch"], text("eventurl"), text("controlurl"),
        ))
    }

    fn shutdown(&self, wait: Option<Millis>) -> Result<(), Failure> {
        let action = Action::Shutdown { wait: wait.is_some(), timeout_ms: wait };
        self.change(wait.unwrap_or_default(), action)
    }

    fn print(&self, text: &str) -> Result<(), Failure> {
        let _ = self;
        output::line(text).map_err(Failure::Output)
    }
}

/// A path as gaggled finds it, wherever that runs.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
