use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
    process::{Command, ExitStatus},
    time::Duration,
};

use rustix::process::Signal;

use crate::{binary, plugin_dir, Folder, Process};

/// A pipeline with our plugin in a process of its own.
pub struct Robot {
    process: Process,
    _folder: Folder,
}

/// [`Robot`] with more environment.
pub struct RobotBuilder {
    description: String,
    environment: Vec<(OsString, OsString)>,
    arguments: Vec<OsString>,
}

impl Robot {
    /// `description` in an unmodified `gst-launch-1.0 -e`.
    pub fn gst_launch(description: &str) -> Self {
        Self::builder(description).gst_launch()
    }

    /// `description` as a file of `droidrelay run`.
    pub fn launcher(description: &str) -> Self {
        Self::builder(description).launcher()
    }

    /// The description is split at white space, as a shell would without any quotes.
    pub fn builder(description: &str) -> RobotBuilder {
        RobotBuilder {
            description: description.to_owned(),
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Ctrl-C; panics where the process does not end in time.
    pub fn interrupt(&self, deadline: Duration) -> ExitStatus {
        self.process.end(Signal::INT, deadline)
    }

    /// SIGTERM; panics where the process does not end in time.
    pub fn terminate(&self, deadline: Duration) -> ExitStatus {
        self.process.end(Signal::TERM, deadline)
    }

    /// Signals, waiting, the end.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What the descriptors stand for, as /proc names it.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let Ok(folder) = fs::read_dir(format!("/proc/{}/fd", self.pid())) else {
            return Vec::new();
        };
        folder
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect()
    }

    /// As `ps` shows it.
    pub fn cmdline(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }
}

impl RobotBuilder {
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.push(pair);
        self
    }

    /// One more argument: before the description of gst-launch, behind the file of the launcher.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn gst_launch(self) -> Robot {
        let mut command = Command::new("gst-launch-1.0");
        command
            .arg("-e")
            .args(&self.arguments)
            .args(self.description.split_whitespace());
        self.start(command, Folder::new())
    }

    pub fn launcher(self) -> Robot {
        let folder = Folder::new();
        let mut command = Command::new(binary("droidrelay"));
        command
            .arg("run")
            .arg(folder.write("robot.launch", &self.description))
            .args(&self.arguments);
        self.start(command, folder)
    }

    fn start(self, mut command: Command, folder: Folder) -> Robot {
        command
            .env("GST_PLUGIN_PATH", plugin_dir())
            .env("GST_REGISTRY", folder.join("registry.bin"))
            .envs(self.environment);
        Robot {
            process: Process::spawn(command, |_| ()),
            _folder: folder,
        }
    }
}
