// SPDX-License-Identifier: MPL-2.0

//! A cluster of MQTT brokers: three nodes of RMQTT that agree by Raft, where it is installed.

use std::{
    env, fs,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    certs::{Login, random_word, write_private},
    clients::observer::{Observer, Seen},
    process::{Process, on_free_ports, poll, program},
    servers::mosquitto::answers,
};

const NODES: usize = 3;
/// An unoptimized build on a busy machine needs this for its first election.
const READY: Duration = Duration::from_secs(120);

pub struct Cluster {
    nodes: Vec<Process>,
    set_up: SetUp,
}

struct SetUp {
    folder: TempDir,
    ports: Vec<Ports>,
    /// Read commands, write states and availabilities.
    robots: Login,
    /// Does what a bridge and a person at the keyboard do.
    operator: Login,
}

struct Ports {
    mqtt: u16,
    rpc: u16,
    raft: u16,
}

/// The program that `RMQTTD` names, or `rmqttd` in PATH.
pub fn find() -> Option<PathBuf> {
    match env::var_os("RMQTTD") {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => program("rmqttd"),
    }
}

/// Whether a test must do without it; says so past the test harness's capture.
pub fn notice_if_absent() -> bool {
    let absent = find().is_none();
    if absent {
        let test = thread::current();
        let test = test.name().unwrap_or_default();
        let _ = writeln!(
            io::stderr(),
            "SKIPPED {test}: no rmqttd here (neither $RMQTTD nor in PATH); tests/brokers.sh --cluster builds it"
        );
    }
    absent
}

impl Cluster {
    /// Whole: what is published at any node arrives at every other.
    pub fn start() -> Result<Self> {
        let (nodes, set_up) = on_free_ports(|| {
            let set_up = SetUp {
                folder: tempfile::Builder::new().prefix("rmqtt-").tempdir()?,
                ports: free_ports()?,
                robots: Login::generate("robots")?,
                operator: Login::generate("operator")?,
            };
            Ok((set_up.launch_all()?, set_up))
        })?;
        let cluster = Cluster { nodes, set_up };
        cluster.wait_whole()?;
        Ok(cluster)
    }

    /// Where the node of this number listens.
    pub fn port(&self, node: usize) -> u16 {
        self.set_up.ports[node].mqtt
    }

    pub fn url(&self, node: usize) -> String {
        format!("mqtt://127.0.0.1:{}", self.port(node))
    }

    pub fn robots(&self) -> &Login {
        &self.set_up.robots
    }

    pub fn operator(&self) -> &Login {
        &self.set_up.operator
    }

    /// Ends a node as a power cut would.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Back on the same ports, and in the cluster.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node] = on_free_ports(|| self.set_up.launch(node))?;
        self.wait_whole()
    }

    pub fn text(&self) -> String {
        let nodes = self.nodes.iter();
        nodes.map(Process::text).collect::<Vec<_>>().join("\n")
    }

    /// Waits until each node passes on what comes to any, and has what is retained at any.
    fn wait_whole(&self) -> Result<()> {
        let filter = "whole/#";
        let begun = Instant::now();
        let observers = (0..NODES)
            .map(|node| Observer::start_at(&self.url(node), self.operator(), &[filter]))
            .collect::<Result<Vec<_>>>()
            .with_context(|| self.text())?;
        for (node, observer) in observers.iter().enumerate() {
            let topic = format!("whole/{}", random_word()?);
            let arrived = poll(READY.saturating_sub(begun.elapsed()), || {
                observer.send_to(&topic, "x", Default::default()).ok()?;
                let all = observers.iter().all(|other| {
                    let came =
                        |seen: &Seen| matches!(seen, Seen::Other { topic: at, .. } if *at == topic);
                    other
                        .seen()
                        .try_wait(0, Duration::from_secs(1), came)
                        .is_some()
                });
                all.then_some(())
            });
            arrived.with_context(|| {
                format!(
                    "what is sent at node {node} does not come to all\n{}",
                    self.text()
                )
            })?;
        }
        Ok(())
    }
}

/// All different: each is held until all are known.
fn free_ports() -> Result<Vec<Ports>> {
    let held = (0..3 * NODES)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<io::Result<Vec<_>>>()?;
    let ports = held.iter().map(|port| Ok(port.local_addr()?.port()));
    let ports = ports.collect::<Result<Vec<u16>>>()?;
    let nodes = ports.chunks_exact(3).map(|ports| Ports {
        mqtt: ports[0],
        rpc: ports[1],
        raft: ports[2],
    });
    Ok(nodes.collect())
}

impl SetUp {
    /// One after the other: nodes that find no leader at the same time would each lead a cluster
    /// of its own.
    fn launch_all(&self) -> Result<Vec<Process>> {
        (0..NODES).map(|node| self.launch(node)).collect()
    }

    /// Ready for clients.
    fn launch(&self, node: usize) -> Result<Process> {
        let folder = self.folder.path().join(node.to_string());
        let plugins = folder.join("plugins");
        fs::create_dir_all(&plugins)?;
        write_private(&folder, "rmqtt.toml", &self.config(node))?;
        self.write_plugins(&plugins, node)?;
        let mut command = Command::new(find().context("rmqttd not found")?);
        command
            .args(["--config", "rmqtt.toml"])
            .current_dir(&folder);
        let mut process = Process::spawn(&format!("rmqttd {node}"), &mut command)?;
        process.wait_ready_for(READY, || answers(self.ports[node].mqtt))?;
        Ok(process)
    }

    fn config(&self, node: usize) -> String {
        let Ports { mqtt, rpc, .. } = self.ports[node];
        // Its numbers begin with one. Sessions die with their node: what waits for a client that has
        // to move is kept by the plugin that stores messages. At `info`, the plugin for access rights logs its passwords.
        format!(
            r#"node.id = {id}
rpc.server_addr = "127.0.0.1:{rpc}"
log.to = "console"
log.level = "warn"
plugins.dir = "./plugins/"
plugins.default_startups = ["rmqtt-retainer", "rmqtt-cluster-raft", "rmqtt-message-storage"]
plugins.disabled_default_startups = ["rmqtt-http-api", "rmqtt-counter"]
[listener.tcp.external]
addr = "127.0.0.1:{mqtt}"
nodelay = true
allow_anonymous = false
max_packet_size = "16k"
session_expiry_interval = "1d"
message_expiry_interval = "1d"
"#,
            id = node + 1,
        )
    }

    fn write_plugins(&self, plugins: &Path, node: usize) -> Result<()> {
        let addresses = |port: fn(&Ports) -> u16| {
            let nodes = self.ports.iter().enumerate();
            let nodes =
                nodes.map(|(node, ports)| format!("{}@127.0.0.1:{}", node + 1, port(ports)));
            format!("{:?}", nodes.collect::<Vec<_>>())
        };
        // How long a dead node is waited for: less than the four seconds in which robots and bridges
        // give up a login. Of one that they gave up, the last will could come after the next one's
        // `online`.
        let raft = format!(
            "node_grpc_addrs = {}\nraft_peer_addrs = {}\nladdr = \"127.0.0.1:{}\"\n\
             raft.grpc_reuseaddr = true\nnode_grpc_client_timeout = \"2s\"\nraft.grpc_timeout = \"2s\"\n",
            addresses(|ports| ports.rpc),
            addresses(|ports| ports.raft),
            self.ports[node].raft
        );
        write_private(plugins, "rmqtt-cluster-raft.toml", &raft)?;
        let retained = "storage.type = \"ram\"\nretained_message_ttl = \"0m\"\n";
        write_private(plugins, "rmqtt-retainer.toml", retained)?;
        write_private(
            plugins,
            "rmqtt-message-storage.toml",
            "storage.type = \"ram\"\n",
        )?;
        let SetUp {
            robots, operator, ..
        } = self;
        let rights = format!(
            r##"rules = [
  ["allow", {{ user = "{robots}", password = "{robots_password}" }}, "connect"],
  ["allow", {{ user = "{operator}", password = "{operator_password}" }}, "connect"],
  ["allow", {{ user = "{robots}" }}, "subscribe", ["robot/+/stream"]],
  ["allow", {{ user = "{robots}" }}, "publish", ["robot/+/stream/state", "robot/+/stream/availability"]],
  ["allow", {{ user = "{operator}" }}, "pubsub", ["#"]],
  ["deny", "all"]
]
"##,
            robots = robots.user,
            robots_password = robots.password,
            operator = operator.user,
            operator_password = operator.password,
        );
        write_private(plugins, "rmqtt-acl.toml", &rights)?;
        Ok(())
    }
}
