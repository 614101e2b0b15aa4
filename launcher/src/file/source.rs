// SPDX-License-Identifier: MPL-2.0

//! A launch file on the disk: read, its variables replaced, its pipeline built.

use std::path::{Path, PathBuf};

use droidrelay_wire::exit;

use super::{
    launchfile::{Fault, LaunchFile},
    pipeline,
    variables::Variables,
};
use crate::{failure::Failure, log::Log};

fn failure(path: &Path, fault: Fault) -> Failure {
    let place = fault.place.map(|at| format!(":{at}")).unwrap_or_default();
    let text = format!("{}{place}: {}", path.display(), fault.text);
    Failure::new(fault.code, text)
}

/// Where the line comes from; it can be read again.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    /// As given with `--set`.
    pub settings: Vec<String>,
}

impl Source {
    /// Reads the file; its secrets are hidden in `log` from now on.
    pub fn read(&self, log: &Log) -> Result<LaunchFile, Failure> {
        let path = &self.path;
        let mut variables =
            Variables::new(&self.settings).map_err(|text| Failure::new(exit::USAGE, text))?;
        let bytes = std::fs::read(path).map_err(|err| {
            let text = format!("cannot read {}: {err}; name a launch file", path.display());
            Failure::new(exit::NO_INPUT, text)
        })?;
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
        let pipeline = self.build(&file)?;
        Ok((file, pipeline))
    }

    /// Builds the pipeline of the file, which has been read.
    pub fn build(&self, file: &LaunchFile) -> Result<gst::Pipeline, Failure> {
        pipeline::build(file).map_err(|fault| failure(&self.path, fault))
    }
}

/// Starts GStreamer.
pub fn init() -> Result<(), Failure> {
    gst::init().map_err(|err| {
        Failure::new(
            exit::UNAVAILABLE,
            format!("GStreamer does not start: {err}; is libgstreamer1.0-0 complete?"),
        )
    })
}
