// SPDX-License-Identifier: MPL-2.0

//! A virtual machine with Debian's kernel, and a USB camera that is a program on this one.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use droidrelay_testkit::process::{Process, free_port, poll};
use tempfile::TempDir;

/// A boot takes half a minute on a quiet machine.
const BOOT: Duration = Duration::from_secs(600);

/// This machine, as the virtual one sees it.
pub const HOST: &str = "10.0.2.2";

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
        let process = launch(&disk, scratch.path(), ssh_port, usb.port, None)?;
        let machine = Machine {
            disk,
            scratch,
            process,
            ssh_port,
            usb,
        };
        machine.wait_for_ssh()?;
        Ok(machine)
    }

    /// The plug is pulled, and put in again; the clock of the board may begin at another time.
    pub fn power_cut(&mut self, clock: Option<&str>) -> Result<()> {
        self.process.kill();
        self.process = launch(
            &self.disk,
            self.scratch.path(),
            self.ssh_port,
            self.usb.port,
            clock,
        )?;
        self.wait_for_ssh()
    }

    fn wait_for_ssh(&self) -> Result<()> {
        let up = poll(BOOT, || self.run("true").ok());
        up.map(drop).with_context(|| {
            let console = fs::read_to_string(self.scratch.path().join("console"));
            let console = console.unwrap_or_default();
            let end: Vec<&str> = console.lines().rev().take(20).collect();
            format!("the machine does not come up:\n{}", end.join("\n"))
        })
    }

    /// What `script` writes, run by its shell as root.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = Command::new("ssh")
            .arg("-q")
            .arg("-i")
            .arg(self.disk.folder.join("key"))
            .args(["-p", &self.ssh_port.to_string()])
            .args(["-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10"])
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

fn launch(
    disk: &Disk,
    scratch: &Path,
    ssh_port: u16,
    usb_port: u16,
    clock: Option<&str>,
) -> Result<Process> {
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
    if let Some(clock) = clock {
        command.args(["-rtc", &format!("base={clock}")]);
    }
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
