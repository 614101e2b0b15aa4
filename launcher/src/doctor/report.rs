// SPDX-License-Identifier: MPL-2.0

//! What the doctor prints, and the exit code that follows from it.

use std::io::Write;

use droidrelay_wire::exit;

use crate::log::Log;

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Not wrong, but good to know.
    Note,
    /// It works, and might not always.
    Warning,
    /// With the exit code that it leads to.
    Failed(u8),
}

/// Prints what is seen as it is seen.
pub struct Report<'a> {
    log: &'a Log,
    /// Of the first failure.
    code: u8,
}

impl<'a> Report<'a> {
    pub fn new(log: &'a Log) -> Self {
        Report {
            log,
            code: exit::OK,
        }
    }

    /// Exit code of the first failure.
    pub fn code(&self) -> u8 {
        self.code
    }

    pub fn ok(&mut self, what: &str, saw: &str) {
        self.line(Verdict::Ok, what, saw, "");
    }

    pub fn note(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Note, what, saw, remedy);
    }

    pub fn warning(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Warning, what, saw, remedy);
    }

    /// Something is not there, or out of reach.
    pub fn missing(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Failed(exit::UNAVAILABLE), what, saw, remedy);
    }

    /// Something is there, but not for us.
    pub fn forbidden(&mut self, what: &str, saw: &str, remedy: &str) {
        self.line(Verdict::Failed(exit::NO_PERMISSION), what, saw, remedy);
    }

    pub fn failed(&mut self, code: u8, what: &str, saw: &str, remedy: &str) {
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
