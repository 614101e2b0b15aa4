// SPDX-License-Identifier: MPL-2.0

//! The programs that measure Droidrelay and write `docs/5-reports`.

pub mod bench;
pub mod faults;
pub mod soak;
mod subscriber;
