// SPDX-License-Identifier: MPL-2.0

//! A virtual machine with Debian's kernel, a USB camera that is a program on this one, and the robot
//! that they are.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    process::{Process, free_port, poll},
    servers::{
        mosquitto::{Mosquitto, TOPIC},
        relay::{Kind, PATH, Relay},
    },
};
use droidrelay_wire::{
    RobotState, StreamState,
    words::topics::{OFFLINE, ONLINE},
};
use tempfile::TempDir;

/// The processor is emulated, and the machine shared: what does not come within this has failed.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// A boot takes half a minute on a quiet machine.
const BOOT: Duration = Duration::from_secs(600);

/// This machine, as the virtual one sees it.
const HOST: &str = "10.0.2.2";

/// What `lab/vm.sh` has made.
pub struct Disk {
    folder: PathBuf,
    release: u8,
}

impl Disk {
    pub fn new(folder: &Path, release: u8) -> Result<Self> {
        let disk = Disk {
            folder: fs::canonicalize(folder)?,
            release,
        };
        ensure!(
            disk.file("disk").is_file(),
            "there is no {}: lab/vm.sh makes it",
            disk.file("disk").display()
        );
        Ok(disk)
    }

    fn file(&self, part: &str) -> PathBuf {
        let end = if part == "disk" { ".img" } else { "" };
        self.folder.join(format!("{part}-{}{end}", self.release))
    }
}

/// Runs until it is dropped; its disk goes with it.
pub struct Machine {
    disk: Disk,
    scratch: TempDir,
    process: Process,
    ssh_port: u16,
    /// The connection that all commands share: to make one takes an emulated processor seconds.
    ssh: Option<Process>,
    pub usb: UsbCamera,
}

impl Machine {
    pub fn boot(disk: Disk) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("machine-").tempdir()?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(disk.file("disk"))
            .arg(scratch.path().join("disk"))
            .status()?;
        ensure!(made.success(), "qemu-img: {made}");
        let usb = UsbCamera::start(scratch.path())?;
        let ssh_port = free_port()?;
        let process = launch(&disk, scratch.path(), ssh_port, usb.port)?;
        let mut machine = Machine {
            disk,
            scratch,
            process,
            ssh_port,
            ssh: None,
            usb,
        };
        machine.wait_for_ssh()?;
        Ok(machine)
    }

    /// The plug is pulled, and put in again.
    pub fn power_cut(&mut self) -> Result<()> {
        self.ssh = None;
        self.process.kill();
        self.process = launch(
            &self.disk,
            self.scratch.path(),
            self.ssh_port,
            self.usb.port,
        )?;
        self.wait_for_ssh()
    }

    fn wait_for_ssh(&mut self) -> Result<()> {
        let up = poll(BOOT, || self.run("true").ok());
        up.map(drop).with_context(|| {
            let console = fs::read_to_string(self.scratch.path().join("console"));
            let console = console.unwrap_or_default();
            let end: Vec<&str> = console.lines().rev().take(20).collect();
            format!("the machine does not come up:\n{}", end.join("\n"))
        })?;
        // Left behind by a machine whose power was cut; ssh takes no place that is taken.
        let _ = fs::remove_file(self.scratch.path().join("ssh"));
        // Outlives a network that is cut.
        let mut command = self.ssh();
        command.args(["-MN", "-o", "ServerAliveCountMax=60", "root@127.0.0.1"]);
        let mut shared = Process::spawn("ssh", &mut command)?;
        shared.wait_ready(|| self.scratch.path().join("ssh").exists())?;
        self.ssh = Some(shared);
        Ok(())
    }

    /// By the connection that is shared, if there is one.
    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command
            .arg("-q")
            .arg("-i")
            .arg(self.disk.folder.join("key"))
            .arg("-S")
            .arg(self.scratch.path().join("ssh"))
            .args(["-p", &self.ssh_port.to_string()])
            .args(["-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10"]);
        command
    }

    /// What `script` writes, run by its shell as root.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self
            .ssh()
            .args(["root@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            output.status.success(),
            "{script}: {}: {said} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(said)
    }

    /// Writes a file there.
    pub fn write(&self, path: &str, text: &str, mode: &str, group: &str) -> Result<()> {
        let quoted = text.replace('\'', r"'\''");
        self.run(&format!(
            "umask 077 && printf %s '{quoted}' >{path} && chgrp {group} {path} && chmod {mode} {path}"
        ))?;
        Ok(())
    }

    /// Pulls the network's plug out, or puts it in.
    pub fn set_network(&self, up: bool) -> Result<()> {
        let mut monitor = UnixStream::connect(self.scratch.path().join("monitor"))?;
        monitor.set_read_timeout(Some(Duration::from_secs(30)))?;
        let word = if up { "on" } else { "off" };
        writeln!(monitor, "set_link net {word}")?;
        // Its prompt comes when that is done.
        let mut lines = BufReader::new(monitor).split(b')');
        for _ in 0..2 {
            lines.next().context("qemu's monitor has gone")??;
        }
        Ok(())
    }
}

fn launch(disk: &Disk, scratch: &Path, ssh_port: u16, usb_port: u16) -> Result<Process> {
    let at = |name: &str| scratch.join(name).display().to_string();
    let _ = fs::remove_file(scratch.join("monitor"));
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", "2", "-m", "1024", "-nographic", "-nodefaults"])
        .arg("-kernel")
        .arg(disk.file("kernel"))
        .arg("-initrd")
        .arg(disk.file("initrd"))
        .args([
            "-append",
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off",
        ])
        .arg("-drive")
        .arg(format!(
            "file={},if=virtio,format=qcow2,cache=unsafe",
            at("disk")
        ))
        .arg("-netdev")
        .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"))
        .args(["-device", "virtio-net-pci,netdev=net"])
        .args(["-device", "virtio-rng-pci", "-device", "qemu-xhci,id=xhci"])
        .arg("-chardev")
        .arg(format!(
            "socket,id=usb,host=127.0.0.1,port={usb_port},reconnect=1"
        ))
        .args(["-device", "usb-redir,chardev=usb,bus=xhci.0"])
        .arg("-serial")
        .arg(format!("file:{}", at("console")))
        .arg("-monitor")
        .arg(format!("unix:{},server,nowait", at("monitor")));
    Process::spawn("machine", &mut command)
}

/// A camera at the machine's USB; its light is on while pictures are asked for.
pub struct UsbCamera {
    process: Process,
    control: PathBuf,
    folder: PathBuf,
    port: u16,
}

impl UsbCamera {
    fn start(folder: &Path) -> Result<Self> {
        let pictures = folder.join("pictures");
        fs::create_dir(&pictures)?;
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-f", "lavfi", "-i"])
            .arg("testsrc=size=640x480:rate=30:duration=1")
            .args(["-q:v", "5"])
            .arg(pictures.join("mj640x480-%03d.jpg"))
            .args(["-frames:v", "15", "-f", "image2", "-pix_fmt", "yuyv422"])
            .args(["-c:v", "rawvideo"])
            .arg(pictures.join("yuy640x480-%03d.raw"))
            .status()?;
        ensure!(made.success(), "ffmpeg: {made}");
        let script = folder.join("usb-camera.py");
        fs::write(&script, include_str!("usb-camera.py"))?;
        let control = folder.join("camera");
        let mut command = Command::new("python3");
        command.arg(script).args(["0"]).arg(&control).arg(pictures);
        let process = Process::spawn("camera", &mut command)?;
        let (_, line) = process
            .log()
            .wait(0, "the camera's port", |line| line.contains("listening "))?;
        let port = line
            .split("listening ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .with_context(|| line.clone())?;
        Ok(UsbCamera {
            process,
            control,
            folder: folder.into(),
            port,
        })
    }

    /// unplug, plug, freeze, thaw, "eproto N", "stall-commit on", "hang on", status.
    pub fn tell(&self, command: &str) -> Result<String> {
        let mine = self.folder.join("asks");
        let _ = fs::remove_file(&mine);
        let socket = UnixDatagram::bind(&mine)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.send_to(command.as_bytes(), &self.control)?;
        let mut answer = [0; 2000];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    pub fn light(&self) -> Result<bool> {
        let status = self.tell("status")?;
        match () {
            _ if status.contains("on=True") => Ok(true),
            _ if status.contains("on=False") => Ok(false),
            _ => bail!("the camera says {status}"),
        }
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

/// One of them, with what it needs around it.
pub struct Robot {
    pub machine: Machine,
    pub observer: Observer,
    pub relay: Relay,
    broker: Mosquitto,
    /// What uses a camera's driver while nobody has the camera open.
    unused: Vec<(Camera, u32)>,
}

/// Of the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Camera {
    Vivid,
    Usb,
    /// The USB camera by libcamerasrc.
    Libcamera,
}

impl Camera {
    fn driver(self) -> &'static str {
        match self {
            Camera::Vivid => "vivid",
            Camera::Usb | Camera::Libcamera => "uvcvideo",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Camera::Vivid => "v4l2src device=/dev/video0",
            Camera::Usb => {
                "v4l2src device=/dev/v4l/by-id/usb-Droid_Works_Fake_UVC_Camera_SN0001-video-index0"
            }
            Camera::Libcamera => "libcamerasrc",
        }
    }
}

impl Robot {
    pub fn start(disk: Disk) -> Result<Self> {
        let broker = Mosquitto::start()?;
        let kind = match Kind::MediaMtx.notice_if_absent() {
            true => Kind::Nginx,
            false => Kind::MediaMtx,
        };
        let relay = Relay::start(kind)?;
        let observer = Observer::start(&broker)?;
        let mut robot = Robot {
            machine: Machine::boot(disk)?,
            observer,
            relay,
            broker,
            unused: Vec::new(),
        };
        let (mqtt, rtmp) = (
            robot.broker.robot.password.clone(),
            robot.relay.publisher.password.clone(),
        );
        for (name, password) in [("mqtt", mqtt), ("rtmp", rtmp)] {
            let path = format!("/etc/droidrelay/{name}.pass");
            robot.machine.write(&path, &password, "600", "root")?;
        }
        robot.machine.run("udevadm settle")?;
        for camera in [Camera::Vivid, Camera::Usb] {
            let users = robot.users(camera)?;
            robot.unused.push((camera, users));
        }
        Ok(robot)
    }

    /// The driver's users, by the kernel's books.
    fn users(&self, camera: Camera) -> Result<u32> {
        let path = format!("/sys/module/{}/refcnt", camera.driver());
        Ok(self.machine.run(&format!("cat {path}"))?.parse()?)
    }

    pub fn is_open(&self, camera: Camera) -> Result<bool> {
        let unused = self
            .unused
            .iter()
            .find(|(known, _)| known.driver() == camera.driver());
        let (_, unused) = unused.context("no such camera")?;
        let used = self.users(camera)? > *unused;
        if camera != Camera::Vivid {
            ensure!(
                used || !self.machine.usb.light()?,
                "the kernel knows no user, and the camera's light is on"
            );
        }
        Ok(used)
    }

    /// Waits until nobody has the camera open; says how long that took.
    pub fn wait_closed(&self, camera: Camera) -> Result<Duration> {
        let begin = Instant::now();
        let closed = poll(PATIENCE, || (!self.is_open(camera).ok()?).then_some(()));
        closed.with_context(|| {
            let who = self
                .machine
                .run("fuser -v /dev/video* /dev/media* 2>&1 || true");
            format!("the camera is not closed: {}", who.unwrap_or_default())
        })?;
        Ok(begin.elapsed())
    }

    /// Waits until the machine has noticed that the USB camera is unplugged.
    pub fn wait_gone(&self) -> Result<()> {
        let gone = poll(PATIENCE, || {
            self.machine.run("test ! -e /dev/v4l/by-id").ok()
        });
        gone.map(|_| ()).context("the device stays")
    }

    /// Plugged in, thawed, nobody asks for anything, the service runs with vivid and is idle.
    pub fn prepare(&mut self) -> Result<()> {
        for command in ["plug", "thaw", "stall-commit off", "hang off"] {
            self.machine.usb.tell(command)?;
        }
        self.observer.clear(TOPIC)?;
        self.machine.set_network(true)
    }

    /// Runs the service with this camera, a line of `pipelines/` and more variables, anew.
    pub fn serve(&self, camera: Camera, line: &str, variables: &str) -> Result<()> {
        let environment = format!(
            "BROKER=mqtt://{HOST}:{}\nLOCATION=rtmp://{HOST}:{}/{PATH}\nTOPIC={TOPIC}\nMQTT_USER={}\nRTMP_USER={}\nCAMERA={}\n{variables}\n",
            self.broker.port(),
            self.relay.rtmp_port(),
            self.broker.robot.user,
            self.relay.publisher.user,
            camera.source(),
        );
        self.machine.run(
            "systemctl stop droidrelay@robot1; systemctl reset-failed droidrelay@robot1 || true",
        )?;
        self.machine.run(&format!(
            "cp /usr/share/droidrelay/pipelines/{line}.launch /etc/droidrelay/robot1.launch"
        ))?;
        self.machine
            .write("/etc/droidrelay/robot1.env", &environment, "600", "root")?;
        let mark = self.observer.seen().mark();
        self.machine
            .run("systemctl enable --now droidrelay@robot1")
            .with_context(|| self.journal().unwrap_or_default())?;
        self.wait_available(mark, ONLINE)?;
        Ok(())
    }

    pub fn journal(&self) -> Result<String> {
        self.machine
            .run("journalctl -q -b -u droidrelay@robot1 -n 200 -o short-monotonic")
    }

    pub fn mark(&self) -> usize {
        self.observer.seen().mark()
    }

    pub fn wait(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&RobotState) -> bool,
    ) -> Result<(Instant, Box<RobotState>)> {
        let seen = self.observer.seen();
        let found = seen.try_wait(mark, PATIENCE, |seen| seen.state().is_some_and(&wanted));
        match found {
            Some((at, Seen::State(state, _))) => Ok((at, state)),
            _ => bail!("{what}: not seen; last: {:?}", seen.last()),
        }
    }

    pub fn wait_state(&self, mark: usize, wanted: StreamState) -> Result<Instant> {
        let (at, _) = self.wait(mark, wanted.as_str(), |state| state.state == wanted)?;
        Ok(at)
    }

    pub fn wait_available(&self, mark: usize, wanted: &str) -> Result<Instant> {
        let seen = self.observer.seen();
        let found = seen.try_wait(mark, PATIENCE, |seen| seen.is_available(wanted));
        Ok(found.with_context(|| format!("not {wanted}"))?.0)
    }

    /// Nobody lost the robot since then; it never died.
    pub fn was_never_offline(&self, mark: usize) -> Result<()> {
        let died = self
            .machine
            .run("systemctl show -P NRestarts droidrelay@robot1")?;
        ensure!(died == "0", "it died {died} times");
        self.was_online(mark)
    }

    /// Nobody lost the robot since then.
    pub fn was_online(&self, mark: usize) -> Result<()> {
        let offline = self
            .observer
            .seen()
            .position(mark, |seen| seen.is_available(OFFLINE));
        ensure!(
            offline.is_none(),
            "it was offline meanwhile: {:?}",
            self.observer.seen().since(mark)
        );
        Ok(())
    }

    /// What systemd shows of the service.
    pub fn status(&self) -> Result<String> {
        self.machine
            .run("systemctl show -P StatusText droidrelay@robot1")
    }

    /// Waits until systemd shows the service as live, whatever is told by MQTT.
    pub fn wait_live_status(&self) -> Result<()> {
        let live = poll(PATIENCE, || {
            self.status().ok()?.starts_with("live").then_some(())
        });
        live.context("systemd does not show it as live")
    }

    /// Sends `start`; the time to the state `live`.
    pub fn open(&self) -> Result<Duration> {
        let mark = self.mark();
        let sent = self.observer.send("start")?;
        Ok(self.wait_state(mark, StreamState::Live)? - sent)
    }

    /// Sends `stop`; the time to the state `idle`.
    pub fn close(&self) -> Result<Duration> {
        let mark = self.mark();
        let sent = self.observer.send("stop")?;
        Ok(self.wait_state(mark, StreamState::Idle)? - sent)
    }
}

/// Least, median and greatest, in seconds.
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |index: usize| times.get(index).map_or(0.0, Duration::as_secs_f64);
    format!(
        "{:.2}/{:.2}/{:.2} s",
        at(0),
        at(times.len() / 2),
        at(times.len().saturating_sub(1))
    )
}
