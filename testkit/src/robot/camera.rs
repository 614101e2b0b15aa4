// SPDX-License-Identifier: MPL-2.0

//! A camera that is really opened and closed: a device, or a process that plays into shared
//! memory what a robot's line opens with `shmsrc`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Process, Signal, program_of, text_of};

/// What the played camera gives.
const CAPS: &str = "video/x-raw,format=I420,width=640,height=360,framerate=25/1";
/// Shared memory for some 20 pictures.
const MEMORY: u32 = 8_000_000;
/// For a player to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Camera {
    name: String,
    source: Source,
}

enum Source {
    Device(PathBuf),
    Player(Player),
}

impl Camera {
    /// The device `path`.
    pub fn device(path: &Path) -> Self {
        Camera {
            name: path.display().to_string(),
            source: Source::Device(path.to_owned()),
        }
    }

    /// The video file `clip`, over and over, at 25 pictures a second.
    pub fn clip(clip: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("camera-").tempdir()?;
        let output = Command::new(program_of("ffmpeg", "ffmpeg")?)
            .args(["-v", "error", "-nostdin", "-i"])
            .arg(clip)
            .args(["-an", "-q:v", "3", "-vf"])
            .arg("fps=25,scale=640:360:force_original_aspect_ratio=decrease,pad=640:360:-1:-1")
            .arg(folder.path().join("%05d.jpg"))
            .output()?;
        ensure!(
            output.status.success(),
            "{} cannot be decoded: {}",
            clip.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let pictures = text_of(folder.path())?;
        let source = format!(
            "multifilesrc location={pictures}/%05d.jpg start-index=1 index=1 loop=true caps=image/jpeg,framerate=25/1 ! jpegdec ! videoconvert"
        );
        let name = clip.file_name().unwrap_or(clip.as_os_str()).display();
        Self::played(format!("{name}, over and over"), folder, &source)
    }

    /// GStreamer's test picture.
    pub fn test_picture() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("camera-").tempdir()?;
        Self::played("a test picture".into(), folder, "videotestsrc is-live=true")
    }

    fn played(name: String, folder: TempDir, source: &str) -> Result<Self> {
        Ok(Camera {
            name,
            source: Source::Player(Player::start(folder, source)?),
        })
    }

    /// What is in front of the lens.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The beginning of the robot's line.
    pub fn line(&self) -> String {
        match &self.source {
            Source::Device(path) => format!(
                "v4l2src device={} ! video/x-raw,width=640,height=480 ! videoconvert",
                path.display()
            ),
            Source::Player(player) => format!(
                "shmsrc socket-path={} is-live=true do-timestamp=true ! {CAPS}",
                player.socket().display()
            ),
        }
    }

    /// Is unplugged.
    pub fn lose(&mut self) -> Result<()> {
        match &mut self.source {
            Source::Device(path) => bail!("{} cannot be unplugged from here", path.display()),
            Source::Player(player) => {
                player.end();
                Ok(())
            }
        }
    }

    /// Is plugged in again, where it was.
    pub fn bring_back(&mut self) -> Result<()> {
        match &mut self.source {
            Source::Device(path) => bail!("{} cannot be plugged in from here", path.display()),
            Source::Player(player) => player.restart(),
        }
    }

    /// How to see whether a process holds this camera open.
    pub fn probe(&self) -> Probe {
        match &self.source {
            Source::Device(path) => Probe::File(path.clone()),
            Source::Player(player) => Probe::Memory(player.memory()),
        }
    }
}

/// Where an open camera shows in the kernel's books.
#[derive(Clone)]
pub enum Probe {
    /// Among the open files.
    File(PathBuf),
    /// Among the mapped memory, by the beginning of its name.
    Memory(String),
}

impl Probe {
    pub fn is_open_in(&self, id: u32) -> Result<bool> {
        match self {
            Probe::File(path) => {
                let files = fs::read_dir(format!("/proc/{id}/fd"))?;
                // A file may be closed between listing and looking.
                Ok(files
                    .flatten()
                    .filter_map(|file| fs::read_link(file.path()).ok())
                    .any(|file| file == *path))
            }
            Probe::Memory(name) => {
                let maps = fs::read_to_string(format!("/proc/{id}/maps"))?;
                Ok(maps.contains(name))
            }
        }
    }
}

struct Player {
    process: Process,
    source: String,
    folder: TempDir,
}

impl Player {
    fn start(folder: TempDir, source: &str) -> Result<Self> {
        let source = source.to_owned();
        let process = play(&folder.path().join("camera"), &source)?;
        Ok(Player {
            process,
            source,
            folder,
        })
    }

    /// Leaves nothing behind, however it ends.
    fn end(&mut self) {
        self.process.signal(Signal::INT);
        // shmsink hangs at times when it is ended in its first moment.
        if self.process.wait(PATIENCE).is_none() {
            self.process.kill();
        }
        let name = self.memory();
        let memory = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        for file in memory {
            if file.path().to_string_lossy().contains(&name) {
                // Gone already where it ended by itself.
                let _ = fs::remove_file(file.path());
            }
        }
        // The next one would take another name beside it.
        let _ = fs::remove_file(self.socket());
    }

    fn restart(&mut self) -> Result<()> {
        self.process = play(&self.socket(), &self.source)?;
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("camera")
    }

    /// How the name of shmsink's memory begins (gst-plugins-bad, sys/shm/shmalloc.c).
    fn memory(&self) -> String {
        format!("/shmpipe.{:5}.", self.process.id())
    }
}

fn play(socket: &Path, source: &str) -> Result<Process> {
    let line = format!(
        "-q {source} ! {CAPS},colorimetry=bt601 ! shmsink socket-path={} shm-size={MEMORY} wait-for-connection=false sync=true",
        text_of(socket)?
    );
    let mut command = Command::new(program_of("gst-launch-1.0", "gstreamer1.0-tools")?);
    command.args(line.split_whitespace());
    let mut process = Process::spawn("camera", &mut command)?;
    process
        .wait_ready(|| is_listened_at(socket))
        .context("the camera does not start")?;
    Ok(process)
}

/// Not tried by connecting: a client that leaves at once ends shmsink.
fn is_listened_at(socket: &Path) -> bool {
    /// SO_ACCEPTCON (Linux, proc_net_unix).
    const LISTENING: &str = " 00010000 ";
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let name = socket.to_string_lossy();
    sockets
        .lines()
        .any(|line| line.contains(LISTENING) && line.ends_with(&*name))
}

impl Drop for Player {
    fn drop(&mut self) {
        self.end();
    }
}
