// SPDX-License-Identifier: MPL-2.0

//! Server-sent events to one listener.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures_util::stream;
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

use super::request::{Caller, Shared};
use crate::{
    auth::{Right, User, Users},
    bridge::Bridge,
    events::{ServerSentEvent, frame},
    failure::Failure,
    metrics::Counted,
    requests::InProgress,
};

/// Robots that are told in one piece.
const PIECE: usize = 64;
/// A sign of life, for proxies and for noticing that a listener is gone.
const SIGN: Duration = Duration::from_secs(15);

/// A listener.
struct Listener {
    bridge: Arc<Bridge>,
    user: Arc<User>,
    events: broadcast::Receiver<ServerSentEvent>,
    /// The broker's state, where it is yet to be told.
    hello: Option<Bytes>,
    /// Robots that it is yet to be told of, as when it has just come.
    untold: VecDeque<String>,
    closing: watch::Receiver<bool>,
    users: watch::Receiver<Users>,
    _counted: Counted,
    /// It has been asked for until it ends.
    _in_progress: Arc<InProgress>,
}

impl Listener {
    /// What is to be sent next; None: the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(hello) = self.hello.take() {
                return Some(hello);
            }
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
                // What this user may see may have changed: it comes again.
                _ = self.users.changed() => return None,
                event = timeout(SIGN, self.events.recv()) => event,
            };
            let bytes = match event {
                Ok(Ok(event)) => self.gather(event),
                Ok(Err(RecvError::Lagged(_))) => {
                    self.start_anew();
                    None
                }
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => Some(Bytes::from_static(b":\n\n")),
            };
            if bytes.is_some() {
                return bytes;
            }
        }
    }

    /// This event and those that came with it, as far as this user may see them.
    fn gather(&mut self, first: ServerSentEvent) -> Option<Bytes> {
        let mut mine = Vec::new();
        let mut next = Some(first);
        while let Some(ServerSentEvent { robot, bytes }) = next {
            if robot.is_none_or(|name| self.user.may(Right::Look, &name)) {
                mine.push(bytes);
            }
            if mine.len() == PIECE {
                break;
            }
            next = match self.events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Lagged(_)) => {
                    self.start_anew();
                    return None;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => None,
            };
        }
        match mine.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            many => Some(many.concat().into()),
        }
    }

    /// Tells the broker's state now, and all robots' states behind it.
    fn start_anew(&mut self) {
        let names = self.bridge.fleet.names();
        let mine = |name: &String| self.user.may(Right::Look, name);
        self.untold = names.into_iter().filter(mine).collect();
        self.events = self.bridge.fleet.events.listen();
        self.hello = Some(frame("broker", &self.bridge.fleet.broker()));
    }

    fn tell(&mut self) -> Bytes {
        let fleet = &self.bridge.fleet;
        let count = self.untold.len().min(PIECE);
        let frames = self
            .untold
            .drain(..count)
            .filter_map(|name| fleet.newest_event(&name));
        frames.collect::<Vec<_>>().concat().into()
    }
}

/// All robots that the user may see, then each change.
pub async fn events(
    State(bridge): Shared,
    Extension(user): Caller,
    Extension(in_progress): Extension<Arc<InProgress>>,
) -> Result<Response, Failure> {
    if !user.looks() {
        return Err(Failure::forbidden(format!(
            "user {:?} has no right to look at robots",
            user.name
        )));
    }
    let mut listener = Listener {
        events: bridge.fleet.events.listen(),
        closing: bridge.closing(),
        users: bridge.auth.users(),
        _counted: bridge.metrics.listeners.count(),
        _in_progress: in_progress,
        hello: None,
        untold: VecDeque::new(),
        user,
        bridge,
    };
    listener.start_anew();
    let stream = stream::unfold(listener, async |mut listener| {
        let bytes = listener.next().await?;
        Some((Ok::<_, Infallible>(bytes), listener))
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}
