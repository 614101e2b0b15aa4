// SPDX-License-Identifier: MPL-2.0

//! Exit codes, named as in sysexits.h.

pub const OK: u8 = 0;
pub const USAGE: u8 = 64;
pub const DATA: u8 = 65;
pub const NO_INPUT: u8 = 66;
pub const UNAVAILABLE: u8 = 69;
pub const SOFTWARE: u8 = 70;
pub const NO_PERMISSION: u8 = 77;
pub const CONFIG: u8 = 78;
