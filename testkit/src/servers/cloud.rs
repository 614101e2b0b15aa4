// SPDX-License-Identifier: MPL-2.0

//! The server side as `mediamtx/` sets it up, on free ports and without TLS: broker, bridge, and
//! a MediaMTX that asks the bridge who may and tells it who looks.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    artifacts::artifact,
    certs::{Login, write_private},
    clients::{observer::Observer, rtsp},
    net::http,
    process::{Process, Signal, free_port, on_free_ports, text_of},
    robot::{Robot, Runner},
    servers::{
        mosquitto::{Mosquitto, TOPIC},
        relay::{PATH, find_mediamtx},
    },
    testbed::ENCODER,
};

/// The one robot that there is in truth.
pub const ROBOT: &str = "garden";
/// A robot that only says what the operator says for it.
pub const OTHER: &str = "garage";
/// Its command topic.
pub const OTHER_TOPIC: &str = "robot/garage/stream";
/// Seconds for which one call of a hook keeps the robot streaming.
pub const LEASE: u64 = 12;

/// What the bridge tells viewers of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    WebRtc,
    /// As `WebRtc`, handed on by the bridge, and nothing else.
    HandedOn,
    Hls,
    /// As `Hls`, handed on by the bridge.
    HlsHandedOn,
    /// As `WebRtc`, and the media server knows its own users only.
    OwnUsers,
    /// There is no media server: for what needs no picture.
    None,
}

pub struct Cloud {
    // Dropped in this order: who depends on a server goes before it.
    pub observer: Observer,
    media: Option<Process>,
    bridge: Process,
    pub broker: Mosquitto,
    set_up: SetUp,
    pub viewer: Login,
    /// With [`Media::OwnUsers`], who may watch there.
    pub watcher: Login,
}

/// A second MediaMTX, which gets from the first what somebody looks at.
pub struct Replica {
    process: Process,
    rtsp: u16,
    viewer: Login,
    _folder: TempDir,
}

/// What the servers are started with, again and again.
struct SetUp {
    folder: TempDir,
    ports: Ports,
    media: Media,
    publisher: Login,
    /// As this user a replica reads at the first MediaMTX.
    replica: Login,
}

struct Ports {
    bridge: u16,
    rtmp: u16,
    rtsp: u16,
    hls: u16,
    webrtc: u16,
    ice: u16,
}

impl Cloud {
    pub fn start(media: Media) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cloud-").tempdir()?;
        let broker = Mosquitto::start()?;
        let viewer = Login::generate("anna")?;
        let set_up = SetUp {
            folder,
            media,
            publisher: Login::generate("robot1")?,
            replica: Login::generate("replica")?,
            ports: Ports {
                bridge: free_port()?,
                rtmp: free_port()?,
                rtsp: free_port()?,
                hls: free_port()?,
                webrtc: free_port()?,
                ice: UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port(),
            },
        };
        let watcher = Login::generate("watcher")?;
        set_up.write(&broker, &viewer, &watcher)?;
        let bridge = set_up.launch_bridge()?;
        let media = match media {
            Media::None => None,
            _ => Some(set_up.launch_media()?),
        };
        Ok(Cloud {
            observer: Observer::start(&broker)?,
            media,
            bridge,
            broker,
            set_up,
            viewer,
            watcher,
        })
    }

    /// Of the bridge.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.set_up.ports.bridge).into()
    }

    /// The token of a link that lets anybody look at the robot for so many seconds.
    pub fn share(&self, seconds: u32) -> Result<String> {
        let path = format!("/robots/{ROBOT}/share?for={seconds}");
        let shared = http::request(self.address(), "POST", &path, &self.viewer.basic())?;
        let shared: serde_json::Value = serde_json::from_str(&shared.body)?;
        let token = shared["token"].as_str();
        Ok(token.context("no token in the answer")?.to_owned())
    }

    /// The bridge's page.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address())
    }

    pub fn rtsp_url(&self) -> String {
        let Login { user, password } = &self.viewer;
        let port = self.set_up.ports.rtsp;
        format!("rtsp://{user}:{password}@127.0.0.1:{port}/{PATH}")
    }

    pub fn hls_url(&self) -> String {
        let Login { user, password } = &self.viewer;
        let port = self.set_up.ports.hls;
        format!("http://{user}:{password}@127.0.0.1:{port}/{PATH}/index.m3u8")
    }

    /// MediaMTX's own page for the stream, without credentials.
    pub fn webrtc_url(&self) -> String {
        format!("http://127.0.0.1:{}/{PATH}", self.set_up.ports.webrtc)
    }

    /// Opens the stream by RTSP; back when there is one.
    pub fn view(&self) -> Result<rtsp::Viewer> {
        self.view_as(&self.viewer)
    }

    pub fn view_as(&self, login: &Login) -> Result<rtsp::Viewer> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.set_up.ports.rtsp));
        rtsp::Viewer::open(address, PATH, login, Duration::from_secs(40))
    }

    /// Ready for viewers; it has nothing yet.
    pub fn replica(&self) -> Result<Replica> {
        let folder = tempfile::Builder::new().prefix("replica-").tempdir()?;
        let (process, rtsp) = on_free_ports(|| {
            let rtsp = free_port()?;
            let config = self.set_up.replica_config(rtsp)?;
            let config = write_private(folder.path(), "mediamtx.yml", &config)?;
            Ok((launch_mediamtx(&config, &[rtsp])?, rtsp))
        })?;
        Ok(Replica {
            process,
            rtsp,
            viewer: self.viewer.clone(),
            _folder: folder,
        })
    }

    /// The robot's line behind `camera`; the robot is online and idle.
    pub fn robot(&self, camera: &str) -> Result<Robot> {
        self.robot_with(camera, ENCODER)
    }

    pub fn robot_with(&self, camera: &str, encoder: &str) -> Result<Robot> {
        let line = format!(
            "{camera} ! {} ! queue ! {encoder} ! rtmpauthsink location=rtmp://127.0.0.1:{}/{PATH} \
             user={} password-file={}",
            self.broker.valve(),
            self.set_up.ports.rtmp,
            self.set_up.publisher.user,
            text_of(&self.set_up.file("rtmp.pass"))?
        );
        self.observer.robot(Runner::GstLaunch, &line, &[])
    }

    /// Ends MediaMTX as a power cut would, its hooks with it, and starts it again.
    pub fn restart_media(&mut self) -> Result<()> {
        if let Some(media) = &mut self.media {
            media.kill();
        }
        self.media = Some(self.set_up.launch_media()?);
        Ok(())
    }

    pub fn kill_media(&mut self) {
        if let Some(media) = &mut self.media {
            media.kill();
        }
    }

    /// MediaMTX and its hooks stand still.
    pub fn freeze_media(&self) {
        if let Some(media) = &self.media {
            media.signal(Signal::STOP);
        }
    }

    pub fn kill_bridge(&mut self) {
        self.bridge.kill();
    }

    pub fn restart_bridge(&mut self) -> Result<()> {
        self.bridge.kill();
        self.bridge = self.set_up.launch_bridge()?;
        Ok(())
    }

    pub fn media(&self) -> &Process {
        self.media.as_ref().expect("started with a media server")
    }

    pub fn bridge(&self) -> &Process {
        &self.bridge
    }

    /// Panics where `seen` is an error, with what the servers say.
    pub fn shows(&self, seen: &Result<()>) {
        if let Err(err) = seen {
            let media = self.media.as_ref().map(Process::text).unwrap_or_default();
            panic!("{err:#}\n{media}\n{}", self.bridge.text());
        }
    }
}

impl SetUp {
    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, broker: &Mosquitto, viewer: &Login, watcher: &Login) -> Result<()> {
        let caller = Login::generate("mediamtx")?;
        write_private(self.folder(), "mqtt.pass", &broker.bridge.password)?;
        write_private(self.folder(), "rtmp.pass", &self.publisher.password)?;
        write_private(self.folder(), "mediamtx.pass", &caller.password)?;
        write_private(
            self.folder(),
            "share.key",
            &(caller.hash() + &viewer.hash()),
        )?;
        let config = self.bridge_config(broker, viewer, &caller);
        write_private(self.folder(), "bridge.toml", &config)?;
        let config = self.media_config(&caller, watcher)?;
        write_private(self.folder(), "mediamtx.yml", &config)?;
        Ok(())
    }

    fn bridge_config(&self, broker: &Mosquitto, viewer: &Login, caller: &Login) -> String {
        let Ports {
            bridge,
            rtsp,
            hls,
            webrtc,
            ..
        } = self.ports;
        let watch = match self.media {
            Media::WebRtc | Media::OwnUsers => format!(
                "rtsp = \"rtsp://127.0.0.1:{rtsp}/{{path}}\"\n\
                 webrtc = \"http://127.0.0.1:{webrtc}/{{path}}\"\n"
            ),
            Media::HandedOn => format!("rtsp = \"rtsp://127.0.0.1:{rtsp}/{{path}}\"\n"),
            Media::Hls => format!("hls = \"http://127.0.0.1:{hls}/{{path}}/index.m3u8\"\n"),
            Media::HlsHandedOn | Media::None => String::new(),
        };
        let handed_on = match self.media {
            Media::HandedOn => format!("webrtc = \"http://127.0.0.1:{webrtc}\"\n"),
            Media::HlsHandedOn => format!("hls = \"http://127.0.0.1:{hls}\"\n"),
            _ => String::new(),
        };
        format!(
            r#"listen = "127.0.0.1:{bridge}"
[mqtt]
broker = "{broker}"
username = "{user}"
password-file = "mqtt.pass"
[[robot]]
name = "{ROBOT}"
topic = "{TOPIC}"
path = "{PATH}"
[[robot]]
name = "{OTHER}"
topic = "{OTHER_TOPIC}"
path = "live/other"
[watch]
{watch}[share]
key-file = "share.key"
[mediamtx]
lease = {LEASE}
{handed_on}[[user]]
name = "{viewer}"
role = "viewer"
password = "{viewer_hash}"
[[user]]
name = "{replica}"
role = "viewer"
robots = ["{ROBOT}"]
password = "{replica_hash}"
[[user]]
name = "{robot}"
role = "robot"
robots = ["{ROBOT}"]
password = "{robot_hash}"
[[user]]
name = "{caller}"
role = "mediamtx"
password = "{caller_hash}"
"#,
            broker = broker.url(),
            user = broker.bridge.user,
            viewer = viewer.user,
            viewer_hash = viewer.hash(),
            replica = self.replica.user,
            replica_hash = self.replica.hash(),
            robot = self.publisher.user,
            robot_hash = self.publisher.hash(),
            caller = caller.user,
            caller_hash = caller.hash(),
        )
    }

    fn media_config(&self, caller: &Login, watcher: &Login) -> Result<String> {
        let Ports {
            bridge,
            rtmp,
            rtsp,
            hls,
            webrtc,
            ice,
        } = self.ports;
        let hook = format!(
            "{} hook EVENT --bridge http://127.0.0.1:{bridge} --password-file {}",
            text_of(&artifact("droidrelay-bridge")?)?,
            text_of(&self.file("mediamtx.pass"))?
        );
        let hook = |event| hook.replace("EVENT", event);
        let auth = match self.media {
            Media::OwnUsers => format!(
                "authInternalUsers:\n\
                 - {{user: {}, pass: \"{}\", permissions: [{{action: publish}}]}}\n\
                 - {{user: {}, pass: \"{}\", permissions: [{{action: read}}]}}\n",
                self.publisher.user,
                self.publisher.hash(),
                watcher.user,
                watcher.hash()
            ),
            _ => format!(
                "authMethod: http\nauthHTTPAddress: http://{}:{}@127.0.0.1:{bridge}/mediamtx/auth\n",
                caller.user, caller.password
            ),
        };
        Ok(format!(
            r#"logLevel: info
logDestinations: [stdout]
{auth}rtspAddress: "127.0.0.1:{rtsp}"
rtspTransports: [tcp]
rtmpAddress: "127.0.0.1:{rtmp}"
hlsAddress: "127.0.0.1:{hls}"
hlsMuxerCloseAfter: 15s
hlsTrustedProxies: [127.0.0.1]
webrtcAddress: "127.0.0.1:{webrtc}"
webrtcTrustedProxies: [127.0.0.1]
webrtcLocalUDPAddress: "127.0.0.1:{ice}"
webrtcIPsFromInterfaces: false
webrtcAdditionalHosts: [127.0.0.1]
srt: false
moq: false
paths:
  "~^live/[a-z]+$":
    runOnDemand: {demand}
    runOnDemandRestart: true
    runOnDemandStartTimeout: 15s
    runOnDemandCloseAfter: 1s
    runOnUnDemand: {undemand}
    runOnRead: {read}
    runOnUnread: {unread}
"#,
            demand = hook("demand"),
            undemand = hook("undemand"),
            read = hook("read"),
            unread = hook("unread"),
        ))
    }

    fn launch_bridge(&self) -> Result<Process> {
        let mut command = Command::new(artifact("droidrelay-bridge")?);
        command.arg("--config").arg(self.file("bridge.toml"));
        let mut process = Process::spawn("droidrelay-bridge", &mut command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports.bridge));
        process.wait_ready(|| {
            http::request(address, "GET", "/healthz", "").is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(process)
    }

    /// As docs/2-guides/scaling-out.md has it, without TLS: the bridge says who may look here too, and whoever
    /// looks is one reader more at the origin.
    fn replica_config(&self, port: u16) -> Result<String> {
        let caller = std::fs::read_to_string(self.file("mediamtx.pass"))?;
        let Login { user, password } = &self.replica;
        let Ports { bridge, rtsp, .. } = self.ports;
        Ok(format!(
            r#"logLevel: info
logDestinations: [stdout]
authMethod: http
authHTTPAddress: http://mediamtx:{caller}@127.0.0.1:{bridge}/mediamtx/auth
rtspAddress: "127.0.0.1:{port}"
rtspTransports: [tcp]
rtmp: false
hls: false
webrtc: false
srt: false
moq: false
paths:
  "~^(live/[a-z]+)$":
    source: rtsp://{user}:{password}@127.0.0.1:{rtsp}/$G1
    sourceOnDemand: true
    sourceOnDemandStartTimeout: 20s
    sourceOnDemandCloseAfter: 1s
    rtspTransport: tcp
"#
        ))
    }

    fn launch_media(&self) -> Result<Process> {
        let Ports { rtsp, webrtc, .. } = self.ports;
        on_free_ports(|| launch_mediamtx(&self.file("mediamtx.yml"), &[rtsp, webrtc]))
    }
}

impl Replica {
    /// Opens the robot's stream here by RTSP; back when there is one.
    pub fn view(&self) -> Result<rtsp::Viewer> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.rtsp));
        rtsp::Viewer::open(address, PATH, &self.viewer, Duration::from_secs(40))
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

/// Listening at `ports`.
fn launch_mediamtx(config: &Path, ports: &[u16]) -> Result<Process> {
    let program = find_mediamtx().context("MediaMTX not found")?;
    let mut command = Command::new(program);
    command.arg(config);
    if let Some(folder) = config.parent() {
        command.current_dir(folder);
    }
    let mut process = Process::spawn("mediamtx", &mut command)?;
    process.wait_ready(|| {
        let mut ports = ports.iter();
        ports.all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
    })?;
    Ok(process)
}
