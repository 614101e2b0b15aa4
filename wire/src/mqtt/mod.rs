// SPDX-License-Identifier: MPL-2.0

//! The MQTT session that robot and bridge keep.

pub mod broker;
mod config;
mod connection;
pub mod fault;
mod protocol;
pub mod reason;
pub mod session;
mod state;
mod task;
mod transport;
