//! Imports from supervisord and from a Procfile: every setting that can be kept is kept, and the others are noted.

use std::fs;

use gaggled_core::{
    base::time::Millis,
    config::{Config, ProgramConfig},
    graph::Mode,
};
use gaggled_tests::{
    harness::{Daemon, DaemonOptions, directory},
    import_harness::{import, imported, said},
};

/// The example of supervisord's manual, put together from its sections, with common additions.
const SUPERVISORD: &str = r#"; a comment
[unix_http_server]
file = /tmp/supervisor.sock            ; the path to the socket file

[supervisord]
logfile = /tmp/supervisord.log
environment = KEY1="value1",KEY2="value, with a comma"

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[program:cat]
command=/bin/cat
process_name=%(program_name)s
numprocs=1
directory=/tmp
umask=022
priority=999
autostart=true
autorestart=unexpected
startsecs=10
startretries=3
exitcodes=0
stopsignal=TERM
stopwaitsecs=10
stopasgroup=false
killasgroup=false
user=chrism
redirect_stderr=false
stdout_logfile=/a/path
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=10
stdout_capture_maxbytes=1MB
stdout_events_enabled=false
stderr_logfile=/a/path
environment=A="1",B="2",C='it is'
serverurl=AUTO

[program:worker]
command=/bin/sh -c "exec sleep %(process_num)d" --name=%(program_name)s_%(process_num)02d --path=%%x
numprocs=2
numprocs_start=1
process_name=%(program_name)s_%(process_num)02d
autostart=false
autorestart=false
stopsignal=QUIT
stopwaitsecs=60
exitcodes=0,2
redirect_stderr=true
stdout_logfile=NONE
colour=blue

[group:site]
programs=cat,other

[eventlistener:theeventlistenername]
command=/bin/eventlistener

[include]
files = conf.d/*.conf none/*.conf
"#;

fn read(text: &str) -> Config {
    Config::parse(text).expect("it is correct").config
}

fn program<'a>(config: &'a Config, name: &str) -> &'a ProgramConfig {
    config.programs.get(name).unwrap_or_else(|| panic!("no program {name}"))
}

#[test]
fn a_supervisord_is_imported_with_what_it_includes() {
    let directory = directory();
    let file = directory.path().join("supervisord.conf");
    fs::write(&file, SUPERVISORD).expect("a file");
    fs::create_dir(directory.path().join("conf.d")).expect("a directory");
    let other = "[program:other]\ncommand=%(here)s/run\n  --long\n  --longer\nstdout_logfile=AUTO\nautorestart=true\n";
    fs::write(directory.path().join("conf.d/other.conf"), other).expect("a file");
    let output = import("supervisord", &file);
    let (code, notes) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(code, Some(0), "{notes}");
    let config = read(&String::from_utf8_lossy(&output.stdout));
    let names: Vec<&str> = config.programs.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["cat", "worker_01", "worker_02", "other"]);
    let cat = program(&config, "cat");
    assert_eq!(
        (cat.command.as_deref(), cat.user.as_deref(), cat.log.as_deref()),
        (Some("/bin/cat"), Some("chrism"), Some("/a/path"))
    );
    assert_eq!(
        (cat.group.as_deref(), cat.wd.as_deref(), cat.umask.map(|umask| umask.0)),
        (Some("site"), Some("/tmp"), Some(0o022))
    );
    assert_eq!(
        (cat.env.get("A").map(String::as_str), cat.env.get("C").map(String::as_str)),
        (Some("1"), Some("it is"))
    );
    assert_eq!(cat.start_limit.map(|limit| limit.burst), Some(4));
    assert_eq!((cat.mode, cat.retry), (Some(Mode::Once), true), "an expected exit code leaves it down");
    assert_eq!(cat.rotate.map(|rotate| (rotate.size.0, rotate.max_files)), Some((1 << 20, 10)));
    let worker = program(&config, "worker_02");
    assert_eq!(worker.argv, ["-c", "exec sleep 2", "--name=worker_02", "--path=%x"]);
    assert_eq!((worker.mode, worker.autostart, worker.killwait), (Some(Mode::Once), false, Some(Millis(60_000))));
    assert_eq!((worker.success_exit_codes.as_slice(), worker.log.as_deref()), (&[0, 2][..], Some("/dev/null")));
    assert_eq!(worker.stop_command.as_deref(), Some("kill -s QUIT \"$GAGGLED_PROGRAM_PID\""));
    let other = program(&config, "other");
    assert_eq!(other.command, Some(format!("{}/conf.d/run", directory.path().display())));
    assert_eq!(
        (other.argv.as_slice(), other.log.as_deref()),
        (&["--long".to_owned(), "--longer".to_owned()][..], None)
    );
    assert_eq!(config.gaggled.env.get("KEY2").map(String::as_str), Some("value, with a comma"));
    for said in [
        "supervisord.conf:18: priority of cat is left out",
        "stderr_logfile of cat is left out: a program has one log",
        "colour of worker is no setting",
        "[eventlistener:theeventlistenername] is left out",
        "none/*.conf",
    ] {
        assert!(notes.contains(said), "{said}: {notes}");
    }
}

/// Unusual syntax that supervisord accepts.
const FOUND_IN_THE_WILD: &str = "\u{feff}[supervisord]
environment = FOO=\"/y\"

[program:indented]
      COMMAND = /bin/echo %(ENV_FOO)s %(ENV_OWN)s
      directory = /tmp
      environment = OWN='o',FOO='/x';
          MORE=m
      autostart = False
      autorestart = yes
      startsecs = 0
      stopsignal = INT
      stopasgroup = 1
      stdout_logfile = none
      stdout_logfile_maxbytes = 1MB

[program:both]
command = /bin/sleep 1000
numprocs = 2
process_name = both_%(process_num)02x
stdout_logfile = /tmp/log
stdout_logfile_backups = 0
startretries = 10000
autorestart = true

[program:both]
priority = 5

[group:indented]
programs = indented, nobody
priority = 3

[group:other]
programs = indented
";

#[test]
fn what_people_write_is_read_as_supervisord_reads_it() {
    let directory = directory();
    let file = directory.path().join("wild.conf");
    fs::write(&file, FOUND_IN_THE_WILD).expect("a file");
    let output = import("supervisord", &file);
    let (code, notes) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(code, Some(0), "{notes}");
    let config = read(&String::from_utf8_lossy(&output.stdout));
    let indented = program(&config, "indented");
    assert_eq!(
        (indented.argv.as_slice(), indented.wd.as_deref()),
        (&["/x".to_owned(), "o".to_owned()][..], Some("/tmp"))
    );
    assert_eq!((indented.autostart, indented.mode, indented.log.as_deref()), (false, None, Some("/dev/null")));
    assert_eq!((indented.stop_signal.as_deref(), indented.stop_command.as_deref()), (Some("INT"), None));
    assert_eq!(indented.start_limit.and_then(|limit| limit.reset), Some(Millis(0)), "no start is a bad one");
    assert_eq!(indented.group.as_deref(), Some("group.indented"));
    let both = program(&config, "both_01");
    assert_eq!((both.start_limit, both.rotate), (None, None), "both write to the log");
    for said in [
        "wild.conf:23: startretries of both is left out",
        "wild.conf:26: [program:both] goes on with",
        "wild.conf:27: priority of both is left out",
        "wild.conf:30: group indented has no program \"nobody\"",
        "wild.conf:31: priority of group indented is left out",
        "wild.conf:34: \"indented\" is already in group indented, and cannot be in other, too",
        "the group is called \"group.indented\" here",
        "wild.conf:15: stdout_logfile_maxbytes of indented is left out",
        "several programs write to /tmp/log",
        "the whole process group",
    ] {
        assert!(notes.contains(said), "{said}: {notes}");
    }
}

#[test]
fn what_cannot_be_understood_is_refused_with_its_place() {
    let directory = directory();
    let file = directory.path().join("bad.conf");
    let table = [
        ("command = x\n", "bad.conf:1: stands before the first [section]"),
        ("[program:a]\nnothing\n", "bad.conf:2: is neither [section] nor name = value"),
        ("[program:a]\nnumprocs=1\n", "bad.conf:1: [program:a] has no command"),
        ("[program:a]\ncommand=x\nnumprocs=2\n", "bad.conf:1: numprocs is 2, so process_name must hold"),
        ("[program:a]\ncommand=x \"y\n", "bad.conf:2: command has a quote that is not closed"),
        ("[program:a]\ncommand=x\nnumprocs=many\n", "bad.conf:3: numprocs is no number"),
        ("[program:a]\ncommand=x\nnumprocs=0\n", "numprocs is 0"),
        ("[program:a]\ncommand=x\nautorestart=perhaps\n", "bad.conf:3: autorestart is not true, false or unexpected"),
        ("[program:a]\ncommand=x\nautostart=maybe\n", "bad.conf:3: autostart is neither true nor false"),
        ("[program:a]\ncommand=x\nstopsignal=QIT\n", "bad.conf:3: stopsignal is no signal"),
        ("[program:a]\ncommand=x\nstartsecs=abc\n", "bad.conf:3: startsecs is no number"),
        ("[program:a]\ncommand=x\numask=9\n", "bad.conf:3: umask is no octal number"),
        ("[program:a]\ncommand=%(nothing)s\n", "bad.conf:2: %(nothing) is not known here"),
        ("[program:a]\ncommand=100%\n", "bad.conf:2: % stands alone"),
        ("[program:a]\ncommand=x\nexitcodes=256\n", "bad.conf:3: exitcodes is no list of numbers from 0 to 255"),
        ("[program:a]\ncommand=x\nredirect_stderr=maybe\n", "bad.conf:3: redirect_stderr is neither true nor false"),
        ("[program:a]\ncommand=%(ENV_NO_SUCH)s\n", "set NO_SUCH while importing"),
        ("[program:a]\ncommand=sh -c \"a ; b\"\n", "begins a comment"),
        ("[fcgi-program:a]\ncommand=x\n", "[fcgi-program:a] is left out"),
        ("[program:a]\ncommand=x\nenvironment=A\n", "environment is no list of KEY"),
        ("[supervisord]\n", "has no [program:...] section"),
    ];
    for (text, why) in table {
        fs::write(&file, text).expect("a file");
        let (code, told) = said(&import("supervisord", &file));
        assert_eq!((code, told.contains(why)), (1, true), "{text}: {told}");
    }
}

#[test]
fn a_procfile_runs_with_its_ports_and_variables() {
    let directory = std::sync::Arc::new(directory());
    let file = directory.path().join("Procfile");
    fs::write(&file, "# a comment\nweb: exec sh -c 'echo $PORT $NAME > web; exec sleep 1000'\n\nworker:   pwd > worker; exec sleep 1000\nno process\n")
        .expect("a file");
    fs::write(
        directory.path().join(".env"),
        "NAME=\"a name\"\nexport OTHER=x # y\n# nothing\nLINES=\"a\\nb\\$\"\nRAW='a\\nb'\nPLAIN=a\\nb\n",
    )
    .expect("a file");
    let notes = said(&import("procfile", &file)).1;
    let env = read(&imported("procfile", &file)).gaggled.env;
    let value = |name: &str| env.get(name).map(String::as_str);
    assert_eq!(
        [value("OTHER"), value("LINES"), value("RAW"), value("PLAIN")],
        [Some("x"), Some("a\nb$"), Some("a\\nb"), Some("a\\nb")]
    );
    assert!(notes.contains("Procfile:5: is no \"name: command\", and was ignored"), "{notes}");
    let mut daemon = Daemon::with(&imported("procfile", &file), directory.clone(), &DaemonOptions::default());
    daemon.wait_up("web", 1);
    daemon.wait_up("worker", 1);
    let text = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_default();
    daemon.wait_outside("both to have written", || !text("web").is_empty() && !text("worker").is_empty());
    assert_eq!(text("web"), "5000 a name\n");
    assert_eq!(text("worker").trim(), fs::canonicalize(directory.path()).expect("a path").display().to_string());
    fs::write(&file, "release: migrate\nweb: serve\n").expect("a file");
    assert_eq!(program(&read(&imported("procfile", &file)), "release").mode, Some(Mode::Once));
    for bad in ["", "# nothing\n", "\n"] {
        fs::write(&file, bad).expect("a file");
        assert_eq!(said(&import("procfile", &file)).0, 1);
    }
}
