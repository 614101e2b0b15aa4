// SPDX-License-Identifier: MPL-2.0

//! The MQTT session that robot and bridge keep.

pub mod broker;
pub mod fault;
pub mod session;
mod transport;
