//! The fuzz targets: every reader of external input, as a function of bytes that must neither panic nor take long. The
//! tests run a bounded number of inputs; `contrib/fuzz`, the `fuzz` binary of this crate, runs many.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, TcpListener},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use gaggled_actors::host::decode_reaped;
use gaggled_core::{
    base::{ids::EpochId, time::Millis},
    config::{Config, SmtpgateConfig},
    journal::{audit::JournalAudit, segment::Replay},
    protocol::{BusMessage, Reply, Request, decode_event},
    state::State,
};
use gaggled_gateways::smtp::{Delivery, QueuedMail};
use gaggled_tools::{
    common::time_args,
    daemon::subreaper::{HandoffFile, InheritedFds},
    offline::import::{Format, import_file},
};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sim::random::{Pick, Random};

/// A fuzz target: its name, which is also that of the folder of its corpus, and the function that takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 15] = [
    ("configuration", configuration),
    ("request", request),
    ("event", event),
    ("segment", segment),
    ("letter", letter),
    ("reaped", reaped),
    ("words", words),
    ("smtp", smtp),
    ("gaggled", |bytes| imported(Format::Gaggled, bytes)),
    ("cltab", |bytes| imported(Format::Cltab, bytes)),
    ("diprocd", |bytes| imported(Format::Diprocd, bytes)),
    ("plone", |bytes| imported(Format::Plone, bytes)),
    ("clusterit", |bytes| imported(Format::Clusterit, bytes)),
    ("supervisord", |bytes| imported(Format::Supervisord, bytes)),
    ("procfile", |bytes| imported(Format::Procfile, bytes)),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An accepted configuration can be printed, and the printed text is read as the same configuration.
fn configuration(bytes: &[u8]) {
    if let Ok(parsed) = Config::parse(&text(bytes)) {
        let graph = parsed.config.graph();
        let printed = parsed.config.print().expect("what was read can be printed");
        let again = Config::parse(&printed).expect("what was printed can be read");
        assert_eq!(again.config, parsed.config);
        assert_eq!(again.config.graph().programs.len(), graph.programs.len());
    }
}

fn request(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        assert!(serde_json::to_vec(&request).is_ok());
    }
    let _ = serde_json::from_slice::<Reply>(bytes);
}

fn event(bytes: &[u8]) {
    let _ = BusMessage::parse(bytes);
    let graph =
        Config::parse("(programs: {\"mount\": (command: \"a\"), \"web\": (command: \"b\"), \"db\": (command: \"c\")})");
    let graph = graph.expect("a configuration").config.graph();
    let names = graph.names();
    let mut state = State::new(graph.into(), EpochId(1));
    if let Ok(envelope) = decode_event(&text(bytes), &names, &state) {
        state.apply(&envelope);
    }
}

fn segment(bytes: &[u8]) {
    let Ok(mut replay) = Replay::open(bytes) else { return };
    let mut audit = JournalAudit::new(Millis(250));
    audit.begin(&replay.state, replay.head.lost_events);
    while let Some(Ok((envelope, _))) = replay.next_event() {
        audit.observe(&envelope);
    }
}

fn letter(bytes: &[u8]) {
    let _ = text(bytes).parse::<InheritedFds>();
    let file = File::from(memfd_create("letter", MFdFlags::MFD_CLOEXEC).expect("a memory file"));
    (&file).write_all(bytes).expect("memory can be written");
    let read = HandoffFile::read(&file).expect("it can be read");
    read.write(&file).expect("it can be written");
    assert_eq!(HandoffFile::read(&file).expect("it can be read").status, read.status);
}

fn reaped(bytes: &[u8]) {
    assert!(decode_reaped(bytes).count() <= bytes.len() / 12);
}

/// Short texts of command lines and configurations.
fn words(bytes: &[u8]) {
    let text = text(bytes);
    let _ = time_args::parse(&text);
    let _ = Millis::parse(&text);
    let _ = gaggled_core::process::Signal::parse(&text);
    let _ = gaggled_gateways::url::Url::parse(&text, &[]);
}

/// A mail server that sends these replies, whatever the client sends.
struct MailServer {
    replies: Arc<Mutex<Vec<u8>>>,
    delivery: Delivery,
}

thread_local! {
    static MAIL_SERVER: MailServer = MailServer::start();
}

impl MailServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let replies = Arc::new(Mutex::new(Vec::new()));
        let said = replies.clone();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let replies = said.lock().expect("no panic").clone();
                // The client may have closed the connection.
                let _ = client.write_all(&replies).and_then(|()| client.shutdown(Shutdown::Write));
                let _ = client.read_to_end(&mut Vec::new());
            }
        });
        let config = SmtpgateConfig { mx: "127.0.0.1".to_owned(), port: Some(port), ..SmtpgateConfig::default() };
        Self { replies, delivery: Delivery::new(&config, "localhost").expect("a configuration") }
    }
}

/// The replies of a mail server.
fn smtp(bytes: &[u8]) {
    let mail = QueuedMail {
        number: 1,
        subject: "a".to_owned(),
        from: Some("a@example.org".to_owned()),
        to: "b@example.org".to_owned(),
        text: "a mail".to_owned(),
        attempts: 0,
    };
    MAIL_SERVER.with(|server| {
        bytes.clone_into(&mut server.replies.lock().expect("no panic"));
        if let Err(error) = server.delivery.attempt(&mail) {
            assert!(!error.why.is_empty());
        }
    });
}

/// The result of a successful import can be printed as a configuration.
fn imported(format: Format, bytes: &[u8]) {
    let file = File::from(memfd_create("import", MFdFlags::MFD_CLOEXEC).expect("a memory file"));
    (&file).write_all(bytes).expect("memory can be written");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if let Ok(imported) = import_file(format, &path, None) {
        assert!(imported.config.print().is_ok());
    }
}

/// The corpus of a target: seeds for mutation, and inputs that were once findings.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).expect("a corpus").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("an input")).collect()
}

/// The greatest length of a mutated input, in bytes.
const LONGEST: usize = 64 << 10;

/// Tokens that have a meaning for the readers.
const DICTIONARY: [&[u8]; 24] = [
    b"(",
    b")",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"${",
    b"%(",
    b"0",
    b"-1",
    b"18446744073709551616",
    b"null",
    b"true",
    b"Some(",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"=",
];

/// Mutates an input of the corpus, or splices two of them.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let index = |random: &mut Random, length: usize| usize::try_from(random.below(length.max(1) as u64)).unwrap_or(0);
    let mut input = corpus[index(random, corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = index(random, input.len() + 1);
        let end = (at + index(random, 32)).min(input.len());
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = u8::try_from(random.below(256)).unwrap_or(0),
            2 => drop(input.drain(at..end)),
            3 => {
                let again: Vec<u8> = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            4 | 5 => {
                let word = random.pick(&DICTIONARY);
                input.splice(at..at, word.iter().copied());
            }
            6 => {
                let other = &corpus[index(random, corpus.len())];
                let from = index(random, other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let deep = b"[({".iter().copied().cycle().take(index(random, 300));
                input.splice(at..at, deep);
            }
        }
        input.truncate(LONGEST);
    }
    input
}
