// SPDX-License-Identifier: MPL-2.0

//! What systemd is told over `$NOTIFY_SOCKET`; without one, nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::log::Log;

#[derive(Default)]
pub struct Notify {
    log: Log,
    ready: bool,
    reloading: bool,
    status: String,
}

impl Notify {
    pub fn new(log: Log) -> Self {
        Notify {
            log,
            ..Notify::default()
        }
    }

    /// How long systemd waits for [`Notify::alive`]; None: it has no watchdog.
    pub fn watchdog(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// Feeds the watchdog. One that is not fed ends us.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// The pipeline plays; told once, and at the end of each reload.
    pub fn ready(&mut self) {
        if !self.ready || self.reloading {
            self.ready = true;
            self.reloading = false;
            self.send(&[NotifyState::Ready]);
        }
    }

    /// A start takes this much longer than systemd may think; of no use once we were ready.
    pub fn not_yet(&self, more: Duration) {
        if !self.ready {
            let more = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
            self.send(&[NotifyState::ExtendTimeoutUsec(more)]);
        }
    }

    /// A reload begins, at this moment of the clock that systemd knows it by.
    pub fn reloading(&mut self) {
        self.reloading = true;
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    /// The reload is over, well or not; `ready` is told again if it was before.
    pub fn reloaded(&mut self) {
        if std::mem::take(&mut self.reloading) && self.ready {
            self.send(&[NotifyState::Ready]);
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, text: &str) {
        let text = self.log.clean(text);
        if text != self.status {
            self.send(&[NotifyState::Status(&text)]);
            self.status = text;
        }
    }

    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    fn send(&self, states: &[NotifyState]) {
        if let Err(err) = sd_notify::notify(states) {
            self.log
                .warning(&format!("cannot write to $NOTIFY_SOCKET: {err}"));
        }
    }
}
