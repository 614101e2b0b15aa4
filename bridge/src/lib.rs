// SPDX-License-Identifier: MPL-2.0

//! HTTP to MQTT: starts and stops robots' streams and tells their state.
//!
//! The truth is on the broker: the bridge keeps nothing that a second one beside it, or the
//! same one after a restart, would not learn from the retained topics.

pub mod auth;
mod bridge;
/// What the command line does beside serving.
pub mod cli {
    pub mod enroll;
    pub mod hook;
    /// What systemd is told over `$NOTIFY_SOCKET`; without one, nothing.
    pub mod notify {
        use sd_notify::NotifyState;
        use tracing::warn;

        /// The bridge listens; from here on the runtime that calls this feeds systemd's watchdog, if it
        /// has one, until it ends.
        pub fn ready() {
            send(NotifyState::Ready);
            if let Some(interval) = sd_notify::watchdog_enabled() {
                tokio::spawn(async move {
                    let mut ticks = tokio::time::interval(interval / 2);
                    loop {
                        ticks.tick().await;
                        send(NotifyState::Watchdog);
                    }
                });
            }
        }

        pub fn stopping() {
            send(NotifyState::Stopping);
        }

        fn send(state: NotifyState) {
            if let Err(err) = sd_notify::notify(&[state]) {
                warn!("cannot write to $NOTIFY_SOCKET: {err}");
            }
        }
    }
    pub mod robot;
}
mod clock;
pub mod config;
pub mod connections;
mod demand;
mod enroll;
mod events;
mod failure;
mod fleet;
mod grants;
pub mod housekeeping;
mod http;
pub mod log;
mod metrics;
mod note;
mod random;
mod requests;
mod robots;
pub mod serve;
pub mod sessions;
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
