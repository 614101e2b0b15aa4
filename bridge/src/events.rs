// SPDX-License-Identifier: MPL-2.0

//! Server-sent events: what robots say, to everybody who may see it.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde_json::Value;
use tokio::{
    select,
    sync::{
        broadcast::{
            self,
            error::{RecvError, TryRecvError},
        },
        watch,
    },
    task::yield_now,
    time::timeout,
};

use crate::{
    app::Bridge,
    auth::{Right, User},
    failure::Failure,
};

/// Changes that a slow listener may be behind; then it is told everything anew.
const BEHIND: usize = 1024;
/// Robots that are told in one piece.
const PIECE: usize = 64;
/// A sign of life, for proxies and for noticing that a listener is gone.
const SIGN: Duration = Duration::from_secs(15);

/// One event as it goes over the wire, made once for all listeners.
#[derive(Debug, Clone)]
pub struct Event {
    /// Whose; None: of the broker.
    robot: Option<Arc<str>>,
    bytes: Bytes,
}

/// Where events go out.
pub struct Events {
    sender: broadcast::Sender<Event>,
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
    /// Somebody listens.
    pub fn are_wanted(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// A robot is as described; `describe` is not asked where nobody listens.
    pub fn robot(&self, name: &str, describe: impl FnOnce() -> Option<Value>) {
        if !self.are_wanted() {
            // Without listeners nothing is kept.
            self.lock().clear();
            return;
        }
        let Some(description) = describe() else {
            return;
        };
        let (name, bytes): (Arc<str>, _) = (name.into(), frame("robot", &description));
        self.lock().insert(name.clone(), bytes.clone());
        self.send(Some(name), bytes);
    }

    pub fn broker(&self, description: &Value) {
        // What nobody knows any more, or knows again, is described otherwise.
        self.lock().clear();
        self.send(None, frame("broker", description));
    }

    /// The robot's newest event; made under the lock, so that no older one replaces a newer one.
    fn newest(&self, name: &str, describe: impl FnOnce() -> Option<Value>) -> Option<Bytes> {
        let mut newest = self.lock();
        if let Some(bytes) = newest.get(name) {
            return Some(bytes.clone());
        }
        let bytes = frame("robot", &describe()?);
        newest.insert(name.into(), bytes.clone());
        Some(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Bytes>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, robot: Option<Arc<str>>, bytes: Bytes) {
        // Nobody listens any more: nothing is lost.
        let _ = self.sender.send(Event { robot, bytes });
    }
}

fn frame(event: &str, data: &Value) -> Bytes {
    // JSON on one line: no line of it can be mistaken for a field of the event.
    Bytes::from(format!("event: {event}\ndata: {data}\n\n"))
}

/// A listener.
struct Listener {
    bridge: Arc<Bridge>,
    user: Arc<User>,
    events: broadcast::Receiver<Event>,
    /// Robots that it is yet to be told of, as when it has just come.
    untold: VecDeque<String>,
    closing: watch::Receiver<bool>,
    users: watch::Receiver<u64>,
}

impl Listener {
    /// What is to be sent next; None: the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if *self.closing.borrow() {
                return None;
            }
            if !self.untold.is_empty() {
                // There is much to tell, and others have their turn in between.
                yield_now().await;
                return Some(self.tell());
            }
            let event = select! {
                biased;
                _ = self.closing.wait_for(|closing| *closing) => return None,
                // What this user may see may have changed: he comes again.
                _ = self.users.changed() => return None,
                event = timeout(SIGN, self.events.recv()) => event,
            };
            let bytes = match event {
                Ok(Ok(event)) => self.gather(event),
                Ok(Err(RecvError::Lagged(_))) => Some(self.start_anew()),
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => Some(Bytes::from_static(b":\n\n")),
            };
            if bytes.is_some() {
                return bytes;
            }
        }
    }

    /// This event and those that came with it, as far as this user may see them.
    fn gather(&mut self, first: Event) -> Option<Bytes> {
        let mut mine = Vec::new();
        let mut next = Some(first);
        while let Some(Event { robot, bytes }) = next {
            if robot.is_none_or(|name| self.user.may(Right::Look, &name)) {
                mine.push(bytes);
            }
            if mine.len() == PIECE {
                break;
            }
            next = match self.events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Lagged(_)) => return Some(self.start_anew()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => None,
            };
        }
        match mine.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            many => Some(many.concat().into()),
        }
    }

    /// The broker's state now; all robots' states follow.
    fn start_anew(&mut self) -> Bytes {
        let names = self.bridge.fleet.names();
        let mine = |name: &String| self.user.may(Right::Look, name);
        self.untold = names.into_iter().filter(mine).collect();
        self.events = self.bridge.fleet.events.sender.subscribe();
        frame("broker", &self.bridge.fleet.broker())
    }

    fn tell(&mut self) -> Bytes {
        let fleet = &self.bridge.fleet;
        let count = self.untold.len().min(PIECE);
        let frames = self.untold.drain(..count).filter_map(|name| {
            fleet.events.newest(&name, || {
                let robot = fleet.directory.robot(&name)?;
                Some(fleet.describe(&robot))
            })
        });
        frames.collect::<Vec<_>>().concat().into()
    }
}

/// All robots that the user may see, then each change.
pub async fn events(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
) -> Result<Response, Failure> {
    if !user.looks() {
        return Err(Failure::forbidden(format!(
            "user {:?} has no right to look at robots",
            user.name
        )));
    }
    let mut listener = Listener {
        events: bridge.fleet.events.sender.subscribe(),
        closing: bridge.closing.subscribe(),
        users: bridge.auth.generation(),
        untold: VecDeque::new(),
        user,
        bridge,
    };
    let hello = listener.start_anew();
    let counted = listener.bridge.metrics.listeners.count();
    let stream = stream::unfold(
        (Some(hello), listener, counted),
        |(hello, mut listener, counted)| async move {
            let bytes = match hello {
                Some(hello) => hello,
                None => listener.next().await?,
            };
            Some((Ok::<_, Infallible>(bytes), (None, listener, counted)))
        },
    );
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}
