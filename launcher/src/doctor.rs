// SPDX-License-Identifier: MPL-2.0

//! `droidrelay doctor`: looks at everything that a robot's stream needs, and says what is missing
//! and what to do about it. One line for each thing; nothing that runs is disturbed.

mod line;
mod machine;
mod server;

use std::io::Write;

use crate::{
    cli::exit,
    log::Log,
    pipeline,
    source::{self, Source},
};

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Not wrong, but good to know.
    Note,
    /// It works, and might not always.
    Warning,
    /// With the exit code that it leads to.
    Failed(i32),
}

/// Prints what is seen as it is seen.
pub struct Report<'a> {
    log: &'a Log,
    /// Of the first failure.
    code: i32,
}

impl Report<'_> {
    fn ok(&mut self, what: &str, saw: &str) {
        self.line(Verdict::Ok, what, saw, "");
    }

    fn note(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Note, what, saw, remedy);
    }

    fn warning(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Warning, what, saw, remedy);
    }

    /// Something is not there, or out of reach.
    fn missing(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Failed(exit::UNAVAILABLE), what, saw, remedy);
    }

    /// Something is there, but not for us.
    fn forbidden(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Failed(exit::NO_PERMISSION), what, saw, remedy);
    }

    fn failed(&mut self, code: i32, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Failed(code), what, saw, remedy);
    }

    fn line(&mut self, verdict: Verdict, what: &str, saw: &str, remedy: &str) {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Failed(_) => "FAILED",
        };
        if let (Verdict::Failed(code), exit::OK) = (verdict, self.code) {
            self.code = code;
        }
        let remedy = if remedy.is_empty() {
            String::new()
        } else {
            format!(" -> {remedy}")
        };
        let text = self.log.clean(&format!("{what}: {saw}{remedy}"));
        // The exit code says the most important, also where nobody reads the lines.
        let _ = writeln!(std::io::stdout(), "{word:<8}{text}");
    }
}

/// Looks at this machine and, where a launch file is given, at all that it names. With `publish`
/// a test picture goes to its servers for a moment.
pub fn examine(source: Option<Source>, publish: bool, log: &Log) -> i32 {
    let mut report = Report {
        log,
        code: exit::OK,
    };
    if let Err(failure) = source::init() {
        report.failed(failure.code, "GStreamer", &failure.text, "");
        return report.code;
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
    report.code
}
