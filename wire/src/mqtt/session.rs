// SPDX-License-Identifier: MPL-2.0

//! An MQTT session that comes back by itself: one task, back-off with jitter, a subscription on
//! every CONNACK, retained topics that always hold the newest value.
//!
//! Nothing here waits on the caller's side: [`Session::set_retained`] stores, and
//! [`Session::publish`] is for callers that want to wait for the broker's PUBACK.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::timeout,
};

pub use super::{
    config::{Config, Credentials, Event, MIN_KEEP_ALIVE, Message, Properties, RECEIVE_MAXIMUM},
    protocol::{Capabilities, Version},
    state::Payload,
};
use super::{
    fault::{Fault, FaultKind},
    state::{Last, State, Waiter},
    task::{CLOSE_TIMEOUT, Task},
};

/// One MQTT session; lives until [`Session::stop`] or until it is dropped (without a clean end).
pub struct Session {
    state: Arc<Mutex<State>>,
    hurry: Arc<Notify>,
    stop: Option<oneshot::Sender<Last>>,
    task: JoinHandle<()>,
}

impl Session {
    /// Starts connecting on `runtime`. `on_event` runs in the session's task: it must not block.
    pub fn spawn(
        runtime: &Handle,
        config: Config,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let hurry = Arc::<Notify>::default();
        let (stop, stopped) = oneshot::channel();
        let task = Task::new(config, state.clone(), hurry.clone(), on_event);
        let task = runtime.spawn(task.run(stopped));
        Session {
            state,
            hurry,
            stop: Some(stop),
            task,
        }
    }

    /// Connected and subscribed at this moment.
    pub fn is_up(&self) -> bool {
        self.state.lock().client.is_some()
    }

    /// Times the session came up so far.
    pub fn connects(&self) -> u64 {
        self.state.lock().connects
    }

    /// The next try to connect, if one is waited for, begins now.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Makes `payload` the retained value of `topic`, now or as soon as the broker is there.
    /// Values that come faster than the broker acknowledges replace each other. What is larger
    /// than the broker takes is not sent, and told by [`Event::Refused`].
    pub fn set_retained(&self, topic: &str, payload: impl Into<Payload>) {
        self.state.lock().set_retained(topic, payload.into());
    }

    /// Subscribes (QoS 1) to `filter` as well, now or as soon as the broker is there, and at each
    /// connect. What is retained there does not come; a session without it is no worse.
    pub fn subscribe(&self, filter: &str) {
        let mut state = self.state.lock();
        if !state.extra.iter().any(|extra| extra == filter) {
            state.extra.push(filter.to_owned());
        }
        state.subscribe_extra(filter);
    }

    /// Ends what [`Session::subscribe`] began.
    pub fn unsubscribe(&self, filter: &str) {
        let mut state = self.state.lock();
        state.extra.retain(|extra| extra != filter);
        if let Some(client) = &state.client {
            client.unsubscribe(filter);
        }
    }

    /// Publishes (QoS 1) and waits for the broker's PUBACK. Fails at once while
    /// the session is down, and when it goes down before the answer: nothing is sent later.
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        properties: Properties,
    ) -> Result<(), Fault> {
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter::Caller(sender);
        self.state
            .lock()
            .publish(topic, payload.into(), properties, waiter)?;
        answer
            .await
            .unwrap_or_else(|_| Err(Fault::new(FaultKind::Offline, "the MQTT session ended")))
    }

    /// Publishes `last` as retained values, disconnects (no last will) and ends the task;
    /// takes less than a fifth of a second, whatever the network does.
    pub async fn stop(mut self, last: Last) {
        if let Some(stop) = self.stop.take()
            && stop.send(last).is_ok()
        {
            // What is not done by then ends with us.
            let _ = timeout(CLOSE_TIMEOUT + CLOSE_TIMEOUT / 3, &mut self.task).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}
