// SPDX-License-Identifier: MPL-2.0

//! How a command ends where it does not end well.

/// What is wrong, what to do, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

impl Failure {
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Failure {
            code,
            text: text.into(),
        }
    }
}
