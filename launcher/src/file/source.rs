// SPDX-License-Identifier: MPL-2.0

//! A launch file on the disk: read, its variables replaced, its pipeline built.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueHint};
use droidrelay_wire::exit::{self, Failure};

use super::{
    commandsrc,
    launchfile::{Fault, LaunchFile},
    pipeline,
    variables::Variables,
};
use crate::log::Log;

fn failure(path: &Path, fault: Fault) -> Failure {
    let place = fault.place.map(|at| format!(":{at}")).unwrap_or_default();
    let text = format!("{}{place}: {}", path.display(), fault.text);
    Failure::new(fault.code, text)
}

// Where the line comes from; it can be read again. (What clap documents is for its users.)
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// The launch file
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub settings: Settings,
}

#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Value of a variable in the file; not for secrets
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// As they stand on the command line.
    pub fn set(&self) -> &[String] {
        &self.set
    }
}

impl Source {
    /// Reads the file; its secrets are hidden in `log` from now on.
    pub fn read(&self, log: &Log) -> Result<LaunchFile, Failure> {
        let path = &self.file;
        let mut variables =
            Variables::new(&self.settings.set).map_err(|text| Failure::new(exit::USAGE, text))?;
        let bytes = std::fs::read(path)
            .map_err(|err| Failure::new(exit::NO_INPUT, unreadable(path, &err)))?;
        let text = String::from_utf8(bytes).map_err(|err| {
            let valid = &err.as_bytes()[..err.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
            let path = path.display();
            let text = format!("{path}:{line}: not UTF-8: save the file as UTF-8");
            Failure::new(exit::DATA, text)
        })?;
        let file = LaunchFile::parse(&text, &mut |name| variables.look_up(name))
            .map_err(|fault| failure(path, fault))?;
        log.hide(&file.mask);
        for name in variables.unused() {
            log.warning(&format!(
                "--set {name}: {} has no ${{{name}}}",
                path.display()
            ));
        }
        Ok(file)
    }

    /// Reads the file and builds its pipeline.
    pub fn load(&self, log: &Log) -> Result<(LaunchFile, gst::Pipeline), Failure> {
        let file = self.read(log)?;
        init()?;
        let pipeline = self.build(&file, log)?;
        Ok((file, pipeline))
    }

    /// Builds the pipeline of the file, which has been read. What its elements call a secret is
    /// hidden in `log` from now on.
    pub fn build(&self, file: &LaunchFile, log: &Log) -> Result<gst::Pipeline, Failure> {
        log.hide(&pipeline::secrets(file));
        pipeline::build(file).map_err(|fault| failure(&self.file, fault))
    }
}

/// Why a launch file cannot be read, with the remedy.
fn unreadable(path: &Path, err: &io::Error) -> String {
    let remedy = match err.kind() {
        io::ErrorKind::PermissionDenied => {
            "the user who runs this needs the right to read it, and to enter its folders: in /etc/droidrelay that is root and the group droidrelay (chgrp droidrelay FILE, chmod 640 FILE)"
        }
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => "name a launch file",
        _ => "look at the disk (dmesg)",
    };
    format!("cannot read {}: {err}; {remedy}", path.display())
}

/// Starts GStreamer.
pub fn init() -> Result<(), Failure> {
    gst::init().map_err(|err| {
        Failure::new(
            exit::UNAVAILABLE,
            format!("GStreamer does not start: {err}; is libgstreamer1.0-0 complete?"),
        )
    })?;
    commandsrc::register()
        .map_err(|err| Failure::new(exit::SOFTWARE, format!("{}: {err}", commandsrc::NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_and_cannot_be_read_is_told_from_one_that_is_not() {
        let said = |kind: io::ErrorKind| unreadable(Path::new("/etc/x.launch"), &kind.into());
        let denied = said(io::ErrorKind::PermissionDenied);
        assert!(denied.contains("right to read it"), "{denied}");
        assert!(!denied.contains("name a launch file"), "{denied}");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::IsADirectory] {
            assert!(said(kind).ends_with("name a launch file"));
        }
    }
}
