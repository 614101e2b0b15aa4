//! The robot: one line, run by gst-launch-1.0 or by the launcher.

use std::{fmt, fs, os::unix::fs::symlink, process::Command};

use anyhow::{ensure, Result};
use tempfile::TempDir;

use crate::{
    journal::Journal,
    process::{artifact, program_of, Process, Signal},
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
    /// Plugin, registry, and whatever the line is told to write.
    _folder: TempDir,
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
        let folder = tempfile::Builder::new().prefix("robot-").tempdir()?;
        // A folder of its own: GStreamer would search all of the build's.
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins)?;
        let library = "libgstdroidrelay.so";
        symlink(artifact(library)?, plugins.join(library))?;
        let mut command = match runner {
            Runner::GstLaunch => {
                let mut command = Command::new(program_of("gst-launch-1.0", "gstreamer1.0-tools")?);
                command.args(line.split_whitespace());
                command
            }
            Runner::Droidrelay => {
                let file = folder.path().join("robot.launch");
                fs::write(&file, line.replace(" ! ", " !\n  ") + "\n")?;
                let mut command = Command::new(artifact("droidrelay")?);
                command.arg("run").arg(file).args(options);
                command
            }
        };
        command
            .env("GST_PLUGIN_PATH", plugins)
            .env("GST_REGISTRY", folder.path().join("registry.bin"))
            .envs(environment.iter().copied());
        let process = Process::spawn(&runner.to_string(), &mut command)?;
        Ok(Robot {
            process,
            runner,
            _folder: folder,
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
