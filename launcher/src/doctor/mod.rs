// SPDX-License-Identifier: MPL-2.0

//! `droidrelay doctor`: looks at everything that a robot's stream needs, and says what is missing
//! and what to do about it. One line for each thing; nothing that runs is disturbed.

mod device;
mod line;
mod machine;
mod report;
mod server;
mod service;

use std::path::PathBuf;

use crate::{
    file::source::{self, Settings, Source},
    log::Log,
};
use report::{Report, failed};

/// Looks at what `given` names, which is a launch file or a robot's service, or at this machine.
pub fn look(given: Option<PathBuf>, settings: Settings, publish: bool, log: &Log) -> u8 {
    if let Some(name) = given.as_deref().and_then(service::name_of) {
        let options = service::options(settings.set(), publish);
        return service::examine(name, &options, &mut Report::new(log));
    }
    let source = given.map(|file| Source { file, settings });
    examine(source, publish, log)
}

/// Looks at this machine and, where a launch file is given, at all that it names. With `publish`
/// a test picture goes to its servers for a moment.
fn examine(source: Option<Source>, publish: bool, log: &Log) -> u8 {
    let mut report = Report::new(log);
    let started =
        source::init().map_err(|failure| failed(failure.code, "GStreamer", failure.text, ""));
    if report.check(started).is_none() {
        return report.code;
    }
    report.check(machine::plugin(&report));
    let read = source.and_then(|source| {
        let file = source
            .read(log)
            .map_err(|failure| failed(failure.code, "launch file", failure.text, ""));
        Some((report.check(file)?, source))
    });
    report.check(machine::encoders(&report));
    match read {
        Some((file, source)) => {
            line::elements(&file, &mut report);
            // In the order in which a person mends it: nothing is seen of a server by a machine
            // whose files are missing or whose clock is wrong.
            let pipeline = report.check(source.build(&file, log));
            if let Some(pipeline) = &pipeline {
                line::files(pipeline, &mut report);
            }
            report.check(machine::clock(&report));
            if let Some(pipeline) = pipeline {
                line::pipeline(&file, &pipeline, publish, &mut report);
            }
        }
        None => {
            report.check(machine::clock(&report));
            machine::cameras(&mut report);
        }
    }
    report.code
}
