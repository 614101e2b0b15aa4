// SPDX-License-Identifier: MPL-2.0

//! The valve at its broker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use droidrelay_wire::{
    RobotState,
    mqtt::session::{Config, Event, Payload, Session},
    words::{
        state::MAX_STATE,
        topics::{OFFLINE, ONLINE},
    },
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    discovery::{self, Device},
    group::Member,
    identity::ClientId,
    identity::Topics,
};
use crate::element::io::Io;

/// The session and what it has published; ends with [`BrokerLink::leave`].
pub struct BrokerLink {
    session: Session,
    member: Member,
    topics: Topics,
    device: Device,
    discovery: Mutex<Discovery>,
    /// Online has been said; the session says it again at each connect.
    said_online: AtomicBool,
    /// Free for others when the session has ended.
    client_id: Arc<ClientId>,
}

/// What Home Assistant has been told.
#[derive(Default)]
struct Discovery {
    /// The prefix below which the device is announced.
    announced: Option<String>,
    /// The prefix as it was set, good or not.
    asked: Option<String>,
    /// Home Assistant has come up.
    again: bool,
}

impl BrokerLink {
    /// Starts connecting, without waiting for it. `wake`: this valve has to publish for its group.
    pub fn connect(
        io: &Handle,
        (config, client_id): (Config, Arc<ClientId>),
        topics: Topics,
        wake: impl Fn() + Send + Sync + 'static,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Self {
        let broker = config.broker.to_string();
        let session = Session::spawn(io, config, on_event);
        BrokerLink {
            session,
            member: Member::join(&broker, &topics.state, wake),
            device: Device::new(client_id.as_str(), topics.clone()),
            topics,
            discovery: Mutex::default(),
            said_online: AtomicBool::new(false),
            client_id,
        }
    }

    /// Another client has taken the session.
    pub fn taken(&self) {
        self.client_id.taken();
    }

    /// Sessions that were up after the first one.
    pub fn reconnects(&self) -> u64 {
        self.session.connects().saturating_sub(1)
    }

    /// Publishes the state of the valve's group, where it is this valve's to publish and new; and
    /// that the group is online, once this valve, which is `connected` now, and all others are
    /// subscribed.
    pub fn publish(&self, state: &RobotState, connected: bool) {
        if connected
            && !self.said_online.load(Ordering::Relaxed)
            && self.member.listens()
            && !self.said_online.swap(true, Ordering::Relaxed)
        {
            self.session.set_retained(&self.topics.availability, ONLINE);
        }
        if let Some(state) = self.member.update(state) {
            self.session
                .set_retained(&self.topics.state, payload_of(state));
        }
    }

    /// Home Assistant has a status; true where it has come up and is to be told again.
    pub fn home_assistant(&self, status: &[u8]) -> bool {
        let up = status == discovery::BIRTH;
        self.discovery.lock().again |= up;
        up
    }

    /// Tells Home Assistant of the device, or takes it back, as `prefix` says; or says what is
    /// wrong with it.
    pub fn announce_device(&self, prefix: Option<String>) -> Result<(), String> {
        let mut discovery = self.discovery.lock();
        let again = std::mem::take(&mut discovery.again);
        let mut checked = Ok(());
        if discovery.asked != prefix {
            discovery.asked.clone_from(&prefix);
            if let Some(before) = discovery.announced.take() {
                let status = discovery::status_topic(&before);
                self.session.unsubscribe(&status);
                self.session
                    .set_retained(&self.device.config_topic(&before), "");
            }
            if let Some(prefix) = &prefix {
                checked = self.device.check(prefix);
            }
            if checked.is_ok() {
                discovery.announced = prefix;
            }
            if let Some(prefix) = &discovery.announced {
                self.session.subscribe(&discovery::status_topic(prefix));
            }
        } else if !again {
            return Ok(());
        }
        if let Some(prefix) = &discovery.announced {
            let topic = self.device.config_topic(prefix);
            self.session.set_retained(&topic, self.device.payload());
        }
        checked
    }

    /// Says goodbye, with `last_state` where no other valve goes on publishing on these topics.
    /// False where that takes longer than `deadline`.
    pub fn leave(
        self,
        io: &Io,
        last_state: impl FnOnce() -> RobotState,
        deadline: Duration,
    ) -> bool {
        let mut last = Vec::new();
        if self.member.leave() {
            last.push((self.topics.state, payload_of(last_state())));
            last.push((self.topics.availability, OFFLINE.into()));
        }
        let session = self.session;
        io.finish(async move { session.stop(last).await }, deadline)
    }
}

/// As much of the state as the broker takes.
fn payload_of(state: RobotState) -> Payload {
    Payload::Fit(Arc::new(move |limit| {
        state.to_payload(limit.min(MAX_STATE))
    }))
}
