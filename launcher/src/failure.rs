// SPDX-License-Identifier: MPL-2.0

//! What ends a command.

/// Why a command failed.
pub struct Failure {
    /// One of [`droidrelay_wire::exit`].
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
