//! The scenarios of the original gaggled, imported and run for real: what must be seen, and in which order.
//!
//! Where the original had a bug the correct behaviour is required, and a comment says so. The bugs of the original, and
//! what shows that gaggled does not have them:
//!
//! | | bug | shown by |
//! |---|---|---|
//! | B1 | a program is started during the shutdown | invariant I8 of the simulator |
//! | B2 | a name of more than 255 bytes ends it | `import/gaggled.rs` c40, `configuration.rs` |
//! | B3 | more than 1024 programs cannot be dumped | `load/many_programs.rs`, five thousand programs |
//! | B4 | a killwait that is over starts a program | s17 |
//! | B5, B6 | a bad request leaks or overruns memory | `daemon.rs` garbage, `protocol.rs` |
//! | B7, B8 | a start is forgotten while the program stops | invariants I10 and I15 |
//! | B9 | a failed fork is never tried again | the simulator, mutant `ForgetFailedStart` |
//! | B10 | a diamond restarts twice | invariants I7 and I9 |
//! | B11 | cycles that are none | `import/gaggled.rs` c19, c21, c23 |
//! | B12 | a crash loop eats a core | s28, invariant I16 |
//! | B13 | an uptime that was never set | `uptime_ms` is computed from the fold, there is nothing to forget |
//! | B14 | workers of a wrapper are left behind | s29, `daemon.rs` left behind |
//! | B15 | a hangup ends it; a second one starts everything twice | s27, `daemon.rs` second gaggled |
//! | B16 | a reader of its output that stalls or goes stops it | `daemon.rs` log |
//! | B17 | without PATH its output is lost | `daemon.rs` path |
//! | B18, B19 | settings are passed over in silence | `configuration.rs`, `import/gaggled.rs` c27 to c31 |
//! | B20 | a dot in a variable, or a busy url, ends it | `import/gaggled.rs` c30, `daemon.rs` second gaggled |
//! | B21 | a tick of 0 or less | there is no tick |
//! | B22 | the wall clock moves delays | the rules see only a monotonic clock |
//! | B23 | any client that connects can stop everything | `daemon.rs` tcp |
//! | B24 | the tools hang or abort | `daemon.rs` exit codes |
//! | B25 | no order in a shutdown or a stop | s18, s24, invariant I22 |
//! | B26 | a late subscriber misses the beginning | s37, `protocol.rs` python |
//! | B27 | a program that could not be executed is reported as up | s02, s34 |
//! | B28 | no exit code and no signal in events | s02 |
//! | B29 | SIGINT reaches programs, or is ignored by them | s32, s33; a session of their own |
//! | B30 | mails are lost, wrong or malformed | `alert_rules.rs`, `real_site.rs` |
//! | B31, B32 | memory errors and a race of flags | safe Rust; there is one thread of rules and no flag |

use gaggled_tests::scenario::{Timeline, run};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

fn scenario(name: &str, sentences: &str) -> Timeline {
    let seen = run(name, &[]);
    seen.check(sentences);
    seen
}

#[test]
fn s01_respawn() {
    scenario(
        "s01_respawn",
        "
        a-1 < a+2 < a-2 < a+3
        a-1 ~400 a+2
        a-2 ~400 a+3
        b-1 < b+2
        type a-1 KILL
        type b-1 EXIT
        dump 2 a restarts 2
        dump 2 b exit_code null
        exit 0
    ",
    );
}

#[test]
fn s02_down_types() {
    // With core files permitted, a signal that dumps core is reported as such; the programs inherit the limit.
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).expect("a limit");
    setrlimit(Resource::RLIMIT_CORE, most, most).expect("a limit of our own");
    // B27: an exit code of 65, 66, 69 or 77 is that of the program, and nothing else.
    scenario(
        "s02_down_types",
        "
        type ok-1 EXIT
        type three-1 EXIT
        type segv-1 DUMP
        type term-1 KILL
        type abrt-1 DUMP
        dump 1 three exit_code 3
        dump 1 term exit_signal 15
        dump 1 segv exit_signal 11
        dump 1 e77 exit_code 77
        dump 1 e66 exit_code 66
        dump 1 e65 exit_code 65
        dump 1 e69 exit_code 69
        no ok+2
        no segv+2
    ",
    );
}

#[test]
fn s03_start_order() {
    scenario("s03_start_order", "a+1 < b+1 < c+1\n no a+2\n exit 0");
}

#[test]
fn s04_start_order_fwd() {
    scenario("s04_start_order_fwd", "a+1 < b+1 < c+1\n a+1 ~400 d+1");
}

#[test]
fn s05_delay() {
    scenario(
        "s05_delay",
        "
        a+1 < b+1 < c+1
        a+1 +400 <= b+1
        a+1 ~800 b+1
        b+1 +300 <= c+1
        b+1 ~700 c+1
        dump 2 c up false
        dump 2 c dependencies_satisfied false
        dump 3 c up true
    ",
    );
}

#[test]
fn s06_delay_reset() {
    scenario(
        "s06_delay_reset",
        "
        a-1 < a+2 < a-2 < a+3 < b+1
        a+3 +600 <= b+1
        a+3 ~1000 b+1
    ",
    );
}

#[test]
fn s07_no_propagate() {
    scenario(
        "s07_no_propagate",
        "
        dump 1 b up true
        dump 1 b dependencies_satisfied false
        a-1 < b-1 < a:up < a+2 < b+2
        dump 2 b up false
        dump 3 b up true
    ",
    );
}

#[test]
fn s08_propagate() {
    scenario(
        "s08_propagate",
        "
        a-1 < b!1 < b-1
        a-1 < a+2
        a-1 ~400 a+2
        a-1 ~400 b!1
        a+2 +300 <= b+2
        b-1 < b+2
    ",
    );
}

#[test]
fn s09_propagate_of_norespawn() {
    scenario(
        "s09_propagate_of_norespawn",
        "
        a-1 < b!1 < b-1 < b+2
        a+2 +100 <= b+2
        dump 1 b up true
        dump 2 b up false
        b-2 < a-2 < a+3 < b+3
        dump 3 b up true
        no b!2
    ",
    );
}

#[test]
fn s10_propagate_on_norespawn() {
    scenario(
        "s10_propagate_on_norespawn",
        "
        a-1 < b!1 < b-1
        dump 1 a up false
        dump 1 b up false
        dump 1 b dependencies_satisfied false
        a:up < a+2 < b+2
    ",
    );
}

#[test]
fn s11_chain() {
    scenario(
        "s11_chain",
        "
        a-1 < a+2
        a-1 < b!1 < b-1 < c!1 < c-1
        a+2 +200 <= b+2
        b-1 < b+2
        b+2 +200 <= c+2
        c-1 < c+2
    ",
    );
}

/// The killwait counts from the decision, and in a shutdown from its beginning: both come a little before the event of the
/// stop.
#[test]
fn s14_stubborn() {
    scenario(
        "s14_stubborn",
        "
        a-1 < b!1
        a-1 ~400 a+2
        dump 1 b up true
        dump 1 b instance 1
        b!1 +990 <= b*1
        b!1 ~1400 b*1
        b*1 < b-1 < b+2
        type b-1 KILL
        b!2 +990 <= b*2
        exit 0
    ",
    );
}

#[test]
fn s17_oneshot_dependant() {
    // B4: the killwait that is over starts nothing.
    scenario(
        "s17_oneshot_dependant",
        "
        b+1 < b-1 < a-1 < a+2 < b+2 < b-2
        no b+3
        dump 2 b up false
    ",
    );
}

#[test]
fn s18_op_stop_start_on() {
    // B25: dependents are stopped first.
    scenario(
        "s18_op_stop_start_on",
        "
        a:down < b!1 < b-1 < a!1 < a-1
        dump 1 a operator_down true
        dump 1 b dependencies_satisfied false
        dump 1 c up true
        no c-2
        a:up < a+2 < b+2
        a+2 +100 <= b+2
        dump 2 c instance 1
    ",
    );
}

#[test]
fn s19_op_stop_of() {
    scenario(
        "s19_op_stop_of",
        "
        b:down < b!1 < b-1 < a-1 < a+2
        dump 1 b up false
        b:up < b+2
        a+2 < b:up
        no b+3
        dump 3 b instance 2
    ",
    );
}

#[test]
fn s21_op_kill() {
    scenario(
        "s21_op_kill",
        "
        r:restart < r!1 < r-1 < r+2
        n-1 < n:up < n+2
        dump 1 n up false
        dump 1 r instance 2
    ",
    );
}

#[test]
fn s22_redundant_ops() {
    scenario(
        "s22_redundant_ops",
        "
        a:up < a:down < a!1 < a-1 < a:down/2 < a:up/2
        a:up ~200000 a:up/2
        dump 1 a instance 2
    ",
    );
}

#[test]
fn s23_disabled() {
    scenario(
        "s23_disabled",
        "
        dump 1 a operator_down true
        dump 1 a revision 1
        dump 1 b dependencies_satisfied false
        a:up < a+1 < b+1
        a:down < b!1 < b-1 < a!1 < a-1
    ",
    );
}

#[test]
fn s24_shutdown_dependents_first() {
    // B25: c depends on b, b on a; a stubborn program is killed when the killwait is over, and no later.
    scenario(
        "s24_shutdown_all_at_once",
        "
        c!1 < c-1 < b!1 < b-1 < a!1 < a-1
        d!1 +1000 <= d*1
        d!1 ~1400 d*1
        d*1 < d-1
        no a+2
        no d+2
        exit 0
    ",
    );
}

#[test]
fn s25_shutdown_request() {
    scenario(
        "s25_shutdown_request",
        "
        c!1 < c-1 < a!1
        b!1 +800 <= b-1
        no a+2
        no b+2
        exit 0
    ",
    );
}

#[test]
fn s26_sigkill_gaggled() {
    // B15: no program is started twice; they run on, and the daemon takes the place of the subreaper that was killed.
    let text = std::fs::read_to_string(gaggled_tests::scenario::fixture("s26_sigkill_gaggled")).expect("a scenario");
    assert!(text.contains("self SIGKILL"));
    let mut daemon = gaggled_tests::harness::Daemon::new(
        "\"a\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"]), \"b\": (command: \"@PUPPET@\", argv: [\"sleep\", \"1000000\"])",
    );
    daemon.wait_up("a", 1);
    daemon.wait_up("b", 1);
    let (a, b, daemon_pid) = (daemon.pid_of("a"), daemon.pid_of("b"), daemon.daemon_pid());
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    daemon.await_end();
    daemon.wait_for_another(daemon_pid);
    assert_eq!((daemon.pid_of("a"), daemon.pid_of("b")), (a, b));
}

#[test]
fn s27_sighup() {
    // B15: a hangup does not end it.
    scenario("s27_sighup", "a+1 < a!1\n no a+2\n exit 0");
}

#[test]
fn s28_crash_loop() {
    // B12: a crash loop is spaced, and does not disturb the others.
    let seen = scenario(
        "s28_crash_loop",
        "
        a+1 < a-1 < a+2
        no a+20
        no b-2
        a:down < b!1
    ",
    );
    assert!(seen.timeline.lines().count() < 100);
}

#[test]
fn s29_wrapper_orphan() {
    // B14: the whole group is signalled.
    let seen = scenario("s29_wrapper_orphan", "a+1 < a:down < a!1 < a-1 < a:up < a+2\n exit 0");
    let left = std::fs::read_dir("/proc").expect("processes").flatten().filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let directory = seen.daemon.directory.path().display().to_string();
        String::from_utf8_lossy(&line).contains(&directory)
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn s32_sigint_n() {
    scenario("s32_sigint_n", "a+1 < a!1\n no a+2\n exit 0");
}

#[test]
fn s33_sigint() {
    scenario("s33_sigint", "a-1 < a+2 < a!2 < a-2\n no a+3\n exit 0");
}

#[test]
fn s34_wd_and_exec_failures() {
    // B27: no program that could not be executed is reported as up, and the event has the stage and the error. Errors
    // that are visible before the start are refused, such as a relative command that is not in the directory it will
    // run in.
    let refused = std::panic::catch_unwind(|| run("s34_wd_and_exec_failures", &[]));
    let why = refused.err().and_then(|panic| panic.downcast::<String>().ok()).expect("it is refused");
    assert!(why.contains("command \"bin/relprog\" of program \"relwd\" does not exist"), "{why}");
    run("s34_wd_and_exec_failures", &["relwd"]).check(
        "
        no badwd+1
        no badfmt+1
        no noshebang+1
        dump 1 badwd failed_stage working_directory
        dump 1 badwd errno 2
        dump 1 badfmt failed_stage exec
        dump 1 badfmt errno 8
        dump 1 noshebang errno 8
    ",
    );
}

#[test]
fn s36_waiter_stays() {
    scenario(
        "s36_waiter_stays",
        "
        b:up < b:down < a:up < a+1 < b:up/2 < b+1
        dump 2 b up false
        dump 3 b up true
    ",
    );
}

#[test]
fn s37_slow_joiner() {
    // B26: a late client requests the events that it has missed.
    scenario("s37_slow_joiner", "a+1 < b+1\n a+1 +300 <= b+1");
}

#[test]
fn s38_sigstop() {
    // A stopped program is continued so that it can hear the TERM, and need not be killed.
    scenario("s38_sigstop", "a:restart < a!1 < a-1 < a+2\n no a*1");
}

#[test]
fn s39_fork_fails() {
    // B9: a start that fails is tried again. Here nothing fails; the simulator makes it fail.
    scenario("s39_fork_fails", "a+1 < b!1\n dump 1 b up true");
}
