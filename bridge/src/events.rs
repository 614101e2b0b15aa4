// SPDX-License-Identifier: MPL-2.0

//! Server-sent events: what robots say, to everybody who may see it.

use std::{collections::HashMap, sync::Arc};

use axum::body::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::broadcast;

/// Changes that a slow listener may be behind; then it is told everything anew.
const BEHIND: usize = 1024;

/// One event as it goes over the wire, made once for all listeners.
#[derive(Debug, Clone)]
pub struct ServerSentEvent {
    /// Whose; None: of the broker.
    pub robot: Option<Arc<str>>,
    pub bytes: Bytes,
}

/// Where events go out.
pub struct Events {
    sender: broadcast::Sender<ServerSentEvent>,
    /// Each robot's newest event, for those who come: making it costs more than sending it.
    newest: Mutex<HashMap<Arc<str>, Bytes>>,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            sender: broadcast::Sender::new(BEHIND),
            newest: Mutex::default(),
        }
    }
}

impl Events {
    /// Each change from now on.
    pub fn listen(&self) -> broadcast::Receiver<ServerSentEvent> {
        self.sender.subscribe()
    }

    /// Somebody listens.
    pub fn are_wanted(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// A robot is as described; `describe` is not asked where nobody listens.
    pub fn robot(&self, name: &str, describe: impl FnOnce() -> Option<Value>) {
        if !self.are_wanted() {
            // Without listeners nothing is kept.
            self.newest.lock().clear();
            return;
        }
        let Some(description) = describe() else {
            return;
        };
        let (name, bytes): (Arc<str>, _) = (name.into(), frame("robot", &description));
        self.newest.lock().insert(name.clone(), bytes.clone());
        self.send(Some(name), bytes);
    }

    /// Nothing is known of a robot any more, not even that there is one.
    pub fn gone(&self, name: &str) {
        self.newest.lock().remove(name);
        if self.are_wanted() {
            let bytes = frame("gone", &serde_json::json!({ "robot": name }));
            self.send(Some(name.into()), bytes);
        }
    }

    pub fn broker(&self, description: &Value) {
        // What nobody knows any more, or knows again, is described otherwise.
        self.newest.lock().clear();
        self.send(None, frame("broker", description));
    }

    /// The robot's newest event; made under the lock, so that no older one replaces a newer one.
    pub fn newest(&self, name: &str, describe: impl FnOnce() -> Option<Value>) -> Option<Bytes> {
        let mut newest = self.newest.lock();
        if let Some(bytes) = newest.get(name) {
            return Some(bytes.clone());
        }
        let bytes = frame("robot", &describe()?);
        newest.insert(name.into(), bytes.clone());
        Some(bytes)
    }

    fn send(&self, robot: Option<Arc<str>>, bytes: Bytes) {
        // Nobody listens any more: nothing is lost.
        let _ = self.sender.send(ServerSentEvent { robot, bytes });
    }
}

/// An event in the format of server-sent events.
pub fn frame(event: &str, data: &Value) -> Bytes {
    // JSON on one line: no line of it can be mistaken for a field of the event.
    Bytes::from(format!("event: {event}\ndata: {data}\n\n"))
}
