// SPDX-License-Identifier: MPL-2.0

//! Looking at a value that changes.

use tokio::sync::watch;

/// One value as it changes; who looked last forgets what is kept only for those who look.
pub struct Watcher<'a, T> {
    pub receiver: watch::Receiver<T>,
    /// Dropped after the receiver, which counts until then.
    _forget: Forget<'a>,
}

impl<'a, T> Watcher<'a, T> {
    pub fn new(receiver: watch::Receiver<T>, forget: impl Fn() + Send + 'a) -> Self {
        Watcher {
            receiver,
            _forget: Forget(Box::new(forget)),
        }
    }
}

struct Forget<'a>(Box<dyn Fn() + Send + 'a>);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        (self.0)();
    }
}
