// SPDX-License-Identifier: MPL-2.0

//! The launcher as a process, as its tests see it.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    artifacts::{artifact, ensure_current},
    process::program_of,
};
use rustix::process::{Pid, Signal, kill_process};

/// Only ends a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn launch(&self, text: &str) -> PathBuf {
        let path = self.path("line.launch");
        fs::write(&path, text).unwrap();
        path
    }
}

pub fn droidrelay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_droidrelay"));
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"] {
        command.env_remove(name);
    }
    command
}

/// A running launcher whose log can be waited for; killed when dropped.
pub struct Running {
    pub child: Child,
    lines: mpsc::Receiver<String>,
    pub log: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running {
            child,
            lines,
            log: String::new(),
        }
    }

    /// Waits for a line that contains `part`.
    pub fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{part:?} does not come; the log:\n{}", self.log);
            };
            self.log.push_str(&line);
            self.log.push('\n');
            if line.contains(part) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        // The pipe ends with the process.
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.log.push_str(&line);
            self.log.push('\n');
        }
        assert!(Instant::now() < deadline, "no end; the log:\n{}", self.log);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// As [`droidrelay`], with the plugin, and with the scripted camera of the tests.
pub fn droidrelay_with_plugins() -> Command {
    with_plugins(droidrelay())
}

/// GStreamer's own launcher, with the same; what it writes to stdout is on stderr.
pub fn gst_launch_with_plugins() -> Command {
    let program = program_of("gst-launch-1.0", "gstreamer1.0-tools").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" >&2"#]).arg(program);
    with_plugins(command)
}

fn with_plugins(mut command: Command) -> Command {
    static PLUGINS: OnceLock<PathBuf> = OnceLock::new();
    let plugins = PLUGINS.get_or_init(|| {
        // Kept from run to run, with GStreamer's registry, which takes seconds to make.
        let plugins = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launcher-plugins");
        fs::create_dir_all(&plugins).unwrap();
        let built = artifact("libgstdroidrelay.so").unwrap();
        let scripted = built.with_file_name("examples").join("libgstscripted.so");
        for plugin in [&built, &scripted] {
            ensure_current(plugin).unwrap();
            let link = plugins.join(plugin.file_name().unwrap());
            if fs::read_link(&link).is_ok_and(|to| to != *plugin) {
                // Of a target folder that was elsewhere.
                let _ = fs::remove_file(&link);
            }
            // Another test program may be the first.
            let _ = symlink(plugin, link);
        }
        plugins
    });
    command
        .env("GST_PLUGIN_PATH", plugins)
        .env("GST_REGISTRY", plugins.join("registry.bin"));
    command
}

/// systemd's end of the notify socket.
pub struct Systemd(UnixDatagram);

impl Systemd {
    pub fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Systemd(socket)
    }

    /// The next message, one assignment a line.
    pub fn hear(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits for a line that begins with `part`; all messages up to the one with it.
    pub fn wait_for(&self, part: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            let Some(text) = self.hear() else { break };
            let found = text.lines().any(|line| line.starts_with(part));
            heard.push(text);
            if found {
                return heard;
            }
        }
        panic!("{part} not heard; heard:\n{}", heard.join("\n"));
    }
}
