// SPDX-License-Identifier: MPL-2.0

//! HTTP to MQTT: starts and stops robots' streams and tells their state.
//!
//! The truth is on the broker: the bridge keeps nothing that a second one beside it, or the
//! same one after a restart, would not learn from the retained topics.

pub mod auth;
mod bridge;
pub mod cli;
mod clock;
pub mod config;
mod demand;
mod events;
mod failure;
mod fleet;
pub mod housekeeping;
mod http;
mod metrics;
mod note;
mod presence;
mod random;
mod robots;
pub mod serve;
mod share;
mod view;
mod views;
mod wanted;
mod watch;
mod watcher;
mod webhook;

pub use bridge::Bridge;
pub use config::Config;
pub use http::app;
