// SPDX-License-Identifier: MPL-2.0

//! A real Mosquitto with passwords, access rights and persistence.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use droidrelay_wire::mqtt::broker::Scheme;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    certs::{Identity, Login, write_private},
    journal::DEADLINE,
    process::{Process, Signal, free_port, on_free_ports, poll, program_of, text_of},
};

/// The command topic of the one robot.
pub const TOPIC: &str = "robot/stream";
/// Below it the robot may announce itself to Home Assistant, and nowhere else.
pub const DISCOVERY_PREFIX: &str = "homeassistant";

/// How a broker differs from the usual one.
#[derive(Clone)]
pub struct Options {
    /// Whether sessions and retained values outlive the broker.
    pub persistence: bool,
    /// Listens on all addresses: for a network of a test's own.
    pub everywhere: bool,
    /// Takes messages of any size.
    pub any_size: bool,
    /// Keeps users and rights in its plugin for that, which refuses subscriptions by SUBACK.
    pub dynamic: bool,
    /// Listens with TLS too: what it shows there.
    pub tls: Option<Identity>,
    /// PEM of the CA of those who may come in by TLS; their certificate's common name is the user.
    pub client_ca: Option<String>,
    /// Listens there too.
    pub listeners: Vec<Listener>,
    /// Further lines of the configuration, which win over the others.
    pub lines: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            persistence: true,
            everywhere: false,
            any_size: false,
            dynamic: false,
            tls: None,
            client_ca: None,
            listeners: Vec::new(),
            lines: "",
        }
    }
}

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub scheme: Scheme,
    /// A loopback address, or one that stands for all.
    pub address: IpAddr,
}

impl Options {
    /// The plain one first.
    fn all_listeners(&self) -> Vec<Listener> {
        let address = if self.everywhere {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        let tls = self.tls.as_ref().map(|_| Scheme::Mqtts);
        let usual = [Some(Scheme::Mqtt), tls].into_iter().flatten();
        let usual = usual.map(|scheme| Listener { scheme, address });
        usual.chain(self.listeners.iter().copied()).collect()
    }

    fn listener(&self, listener: Listener, port: u16, here: &str) -> String {
        let Listener { scheme, address } = listener;
        let mut config = format!("listener {port}");
        if !address.is_unspecified() {
            config += &format!(" {address}");
        }
        config.push('\n');
        if scheme.is_websocket() {
            // Without the second line, Mosquitto 2.0 listens on all addresses.
            let domain = if address.is_ipv4() { "ipv4" } else { "ipv6" };
            config += &format!("protocol websockets\nsocket_domain {domain}\n");
        }
        if scheme.is_tls() {
            config += &format!("certfile {here}/server.pem\nkeyfile {here}/server.key\n");
            if self.client_ca.is_some() {
                config += &format!(
                    "cafile {here}/{CLIENT_CA}\nrequire_certificate true\nuse_identity_as_username true\n"
                );
            }
        }
        config
    }
}

const CLIENT_CA: &str = "clients.pem";

pub struct Mosquitto {
    process: Process,
    folder: TempDir,
    options: Options,
    /// Of [`Options::all_listeners`].
    ports: Vec<u16>,
    /// Reads commands, writes state and availability.
    pub robot: Login,
    /// Reads and writes commands, and what a robot says where it polls.
    pub bridge: Login,
    /// Does what a person at the keyboard does: everything below `robot/`, and what Home
    /// Assistant does.
    pub operator: Login,
}

impl Mosquitto {
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mosquitto-").tempdir()?;
        let robot = Login::generate("robot1")?;
        let bridge = Login::generate("bridge")?;
        let operator = Login::generate("operator")?;
        let passwords: String = [&robot, &bridge, &operator]
            .iter()
            .map(|login| format!("{}:{}\n", login.user, login.password))
            .collect();
        let passwords = write_private(folder.path(), "passwd", &passwords)?;
        let hashed = Command::new(program_of("mosquitto_passwd", "mosquitto")?)
            .arg("-U")
            .arg(&passwords)
            .status()?;
        ensure!(hashed.success(), "mosquitto_passwd fails: {hashed}");
        let acl = format!(
            "user {robot}\ntopic read {TOPIC}\ntopic write {TOPIC}/state\ntopic write {TOPIC}/availability\n\
             topic write {DISCOVERY_PREFIX}/device/+/config\ntopic read {DISCOVERY_PREFIX}/status\n\
             user {bridge}\ntopic readwrite {TOPIC}\ntopic readwrite {TOPIC}/state\n\
             topic readwrite {TOPIC}/availability\ntopic readwrite {TOPIC}/wanted\n\
             topic write robot/+/stream\ntopic read robot/+/stream/state\ntopic read robot/+/stream/availability\n\
             topic readwrite {TOPIC}/shares\n\
             user {operator}\ntopic readwrite robot/#\ntopic readwrite {DISCOVERY_PREFIX}/#\n",
            robot = robot.user,
            bridge = bridge.user,
            operator = operator.user,
        );
        write_private(folder.path(), "acl", &acl)?;
        write_private(folder.path(), "robot.pass", &robot.password)?;
        if options.dynamic {
            init_rights(folder.path(), &operator)?;
        }
        if let Some(identity) = &options.tls {
            identity.write(folder.path(), "server")?;
        }
        if let Some(ca) = &options.client_ca {
            write_private(folder.path(), CLIENT_CA, ca)?;
        }
        let listeners = options.all_listeners().len();
        let (process, ports) = on_free_ports(|| {
            let ports: Vec<u16> = (0..listeners).map(|_| free_port()).collect::<Result<_>>()?;
            Ok((launch(folder.path(), &ports, &options)?, ports))
        })?;
        let broker = Mosquitto {
            process,
            folder,
            options,
            ports,
            robot,
            bridge,
            operator,
        };
        if broker.options.dynamic {
            for login in [&broker.robot, &broker.bridge] {
                broker.set_rights(&["createClient", &login.user, "-p", &login.password])?;
            }
        }
        Ok(broker)
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Of the listener that [`Options::tls`] asks for.
    pub fn tls_port(&self) -> u16 {
        self.ports[1]
    }

    /// Where it listens by `scheme`, by the name `host` (an IPv6 address in brackets).
    pub fn url_at(&self, scheme: Scheme, host: &str) -> Result<String> {
        let is_ipv6 = host.starts_with('[');
        let listeners = self.options.all_listeners().into_iter().zip(&self.ports);
        let (_, port) = listeners
            .into_iter()
            .find(|(listener, _)| {
                listener.scheme == scheme && listener.address.is_ipv6() == is_ipv6
            })
            .with_context(|| format!("no listener for {scheme:?} at {host}"))?;
        Ok(format!("{}://{host}:{port}", scheme.as_str()))
    }

    /// From now on shows `identity` to those who connect with TLS.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        identity.write(self.folder.path(), "server")?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    /// Runs one command of `mosquitto_ctrl dynsec`; where nothing is said everybody may do
    /// everything.
    pub fn set_rights(&self, command: &[&str]) -> Result<()> {
        let port = self.port().to_string();
        let Login { user, password } = &self.operator;
        let done = Command::new(program_of("mosquitto_ctrl", "mosquitto")?)
            .args(["-h", "127.0.0.1", "-p", &port, "-u", user, "-P", password])
            .arg("dynsec")
            .args(command)
            .output()?;
        ensure!(
            done.status.success(),
            "mosquitto_ctrl {}: {}",
            command[0],
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port())
    }

    /// mqttvalve with this broker and its credentials.
    pub fn valve(&self) -> String {
        self.valve_by(self.port())
    }

    /// As [`Mosquitto::valve`], by another port that leads here.
    pub fn valve_by(&self, port: u16) -> String {
        self.valve_at(port, TOPIC)
    }

    /// As [`Mosquitto::valve`], on another topic.
    pub fn valve_on(&self, topic: &str) -> String {
        self.valve_at(self.port(), topic)
    }

    fn valve_at(&self, port: u16, topic: &str) -> String {
        format!(
            "mqttvalve broker=mqtt://127.0.0.1:{port} topic={topic} username={} password-file={}",
            self.robot.user,
            self.robot_password_file().display()
        )
    }

    pub fn robot_password_file(&self) -> PathBuf {
        self.folder.path().join("robot.pass")
    }

    /// Ends as by a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stands still, as when its machine is out of memory, until [`Mosquitto::thaw`]: the kernel
    /// goes on answering for it.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Clean end: the database is written.
    pub fn stop(&mut self) -> Result<()> {
        self.process.end(Signal::TERM)?;
        Ok(())
    }

    /// Back on the same port, with the same database.
    pub fn restart(&mut self) -> Result<()> {
        self.process = on_free_ports(|| launch(self.folder.path(), &self.ports, &self.options))?;
        Ok(())
    }

    /// Waits until the robot listens for commands, since the broker was last started.
    pub fn wait_robot(&self) -> Result<()> {
        self.wait_subscribed(TOPIC)
    }

    /// Waits until the robot listens on `topic`, since the broker was last started.
    pub fn wait_subscribed(&self, topic: &str) -> Result<()> {
        let filter = format!(" {topic}");
        self.process
            .log()
            .wait(0, "the robot's subscription", |line| {
                line.ends_with(&filter) && !line.contains("operator")
            })?;
        Ok(())
    }

    /// Waits until `count` clients, bridges and observers aside, have subscribed to what `wanted`
    /// holds of, since the broker was last started.
    pub fn wait_subscribers(&self, count: usize, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut clients = HashSet::new();
        let mut read = 0;
        let all = poll(DEADLINE, || {
            for line in self.process.log().since(read) {
                read += 1;
                // "TIME: CLIENT QOS FILTER"
                let mut words = line.split_whitespace().skip(1);
                if let (Some(client), Some("0" | "1" | "2"), Some(filter), None) =
                    (words.next(), words.next(), words.next(), words.next())
                    && wanted(filter)
                    && !client.starts_with("operator")
                    && !client.starts_with("droidrelay-bridge")
                {
                    clients.insert(client.to_owned());
                }
            }
            (clients.len() >= count).then_some(())
        });
        all.with_context(|| format!("{} of {count} clients have subscribed", clients.len()))
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

fn launch(folder: &Path, ports: &[u16], options: &Options) -> Result<Process> {
    let here = text_of(folder)?;
    let persistence = options.persistence;
    // Without `user`, mosquitto started as root becomes another user, who cannot read the folder.
    let limit = if options.any_size { 0 } else { 16384 };
    let rights = if options.dynamic {
        let plugin = text_of(&plugin()?)?.to_owned();
        format!("plugin {plugin}\nplugin_opt_config_file {here}/{RIGHTS}\n")
    } else {
        format!("password_file {here}/passwd\nacl_file {here}/acl\n")
    };
    let listeners = options.all_listeners().into_iter().zip(ports);
    let listeners: String = listeners
        .map(|(listener, port)| options.listener(listener, *port, here))
        .collect();
    let config = format!(
        "user root\n{listeners}\
         allow_anonymous false\n{rights}\
         persistence {persistence}\npersistence_location {here}/\n\
         autosave_interval 1\nautosave_on_changes true\n\
         set_tcp_nodelay true\nmessage_size_limit {limit}\nlog_dest stderr\n\
         log_type error\nlog_type warning\nlog_type notice\nlog_type subscribe\n{}",
        options.lines
    );
    let config = write_private(folder, "mosquitto.conf", &config)?;
    let mut command = Command::new(program_of("mosquitto", "mosquitto")?);
    command.arg("-c").arg(config);
    let mut process = Process::spawn("mosquitto", &mut command)?;
    process.wait_ready(|| answers(ports[0]))?;
    Ok(process)
}

/// The file in which the plugin keeps users and rights.
const RIGHTS: &str = "rights.json";

fn plugin() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.flatten();
    folders
        .map(|folder| folder.path().join("mosquitto_dynamic_security.so"))
        .find(|path| path.is_file())
        .context("mosquitto_dynamic_security.so not found: apt-get install mosquitto")
}

/// The operator rules, and everybody may do everything until told otherwise.
fn init_rights(folder: &Path, operator: &Login) -> Result<()> {
    let file = folder.join(RIGHTS);
    let made = Command::new(program_of("mosquitto_ctrl", "mosquitto")?)
        .args(["dynsec", "init"])
        .arg(&file)
        .args([&operator.user, &operator.password])
        .output()?;
    ensure!(made.status.success(), "mosquitto_ctrl: {made:?}");
    let mut rights: Value = serde_json::from_slice(&fs::read(&file)?)?;
    for (_, allowed) in rights["defaultACLAccess"]
        .as_object_mut()
        .context("no defaultACLAccess in what mosquitto_ctrl wrote")?
    {
        *allowed = Value::Bool(true);
    }
    write_private(folder, RIGHTS, &rights.to_string())?;
    Ok(())
}

/// Any CONNACK will do, also a refusal.
pub(crate) fn answers(port: u16) -> bool {
    const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04test";
    let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))) else {
        return false;
    };
    let mut answer = [0; 2];
    stream.set_read_timeout(Some(DEADLINE)).is_ok()
        && stream.write_all(CONNECT).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer[0] == 0x20
}
