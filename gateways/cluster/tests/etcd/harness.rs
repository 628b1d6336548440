//! An etcd of three members, and nodes that reach each member through a proxy of their own, which can be cut.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use gaggled_core::{
    event::{Envelope, Event, RemoteEvent},
    state::{Phase, State},
};
use gaggled_tests::harness::{Daemon, DaemonOptions, binary, directory, free_port};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Whether etcd is installed. If not, says so.
pub fn has_etcd() -> bool {
    let is_there =
        |name: &str| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let has_both = is_there("etcd").is_ok() && is_there("etcdctl").is_ok();
    if !has_both {
        eprintln!("SKIPPED: etcd and etcdctl are not installed; contrib/setup cluster installs them");
    }
    has_both
}

/// An etcd of several members.
pub struct Etcd {
    directory: TempDir,
    members: Vec<Child>,
    starts: Vec<Vec<String>>,
    pub ports: Vec<u16>,
    /// Arguments of etcdctl besides the urls.
    pub credentials: Vec<String>,
    scheme: &'static str,
}

impl Etcd {
    /// Starts three members without TLS, if etcd is installed.
    pub fn start() -> Option<Self> {
        has_etcd().then(|| Self::with("http", &[], Vec::new()))
    }

    /// Starts three members with these arguments; etcdctl needs `credentials` to reach them.
    pub fn with(scheme: &'static str, arguments: &[String], credentials: Vec<String>) -> Self {
        let directory = directory();
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let peers: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let members: Vec<String> = (0..3).map(|i| format!("m{i}=http://127.0.0.1:{}", peers[i])).collect();
        let start = |i: usize| {
            let client = format!("{scheme}://127.0.0.1:{}", ports[i]);
            let peer = format!("http://127.0.0.1:{}", peers[i]);
            let data = directory.path().join(format!("m{i}")).display().to_string();
            let own = [
                ["--name", &format!("m{i}")],
                ["--data-dir", &data],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--initial-cluster", &members.join(",")],
            ];
            own.concat().iter().map(|word| (*word).to_owned()).chain(arguments.iter().cloned()).collect::<Vec<String>>()
        };
        let starts: Vec<Vec<String>> = (0..3).map(start).collect();
        let mut etcd = Self { directory, members: Vec::new(), starts, ports, credentials, scheme };
        etcd.members = (0..3).map(|i| etcd.run(i)).collect();
        etcd.wait();
        etcd
    }

    fn run(&self, member: usize) -> Child {
        let path = self.directory.path().join(format!("m{member}.log"));
        let log = fs::OpenOptions::new().append(true).create(true).open(path).expect("a log");
        Command::new("etcd")
            .args(&self.starts[member])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("etcd")
    }

    /// Waits until a majority answers.
    pub fn wait(&self) {
        // etcdctl waits for an answer.
        for _ in 0..20 {
            if self.try_ctl(&["--command-timeout=10s", "get", "nothing"]).0 {
                return;
            }
        }
        panic!("etcd does not answer: {}", self.try_ctl(&["get", "nothing"]).1);
    }

    fn try_ctl(&self, arguments: &[&str]) -> (bool, String) {
        let urls: Vec<String> = self.ports.iter().map(|port| format!("{}://127.0.0.1:{port}", self.scheme)).collect();
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", urls.join(",")))
            .args(&self.credentials)
            .args(arguments)
            .output()
            .expect("etcdctl");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    }

    /// What etcdctl says.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let (is_done, said) = self.try_ctl(arguments);
        assert!(is_done, "{arguments:?}: {said}");
        said
    }

    /// Ends all members with SIGKILL.
    pub fn kill(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
        self.members.clear();
    }

    /// Starts all members again.
    pub fn restart(&mut self) {
        self.members = (0..3).map(|i| self.run(i)).collect();
        self.wait();
    }

    /// Stops a member, or lets it go on.
    pub fn signal(&self, member: usize, signal: Signal) {
        kill(Pid::from_raw(self.pids()[member]), signal).expect("it runs");
    }

    /// The process ids of the members.
    pub fn pids(&self) -> Vec<i32> {
        self.members.iter().map(|member| i32::try_from(member.id()).expect("a small number")).collect()
    }

    /// Takes all leases away.
    pub fn revoke_all(&self) {
        let leases = self.ctl(&["lease", "list"]);
        for lease in leases.lines().filter(|line| line.chars().all(|c| c.is_ascii_hexdigit()) && !line.is_empty()) {
            let _ = self.try_ctl(&["lease", "revoke", lease]);
        }
    }

    /// Forgets all earlier revisions, so that watches that are behind are cancelled.
    pub fn compact(&self) {
        let status = self.ctl(&["get", "nothing", "--write-out=json"]);
        let revision = status.split("\"revision\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
        let _ = self.try_ctl(&["compact", revision.unwrap_or("1")]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.signal(member, Signal::SIGCONT);
        }
        self.kill();
    }
}

/// A connection that can be cut: what is sent meanwhile is lost, as on a network, and no side is told.
pub struct Proxy {
    pub port: u16,
    cut: Arc<(Mutex<bool>, Condvar)>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn new(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let proxy = Self { port, cut: Arc::default(), open: Arc::default() };
        let (cut, open) = (proxy.cut.clone(), proxy.open.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                // Without this each hop may wait 40 ms for a delayed acknowledgement.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let pairs = [(&client, &server), (&server, &client)];
                for (from, to) in pairs {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let cut = cut.clone();
                    thread::spawn(move || carry(from, to, &cut));
                }
                open.lock().expect("no panic").extend([client, server]);
            }
        });
        proxy
    }

    fn set(&self, is_cut: bool) {
        *self.cut.0.lock().expect("no panic") = is_cut;
        self.cut.1.notify_all();
        if !is_cut {
            // Connections that have lost something are of no use any more.
            for stream in self.open.lock().expect("no panic").drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, cut: &(Mutex<bool>, Condvar)) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let held = cut.1.wait_while(cut.0.lock().expect("no panic"), |is_cut| *is_cut).expect("no panic");
        drop(held);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A node: a gaggled with its gateway, and its connections to etcd.
pub struct Node {
    pub daemon: Daemon,
    pub proxies: Vec<Proxy>,
}

impl Node {
    /// Starts a node with these programs.
    pub fn new(etcd: &Etcd, name: &str, programs: &str) -> Self {
        Self::with(etcd, name, "", programs)
    }

    /// Starts a node with further settings of the cluster.
    pub fn with(etcd: &Etcd, name: &str, settings: &str, programs: &str) -> Self {
        let proxies: Vec<Proxy> = etcd.ports.iter().map(|port| Proxy::new(*port)).collect();
        let urls: Vec<String> =
            proxies.iter().map(|proxy| format!("\"{}://127.0.0.1:{}\"", etcd.scheme, proxy.port)).collect();
        let directory = Arc::new(directory());
        let text = configuration(directory.path(), name, &urls.join(", "), settings, programs);
        let daemon = Daemon::with(&text, directory, &DaemonOptions::default());
        Self { daemon, proxies }
    }

    /// Starts a node that has its programs from the published configuration.
    pub fn published(etcd: &Etcd, name: &str) -> Self {
        Self::with(etcd, name, "config: Published,", "")
    }

    /// Starts the node again, after it has ended.
    #[must_use]
    pub fn again(self) -> Self {
        Self { daemon: self.daemon.again(), ..self }
    }

    /// Runs `gaggled_clustergate` with the configuration of the node and these arguments; its exit status, and what it says.
    pub fn gate(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(binary("gaggled_clustergate"))
            .arg("-c")
            .arg(self.daemon.config_path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the gateway");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Cuts the node off from etcd, or connects it again.
    pub fn cut(&self, is_cut: bool) {
        self.proxies.iter().for_each(|proxy| proxy.set(is_cut));
    }

    /// Waits until a program of another node is seen up and ready.
    pub fn wait_ready(&mut self, program: &str) {
        let program = program.to_owned();
        self.daemon.wait(&format!("{program} to be ready"), |_, state| {
            let Some(id) = state.graph.names().get(program.as_str()).copied() else { return false };
            let known = &state.programs[id];
            let is_seen = known.remote.as_deref().is_none_or(|remote| remote.unseen.is_none());
            known.phase == Phase::Up && known.ready_since.is_some() && is_seen
        });
    }

    /// Kills the gateway, once it runs.
    pub fn kill_gateway(&mut self) {
        self.daemon.wait("the gateway", |_, state| {
            let id = state.graph.names()["clustergate"];
            state.programs[id].process.is_some()
        });
        self.daemon.kill("clustergate", Signal::SIGKILL);
    }
}

/// The configuration of a node.
pub fn configuration(directory: &Path, name: &str, urls: &str, settings: &str, programs: &str) -> String {
    let dir = directory.display();
    let dead_after = if settings.contains("dead_after") { "" } else { "dead_after: \"4s\"," };
    format!(
        "(gaggled: (eventurl: \"ipc://{dir}/events.ipc\", controlurl: \"ipc://{dir}/control.ipc\", killwait: \"2s\",
            cluster: (name: \"test\", node: \"{name}\", etcd: [{urls}], {dead_after} {settings})),
        programs: {{{programs}}})"
    )
}

/// How often a program was started.
pub fn runs(state: &State, program: &str) -> u64 {
    state.programs[state.graph.names()[program]].instance.0
}

/// The events of programs of other nodes.
pub fn remote(heard: &[Envelope]) -> Vec<&RemoteEvent> {
    heard
        .iter()
        .filter_map(|envelope| if let Event::Remote(_, event) = &envelope.event { Some(event) } else { None })
        .collect()
}
