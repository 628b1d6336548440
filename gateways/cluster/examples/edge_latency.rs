//! How long it takes from the death of a program on one node to the stop of a program on another that depends on it, beside
//! how long etcd itself takes from a write to a watch on another member, in the same run.
//!
//! `cargo run --release --package gaggled_cluster --example edge_latency -- [ROUNDS]`, after `cargo build --release --workspace`.

use std::time::{Duration, Instant};

use etcd_client::{Client, WatchOptions};
use gaggled_core::event::{Event, ProgramEvent};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[path = "../tests/etcd/harness.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;

use harness::{Etcd, Node};

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    let Some(etcd) = Etcd::start() else { return };
    let db = "\"db\": (shell: \"exec sleep 1000000\", backoff: (initial: 0, max: 0), export: true),";
    let web = "\"web\": (shell: \"exec sleep 1000000\", depends: {\"db@n1\": (propagate: true)}),";
    let one = Node::new(&etcd, "n1", db);
    let mut two = Node::new(&etcd, "n2", web);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut edges, mut watches) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        two.daemon.wait_up("web", round as u64);
        // A storm is spaced by the gateway: each round begins in quiet.
        two.daemon.listen_until(now() + Duration::from_millis(5200));
        let pid = Pid::from_raw(one.daemon.pid_of("db"));
        let begun = now();
        kill(pid, Signal::SIGKILL).expect("it runs");
        two.daemon.wait("web to be stopped", |heard, _| {
            let stops = heard
                .iter()
                .filter(|envelope| matches!(envelope.event, Event::Program(_, ProgramEvent::Stopping { .. })));
            stops.count() >= round
        });
        edges.push(begun.elapsed());
        watches.push(runtime.block_on(put_to_watch([one.proxies[0].port, two.proxies[1].port])));
    }
    show("from kill -9 to ProgramStopping on the other node", &mut edges);
    show("etcd alone, from a put to a watch on another member", &mut watches);
}

/// From a put to a watch, through the same proxies as the gateways.
async fn put_to_watch(ports: [u16; 2]) -> Duration {
    let url = |at: usize| [format!("http://127.0.0.1:{}", ports[at])];
    let mut writer = Client::connect(url(0), None).await.expect("etcd");
    let mut watcher = Client::connect(url(1), None).await.expect("etcd");
    let mut stream = watcher.watch("/bench", Some(WatchOptions::new())).await.expect("a watch");
    let _ = stream.message().await;
    let begun = now();
    writer.put("/bench", vec![b'x'; 400], None).await.expect("a put");
    let _ = stream.message().await;
    begun.elapsed()
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{what}: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms (n = {})",
        at(50),
        at(90),
        at(99),
        at(100),
        times.len()
    );
}
