// SPDX-License-Identifier: MPL-2.0

//! What the doctor prints, and the exit code that follows from it.

use std::{fmt::Display, io::Write};

use droidrelay_wire::exit::{self, Failure};

use crate::log::Log;

/// Prints what is seen as it is seen.
pub struct Report<'a> {
    log: &'a Log,
    /// Exit code of the first failure.
    pub code: u8,
}

impl<'a> Report<'a> {
    pub fn new(log: &'a Log) -> Self {
        Report {
            log,
            code: exit::OK,
        }
    }

    pub fn ok(&self, what: impl Display, saw: impl Display) {
        self.print("ok", &line(what, saw, ""));
    }

    /// Not wrong, but good to know.
    pub fn note(&self, what: impl Display, saw: impl Display, remedy: &str) {
        self.print("note", &line(what, saw, remedy));
    }

    /// It works, and might not always.
    pub fn warning(&self, what: impl Display, saw: impl Display, remedy: &str) {
        self.print("warning", &line(what, saw, remedy));
    }

    /// What came of a look, unless that has failed.
    pub fn check<T>(&mut self, looked: Result<T, Failure>) -> Option<T> {
        looked.map_err(|failure| self.fail(failure)).ok()
    }

    pub fn fail(&mut self, failure: Failure) {
        if self.code == exit::OK {
            self.code = failure.code;
        }
        self.print("FAILED", &failure.text);
    }

    fn print(&self, word: &str, line: &str) {
        // The exit code says the most important, also where nobody reads the lines.
        let _ = writeln!(std::io::stdout(), "{word:<8}{}", self.log.clean(line));
    }
}

/// Something is not there, or out of reach.
pub fn missing(what: impl Display, saw: impl Display, remedy: &str) -> Failure {
    failed(exit::UNAVAILABLE, what, saw, remedy)
}

/// Something is there, but not for us.
pub fn forbidden(what: impl Display, saw: impl Display, remedy: &str) -> Failure {
    failed(exit::NO_PERMISSION, what, saw, remedy)
}

pub fn failed(code: u8, what: impl Display, saw: impl Display, remedy: &str) -> Failure {
    Failure::new(code, line(what, saw, remedy))
}

fn line(what: impl Display, saw: impl Display, remedy: &str) -> String {
    match remedy {
        "" => format!("{what}: {saw}"),
        remedy => format!("{what}: {saw} -> {remedy}"),
    }
}
