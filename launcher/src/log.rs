//! One line per event on stderr, with its level; secrets masked.

use std::io::Write;

use crate::mask::Mask;

#[derive(Clone, Default)]
pub struct Log {
    mask: Mask,
}

impl Log {
    pub fn new(mask: Mask) -> Self {
        Log { mask }
    }

    pub fn error(&self, text: &str) {
        self.line("ERROR", text);
    }

    pub fn warning(&self, text: &str) {
        self.line("WARNING", text);
    }

    pub fn info(&self, text: &str) {
        self.line("INFO", text);
    }

    /// `text` on one line, without its secrets.
    pub fn clean(&self, text: &str) -> String {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        self.mask.apply(&lines.join("; "))
    }

    fn line(&self, level: &str, text: &str) {
        // With stderr gone there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "{level} {}", self.clean(text));
    }
}
