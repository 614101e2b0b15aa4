// SPDX-License-Identifier: MPL-2.0

//! HTTP to MQTT: starts and stops robots' streams and tells their state.
//!
//! The truth is on the broker: the bridge keeps nothing that a second one beside it, or the
//! same one after a restart, would not learn from the retained topics.

pub mod app;
pub mod auth;
mod client;
mod commands;
pub mod config;
mod events;
mod failure;
pub mod fleet;
pub mod hook;
mod mediamtx;
mod metrics;
pub mod page;
mod poll;
pub mod robot_add;
pub mod robots;
pub mod serve;
mod share;
mod time;
mod views;
pub mod wanted;
mod webhook;

pub use app::{Bridge, app};
pub use config::{Config, ConfigError};
