// SPDX-License-Identifier: MPL-2.0

//! Who sends commands, and who watches.

pub mod browser;
pub mod observer;
pub mod reader;
pub mod rtsp;
