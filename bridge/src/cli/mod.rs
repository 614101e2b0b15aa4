// SPDX-License-Identifier: MPL-2.0

//! What the command line does beside serving.

pub mod hook;
pub mod notify;
pub mod robot;
