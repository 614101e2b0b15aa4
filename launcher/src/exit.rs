// SPDX-License-Identifier: MPL-2.0

//! Exit codes, named as in sysexits.h, and what ends a command with one.

pub const OK: i32 = 0;
pub const USAGE: i32 = 64;
pub const DATA: i32 = 65;
pub const NO_INPUT: i32 = 66;
pub const UNAVAILABLE: i32 = 69;
pub const SOFTWARE: i32 = 70;
pub const NO_PERMISSION: i32 = 77;
pub const CONFIG: i32 = 78;

/// Why a command failed.
pub struct Failure {
    pub code: i32,
    pub text: String,
}

impl Failure {
    pub fn new(code: i32, text: impl Into<String>) -> Self {
        Failure {
            code,
            text: text.into(),
        }
    }
}
