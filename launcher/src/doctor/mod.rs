// SPDX-License-Identifier: MPL-2.0

//! `droidrelay doctor`: looks at everything that a robot's stream needs, and says what is missing
//! and what to do about it. One line for each thing; nothing that runs is disturbed.

mod line;
mod machine;
mod report;
mod server;

use crate::{
    file::source::{self, Source},
    log::Log,
};
use report::{Report, failed};

/// Looks at this machine and, where a launch file is given, at all that it names. With `publish`
/// a test picture goes to its servers for a moment.
pub fn examine(source: Option<Source>, publish: bool, log: &Log) -> u8 {
    let mut report = Report::new(log);
    let started =
        source::init().map_err(|failure| failed(failure.code, "GStreamer", failure.text, ""));
    if report.check(started).is_none() {
        return report.code;
    }
    report.check(machine::plugin(&report));
    report.check(machine::clock(&report));
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
            if let Some(pipeline) = report.check(source.build(&file)) {
                line::pipeline(&file, &pipeline, publish, &mut report);
            }
        }
        None => machine::cameras(&mut report),
    }
    report.code
}
