// SPDX-License-Identifier: MPL-2.0

//! What systemd is told over `$NOTIFY_SOCKET`; without one, nothing.

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
