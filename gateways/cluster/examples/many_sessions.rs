//! What the sessions of many nodes cost etcd: as many connections as there are nodes, each of which renews its lease and reads its
//! session and the claims as often as a gateway does, without gaggleds.
//!
//! `cargo run --release --package gaggled_cluster --example many_sessions -- [NODES] [DEAD_AFTER]`.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use gaggled_cluster::etcd::{Connection, Credentials, EtcdError};
use gaggled_core::{base::time::Millis, config::ClusterConfig};
use tokio::{sync::mpsc::unbounded_channel, time::MissedTickBehavior};

#[path = "../tests/etcd/harness.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;

use harness::Etcd;

/// For how long they are watched.
const SPAN: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let argument = |place: usize| std::env::args().nth(place).and_then(|text| text.parse::<u64>().ok());
    let (nodes, dead_after) = (argument(1).unwrap_or(1000), argument(2).unwrap_or(20));
    let Some(etcd) = Etcd::start() else { return };
    let config = ClusterConfig { dead_after: Millis(dead_after * 1000), ..ClusterConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&etcd, nodes, &config));
}

async fn run(etcd: &Etcd, nodes: u64, config: &ClusterConfig) {
    let (tell, mut told) = unbounded_channel();
    let begun = now();
    for number in 0..nodes {
        let port = etcd.ports[usize::try_from(number).expect("a small number") % etcd.ports.len()];
        let (tell, config) = (tell.clone(), config.clone());
        tokio::spawn(async move {
            let node: Arc<str> = format!("n{number}").into();
            let url = format!("http://127.0.0.1:{port}");
            let failed = Box::pin(renew(&url, node, &config, |span| tell.send(Ok(span)).is_ok())).await;
            let _ = tell.send(Err(failed));
        });
    }
    let (mut times, mut failures) = (Vec::new(), 0);
    let ends = begun + SPAN;
    let before: u64 = etcd.pids().into_iter().map(ticks).sum();
    while let Ok(Some(news)) = tokio::time::timeout(ends.saturating_duration_since(now()), told.recv()).await {
        match news {
            Ok(span) => times.push(span),
            Err(error) => {
                failures += 1;
                eprintln!("{error}");
            }
        }
    }
    let used = etcd.pids().into_iter().map(ticks).sum::<u64>() - before;
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{nodes} sessions, dead_after {}: {} renewals a second, each with a read of a majority: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; \
         {failures} failed; the members of etcd use {} % of a processor together",
        config.dead_after,
        times.len() as u64 / SPAN.as_secs(),
        at(50),
        at(99),
        at(100),
        used / SPAN.as_secs()
    );
}

/// Renews a session and reads it until that fails or nobody listens any more.
async fn renew(url: &str, node: Arc<str>, config: &ClusterConfig, tell: impl Fn(Duration) -> bool) -> EtcdError {
    let connection = match Connection::open(url, "test".into(), node, &Credentials::default()).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    let mut every = tokio::time::interval(Duration::from_millis(config.renewal().0));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let seconds = i64::try_from(config.session().0.div_ceil(1000)).unwrap_or(i64::MAX);
    let mut lease = None;
    loop {
        every.tick().await;
        let begun = now();
        match connection.renew(lease, seconds).await {
            Ok(renewed) => lease = Some(renewed),
            Err(error) => return error,
        }
        if let Err(error) = connection.own_session(false).await {
            return error;
        }
        tell(begun.elapsed());
    }
}

/// The time of the processors that a process has used, in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit_once(") ").map_or(Vec::new(), |(_, fields)| fields.split(' ').collect());
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    number(11) + number(12)
}
