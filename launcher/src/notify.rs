//! What systemd is told over `$NOTIFY_SOCKET`; without one, nothing.

use sd_notify::NotifyState;

use crate::log::Log;

pub struct Notify {
    log: Log,
    ready: bool,
    status: String,
}

impl Notify {
    pub fn new(log: Log) -> Self {
        Notify {
            log,
            ready: false,
            status: String::new(),
        }
    }

    /// Feeds systemd's watchdog, if it has one, from the main loop.
    pub fn feed_watchdog(&self) {
        if let Some(interval) = sd_notify::watchdog_enabled() {
            glib::timeout_add_local(interval / 2, || {
                // A watchdog that is not fed ends us; a lost socket cannot be helped here.
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                glib::ControlFlow::Continue
            });
        }
    }

    /// The pipeline plays; told once.
    pub fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.send(&[NotifyState::Ready]);
        }
    }

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
