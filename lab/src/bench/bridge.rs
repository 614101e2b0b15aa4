// SPDX-License-Identifier: MPL-2.0

//! The bridge under load: start requests beside FastAPI, and ten thousand robots that a hundred
//! listeners follow, beside Mosquitto with as many subscribers.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use droidrelay_wire::{
    BrokerUrl,
    mqtt::session::{self, Event, Properties, Session},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    runtime::{Handle, Runtime},
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::common::print_table;
use droidrelay_testkit::usage::{Cpu, Memory};
use droidrelay_testkit::{
    artifacts::artifact,
    certs::{Login, write_private},
    journal::DEADLINE,
    net::http,
    process::{Process, free_port, poll, program_of, text_of},
    servers::mosquitto::{self, Mosquitto, TOPIC},
};

/// What the other bridge is made of.
const PACKAGES: [&str; 3] = ["fastapi", "uvicorn", "paho-mqtt"];
/// Everything that is retained has come.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Clients that ask at the same time, each one after the other, on a connection of its own
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    clients: Vec<usize>,
    /// How long each number of clients asks
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Robots whose state is held
    #[arg(long, default_value_t = 10_000)]
    robots: usize,
    /// Listeners to events
    #[arg(long, default_value_t = 100)]
    listeners: usize,
    /// State changes a second, of all robots together
    #[arg(long, default_value_t = 200)]
    changes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            clients: vec![1, 16, 64],
            seconds: 5,
            robots: 10_000,
            listeners: 100,
            changes: 200,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let runtime = Runtime::new()?;
    requests(options, &runtime)?;
    fleet(options, &runtime)
}

/// One of the bridges.
struct Server {
    process: Process,
    address: SocketAddr,
    authorization: String,
    _folder: TempDir,
}

impl Server {
    fn ours(broker: &Mosquitto, login: &Login, robots: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bridge-").tempdir()?;
        let user = Login::generate("app")?;
        write_private(folder.path(), "mqtt.pass", &login.password)?;
        let config = format!(
            "listen = \"127.0.0.1:0\"\n[mqtt]\nbroker = \"{}\"\nusername = \"{}\"\n\
             password-file = \"mqtt.pass\"\n{robots}\n[[user]]\nname = \"{}\"\nrole = \"viewer\"\n\
             password = \"{}\"\n",
            broker.url(),
            login.user,
            user.user,
            user.hash(),
        );
        let config = write_private(folder.path(), "bridge.toml", &config)?;
        let mut command = Command::new(artifact("droidrelay-bridge")?);
        // As in service: one line for each command.
        command.arg("--config").arg(config);
        let process = Process::spawn("droidrelay-bridge", &mut command)?;
        let (_, line) = process
            .log()
            .wait(0, "the bridge's address", |line| {
                line.contains("listening on http://")
            })
            .with_context(|| process.text())?;
        let address = line.rsplit("http://").next().unwrap_or_default();
        let server = Server {
            address: address.trim().parse()?,
            process,
            authorization: user.basic(),
            _folder: folder,
        };
        server.wait("/healthz")?;
        Ok(server)
    }

    /// With `does_as_much` it asks for a password and waits for the broker, as ours does.
    fn fastapi(broker: &Mosquitto, libraries: &Path, does_as_much: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("fastapi-").tempdir()?;
        let login = &broker.bridge;
        let password = write_private(folder.path(), "mqtt.pass", &login.password)?;
        let script = include_str!("../../baseline/bridge.py");
        let script = write_private(folder.path(), "bridge.py", script)?;
        let port = free_port()?;
        let mut command = Command::new(program_of("python3", "python3")?);
        command
            .env("PYTHONPATH", libraries)
            .arg(script)
            .args([&port.to_string(), &broker.port().to_string(), TOPIC])
            .args([&login.user, text_of(&password)?]);
        let mut authorization = String::new();
        if does_as_much {
            let user = Login::generate("app")?;
            let digest = user.hash().replace("sha256:", "");
            command.args([&user.user, &digest]);
            authorization = user.basic();
        }
        let server = Server {
            process: Process::spawn("bridge.py", &mut command)?,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            authorization,
            _folder: folder,
        };
        server.wait("/")?;
        Ok(server)
    }

    fn wait(&self, path: &str) -> Result<()> {
        poll(DEADLINE, || {
            let answer = http::request(self.address, "GET", path, &self.authorization).ok()?;
            (answer.status == 200).then_some(())
        })
        .with_context(|| format!("does not answer\n{}", self.process.text()))
    }

    fn head(&self, method: &str, path: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: {}\r\ncontent-length: 0\r\n\r\n",
            self.address, self.authorization
        )
    }
}

fn install(folder: &Path) -> Result<()> {
    let installed = Command::new(program_of("python3", "python3")?)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .arg("--target")
        .arg(folder)
        .args(PACKAGES)
        .output()?;
    ensure!(
        installed.status.success(),
        "pip does not install {PACKAGES:?} (apt-get install python3-pip?): {}",
        String::from_utf8_lossy(&installed.stderr)
    );
    Ok(())
}

fn versions(libraries: &Path) -> Result<String> {
    let listed = Command::new(program_of("python3", "python3")?)
        .args(["-m", "pip", "list", "--format", "freeze", "--path"])
        .arg(libraries)
        .output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let of_ours = |line: &&str| {
        PACKAGES
            .iter()
            .any(|name| line.starts_with(&format!("{name}==")))
    };
    let found: Vec<&str> = listed.lines().filter(of_ours).collect();
    Ok(found.join(", "))
}

/// What so many clients got in a while.
struct Load {
    requests: usize,
    cpu: Duration,
    took: Duration,
    times: Vec<Duration>,
}

impl Load {
    fn per_second(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    fn per_cpu_second(&self) -> f64 {
        self.requests as f64 / self.cpu.as_secs_f64()
    }
}

fn at(times: &[Duration], share: f64) -> Duration {
    let last = times.len().saturating_sub(1);
    let index = ((times.len() as f64 * share) as usize).min(last);
    times.get(index).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

fn requests(options: &Options, runtime: &Runtime) -> Result<()> {
    let libraries = tempfile::Builder::new().prefix("libraries-").tempdir()?;
    install(libraries.path())?;
    println!("## Bridge: start requests");
    println!();
    println!(
        "`POST /stream/start` for {} s by so many clients, each on a connection of its own, all on \
         one machine with the broker. droidrelay-bridge checks a password (SHA-256), answers when \
         the broker has acknowledged, and logs each command; the Python scripts' bridge ({}; no \
         `--reload`) does none of it, the third one is as that one and does all of it. In brackets \
         the ratio to the scripts' one.",
        options.seconds,
        versions(libraries.path())?
    );
    let mut table = vec![
        [
            "",
            "clients",
            "requests/s",
            "requests per CPU second",
            "p50, ms",
            "p99, ms",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let robot = format!("[[robot]]\nname = \"robot\"\ntopic = \"{TOPIC}\"\npath = \"live/stream\"");
    for &clients in &options.clients {
        let broker = Mosquitto::start_with(unkept())?;
        let measure = |server: &Server| {
            let seconds = Duration::from_secs(options.seconds);
            // A second ahead, to fill every cache there is.
            runtime.block_on(ask(server, clients, Duration::from_secs(1)))?;
            runtime.block_on(ask(server, clients, seconds))
        };
        let scripts = measure(&Server::fastapi(&broker, libraries.path(), false)?)?;
        let as_much = measure(&Server::fastapi(&broker, libraries.path(), true)?)?;
        let ours = measure(&Server::ours(&broker, &broker.bridge, &robot)?)?;
        for (name, load) in [
            ("FastAPI", &scripts),
            ("FastAPI, password, acknowledged", &as_much),
            ("droidrelay-bridge", &ours),
        ] {
            let ratio = |value: f64, peer: f64| format!("{value:.0} ({:.1})", value / peer);
            table.push(vec![
                name.to_owned(),
                clients.to_string(),
                ratio(load.per_second(), scripts.per_second()),
                ratio(load.per_cpu_second(), scripts.per_cpu_second()),
                millis(at(&load.times, 0.5)),
                millis(at(&load.times, 0.99)),
            ]);
        }
    }
    print_table(&table)
}

fn unkept() -> mosquitto::Options {
    mosquitto::Options {
        persistence: false,
        ..mosquitto::Options::default()
    }
}

async fn ask(server: &Server, clients: usize, lasts: Duration) -> Result<Load> {
    let request: Arc<str> = server.head("POST", "/stream/start").into();
    let ended = Arc::new(AtomicBool::new(false));
    let mut all = JoinSet::new();
    let before = Cpu::of(server.process.id())?;
    let began = Instant::now();
    for _ in 0..clients {
        let (address, request, ended) = (server.address, request.clone(), ended.clone());
        all.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut times = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let asked = Instant::now();
                stream.write_all(request.as_bytes()).await?;
                read_answer(&mut stream).await?;
                times.push(asked.elapsed());
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    sleep(lasts).await;
    ended.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    while let Some(one) = all.join_next().await {
        times.extend(one??);
    }
    let took = began.elapsed();
    let cpu = Cpu::of(server.process.id())?.since(before).time;
    times.sort_unstable();
    Ok(Load {
        requests: times.len(),
        cpu,
        took,
        times,
    })
}

/// Reads one answer with a Content-Length, which must be a success.
async fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::with_capacity(512);
    loop {
        ensure!(
            stream.read_buf(&mut answer).await? > 0,
            "the connection was closed"
        );
        let text = std::str::from_utf8(&answer)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .context("no Content-Length")?;
        if body.len() >= length.1.parse::<usize>()? {
            return Ok(());
        }
    }
}

/// State as a robot tells it, with the time at which it does.
fn state(robot: usize, changes: u64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let word = ["idle", "starting", "live"][(robot + changes as usize) % 3];
    format!(
        r#"{{"state":"{word}","since":"2026-11-25T08:00:00Z","cause":"mqtt","viewers":["phone-7"],"lease_until":"2026-11-25T08:00:30Z","publish":{{"state":"publishing","attempt":0,"bitrate":1500000}},"last_error":null,"last_command_id":"phone-7","standby":"cold","refused_commands":0,"start_latency_ms":41.5,"version":"0.1.0","viewer_count":1,"opens":7,"sent_us":{}}}"#,
        now.as_micros()
    )
}

fn session(
    handle: &Handle,
    broker: &Mosquitto,
    id: &str,
    subscriptions: Vec<String>,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Result<Session> {
    let (url, _) = BrokerUrl::parse(&broker.url()).map_err(anyhow::Error::msg)?;
    let Login { user, password } = broker.operator.clone();
    let config = session::Config {
        broker: url,
        client_id: id.to_owned(),
        credentials: Box::new(move || Ok((Some(user.clone()), Some(password.as_str().into())))),
        tls: None,
        keep_alive: Duration::from_secs(60),
        session_expiry: Duration::ZERO,
        resumes: false,
        receive_maximum: u16::MAX,
        will: None,
        subscriptions,
        live: Vec::new(),
    };
    let session = Session::spawn(handle, config, on_event);
    poll(DEADLINE, || session.is_up().then_some(())).context("no broker")?;
    Ok(session)
}

/// Latencies of deliveries.
#[derive(Default)]
struct Deliveries {
    count: AtomicU64,
    times: Mutex<Vec<Duration>>,
}

impl Deliveries {
    /// Takes note of a state that arrived, by the time that stands in it.
    fn note(&self, payload: &str) {
        let Some((_, rest)) = payload.split_once("\"sent_us\":") else {
            return;
        };
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        let sent: u64 = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut times) = self.times.lock() {
            times.push(now.saturating_sub(Duration::from_micros(sent)));
        }
    }

    fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
        if let Ok(mut times) = self.times.lock() {
            times.clear();
        }
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self
            .times
            .lock()
            .map(|times| times.clone())
            .unwrap_or_default();
        times.sort_unstable();
        times
    }
}

fn fleet(options: &Options, runtime: &Runtime) -> Result<()> {
    println!("## Bridge: {} robots", options.robots);
    println!();
    let broker = Mosquitto::start_with(unkept())?;
    let robots = "[robots]\ntopic = \"robot/{robot}/stream\"";
    let bridge = Server::ours(&broker, &broker.operator, robots)?;
    let publisher = Arc::new(session(
        runtime.handle(),
        &broker,
        "publisher",
        Vec::new(),
        |_| {},
    )?);
    std::thread::sleep(SETTLE);
    let empty = Memory::of(bridge.process.id())?;
    runtime.block_on(announce(&publisher, options.robots))?;
    wait_known(&bridge, options.robots)?;
    std::thread::sleep(SETTLE);
    let full = Memory::of(bridge.process.id())?;
    let per_robot = (full.anonymous - empty.anonymous) as f64 * 1024.0 / options.robots as f64;
    let said = state(0, 0).len();
    println!(
        "- memory: {:.1} MB without robots, {:.1} MB with all of them (PSS): {per_robot:.0} bytes \
         each, {:.1} times what a robot says of itself ({said} bytes)",
        empty.pss as f64 / 1024.0,
        full.pss as f64 / 1024.0,
        per_robot / said as f64
    );
    let began = Instant::now();
    let late = Server::ours(&broker, &broker.operator, robots)?;
    wait_known(&late, options.robots)?;
    println!(
        "- a bridge that is started now knows all of them after {:.2} s",
        began.elapsed().as_secs_f64()
    );
    drop(late);

    let events = Arc::new(Deliveries::default());
    let mut listeners = JoinSet::new();
    for _ in 0..options.listeners {
        let (address, request) = (bridge.address, bridge.head("GET", "/events"));
        let events = events.clone();
        listeners.spawn_on(
            async move {
                let mut stream = BufReader::new(TcpStream::connect(address).await?);
                stream.get_mut().write_all(request.as_bytes()).await?;
                let mut line = Vec::new();
                loop {
                    line.clear();
                    if stream.read_until(b'\n', &mut line).await? == 0 {
                        return Ok::<_, anyhow::Error>(());
                    }
                    if line.starts_with(b"data: ") {
                        events.note(&String::from_utf8_lossy(&line));
                    }
                }
            },
            runtime.handle(),
        );
    }
    let all = (options.robots * options.listeners) as u64;
    poll(DEADLINE, || {
        (events.count.load(Ordering::Relaxed) >= all).then_some(())
    })
    .context("the listeners are not told of all robots")?;
    events.clear();
    let mut rows = vec![
        [
            "",
            "changes delivered",
            "CPU µs per delivery",
            "p50, ms",
            "p99, ms",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let expected = u64::from(options.changes) * options.seconds * options.listeners as u64;
    let mut measure = |name: &str, id: u32, deliveries: &Deliveries| -> Result<f64> {
        let before = Cpu::of(id)?;
        runtime.block_on(change(&publisher, options))?;
        // What is not there after a while does not come.
        poll(DEADLINE, || {
            (deliveries.count.load(Ordering::Relaxed) >= expected).then_some(())
        });
        let cpu = Cpu::of(id)?.since(before).time;
        let count = deliveries.count.load(Ordering::Relaxed);
        let times = deliveries.sorted();
        let each = cpu.as_secs_f64() * 1e6 / count.max(1) as f64;
        rows.push(vec![
            name.to_owned(),
            format!("{count} of {expected}"),
            format!("{each:.1}"),
            millis(at(&times, 0.5)),
            millis(at(&times, 0.99)),
        ]);
        Ok(each)
    };
    let ours = measure("droidrelay-bridge, events", bridge.process.id(), &events)?;
    listeners.abort_all();
    drop(bridge);
    let messages = Arc::new(Deliveries::default());
    let mut subscribers = Vec::new();
    for number in 0..options.listeners {
        let messages = messages.clone();
        let filter = vec!["robot/+/stream/state".to_owned()];
        let hear = move |event| {
            if let Event::Message(message) = event {
                messages.note(&String::from_utf8_lossy(&message.payload));
            }
        };
        let id = format!("subscriber-{number}");
        subscribers.push(session(runtime.handle(), &broker, &id, filter, hear)?);
    }
    poll(DEADLINE, || {
        (messages.count.load(Ordering::Relaxed) >= all).then_some(())
    })
    .context("the subscribers are not told of all robots")?;
    messages.clear();
    let peer = measure("Mosquitto, subscribers (QoS 1)", broker.id(), &messages)?;
    if let Some(cell) = rows.get_mut(1).and_then(|row| row.get_mut(2)) {
        *cell = format!("{ours:.1} ({:.2})", ours / peer);
    }
    println!(
        "- {} state changes a second for {} s, to {} listeners; in brackets the ratio to Mosquitto:",
        options.changes, options.seconds, options.listeners
    );
    print_table(&rows)
}

/// Each robot says that it is there, and how it is.
async fn announce(publisher: &Session, robots: usize) -> Result<()> {
    for robot in 0..robots {
        let topic = |word: &str| format!("robot/r{robot}/stream/{word}");
        say(publisher, topic("availability"), "online".to_owned()).await?;
        say(publisher, topic("state"), state(robot, 0)).await?;
    }
    Ok(())
}

async fn say(publisher: &Session, topic: String, payload: String) -> Result<()> {
    let retained = Properties {
        retain: true,
        ..Properties::default()
    };
    Ok(publisher.publish(&topic, payload, retained).await?)
}

/// Robots change one after the other, at a steady pace.
async fn change(publisher: &Arc<Session>, options: &Options) -> Result<()> {
    let count = u64::from(options.changes) * options.seconds;
    let began = tokio::time::Instant::now();
    let mut said = JoinSet::new();
    for number in 0..count {
        let due = Duration::from_secs_f64(number as f64 / f64::from(options.changes));
        sleep_until(began + due).await;
        let robot = (number as usize * 7919) % options.robots;
        let (publisher, topic) = (publisher.clone(), format!("robot/r{robot}/stream/state"));
        said.spawn(async move { say(&publisher, topic, state(robot, number + 1)).await });
    }
    while let Some(one) = said.join_next().await {
        one??;
    }
    Ok(())
}

fn wait_known(bridge: &Server, robots: usize) -> Result<()> {
    let known = poll(DEADLINE, || {
        let answer =
            http::request(bridge.address, "GET", "/metrics", &bridge.authorization).ok()?;
        let line = answer
            .body
            .lines()
            .find_map(|line| line.strip_prefix("droidrelay_bridge_robots_online "))?;
        (line.trim().parse() == Ok(robots)).then_some(())
    });
    if known.is_none() {
        bail!(
            "the bridge does not know all robots\n{}",
            bridge.process.text()
        );
    }
    Ok(())
}
