// SPDX-License-Identifier: MPL-2.0

//! `droidrelay doctor`: looks at everything that a robot's stream needs, and says what is missing
//! and what to do about it. One line for each thing; nothing that runs is disturbed.

mod line;
mod machine;
mod report;
mod server;

use droidrelay_wire::exit;

use crate::{
    file::{
        pipeline,
        source::{self, Source},
    },
    log::Log,
};
use report::Report;

/// Looks at this machine and, where a launch file is given, at all that it names. With `publish`
/// a test picture goes to its servers for a moment.
pub fn examine(source: Option<Source>, publish: bool, log: &Log) -> u8 {
    let mut report = Report::new(log);
    if let Err(failure) = source::init() {
        report.failed(failure.code, "GStreamer", &failure.text, "");
        return report.code();
    }
    machine::plugin(&mut report);
    machine::clock(&mut report);
    let file = match source.as_ref().map(|source| source.read(log)) {
        Some(Err(failure)) => {
            report.failed(failure.code, "launch file", &failure.text, "");
            None
        }
        Some(Ok(file)) => Some(file),
        None => None,
    };
    machine::encoders(&mut report);
    match (file, source) {
        (Some(file), Some(source)) => {
            line::elements(&file, &mut report);
            match pipeline::build(&file) {
                Ok(pipeline) => line::pipeline(&file, &pipeline, publish, &mut report),
                Err(fault) => {
                    let place = fault.place.map(|at| format!(":{at}")).unwrap_or_default();
                    let what = format!("{}{place}", source.path.display());
                    report.failed(exit::DATA, &what, &fault.text, "");
                }
            }
        }
        _ => machine::cameras(&mut report),
    }
    report.code()
}
