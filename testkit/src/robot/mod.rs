// SPDX-License-Identifier: MPL-2.0

//! The robot: one line, run by gst-launch-1.0 or by the launcher.

pub mod camera;
pub mod many_valves;
pub mod stamps;

use std::{ffi::OsStr, fmt, fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::{
    artifacts::artifact,
    journal::Journal,
    process::{Process, Signal, program_of},
};

/// Who runs the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// Debian's program as it is; the plugin is found through GST_PLUGIN_PATH.
    GstLaunch,
    /// `droidrelay run`.
    Droidrelay,
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Runner::GstLaunch => "gst-launch-1.0",
            Runner::Droidrelay => "droidrelay run",
        })
    }
}

pub struct Robot {
    process: Process,
    runner: Runner,
    _plugins: Plugins,
}

/// A folder with nothing but the built plugin (GStreamer would search all of the build's), and
/// the registry of it.
pub struct Plugins(TempDir);

impl Plugins {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("robot-").tempdir()?;
        let plugins = Plugins(folder);
        let library = "libgstdroidrelay.so";
        fs::create_dir(plugins.folder())?;
        symlink(artifact(library)?, plugins.folder().join(library))?;
        Ok(plugins)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("plugins")
    }

    /// `program`, which finds the plugin.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("GST_PLUGIN_PATH", self.folder())
            .env("GST_REGISTRY", self.0.path().join("registry.bin"));
        command
    }

    pub fn droidrelay(&self) -> Result<Command> {
        Ok(self.command(artifact("droidrelay")?))
    }
}

impl Robot {
    pub fn start(runner: Runner, line: &str) -> Result<Self> {
        Self::start_with(runner, line, &[])
    }

    pub fn start_with(runner: Runner, line: &str, environment: &[(&str, &str)]) -> Result<Self> {
        Self::launch(runner, line, environment, &[])
    }

    /// By `droidrelay run` with these options.
    pub fn supervised(line: &str, options: &[String]) -> Result<Self> {
        Self::launch(Runner::Droidrelay, line, &[], options)
    }

    fn launch(
        runner: Runner,
        line: &str,
        environment: &[(&str, &str)],
        options: &[String],
    ) -> Result<Self> {
        let plugins = Plugins::new()?;
        let mut command = match runner {
            Runner::GstLaunch => {
                let program = program_of("gst-launch-1.0", "gstreamer1.0-tools")?;
                let mut command = plugins.command(program);
                command.args(line.split_whitespace());
                // As mqttvalve's documentation says.
                command.env("MALLOC_TRIM_THRESHOLD_", "131072");
                command
            }
            Runner::Droidrelay => {
                let file = plugins.0.path().join("robot.launch");
                fs::write(&file, line.replace(" ! ", " !\n  ") + "\n")?;
                let mut command = plugins.droidrelay()?;
                command.arg("run").arg(file).args(options);
                command
            }
        };
        command.envs(environment.iter().copied());
        Self::spawn(runner, plugins, &mut command)
    }

    /// `droidrelay run` with these arguments.
    pub fn run<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(
        arguments: I,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let plugins = Plugins::new()?;
        let mut command = plugins.droidrelay()?;
        command.arg("run").args(arguments);
        command.envs(environment.iter().copied());
        Self::spawn(Runner::Droidrelay, plugins, &mut command)
    }

    fn spawn(runner: Runner, plugins: Plugins, command: &mut Command) -> Result<Self> {
        let process = Process::spawn(&runner.to_string(), command)?;
        Ok(Robot {
            process,
            runner,
            _plugins: plugins,
        })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.has_ended().is_none()
    }

    /// Ends as by a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stands still until [`Robot::thaw`].
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Ends it as its user would; fails where it does not end well.
    pub fn end(&mut self) -> Result<()> {
        let status = self.process.end(match self.runner {
            Runner::GstLaunch => Signal::INT,
            Runner::Droidrelay => Signal::TERM,
        })?;
        ensure!(
            status.success(),
            "{}: {status}\n{}",
            self.runner,
            self.text()
        );
        Ok(())
    }

    /// Every line it wrote.
    pub fn log(&self) -> &Journal<String> {
        self.process.log()
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}
