// SPDX-License-Identifier: MPL-2.0

//! What a session's task and its callers share: retained values, and who waits for an answer.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    config::Properties,
    fault::{Fault, FaultKind},
    protocol::{Capabilities, Client, RetainedAt},
    reason::Reason,
};

/// A connection that lasted this long was a good one.
pub(super) const STABLE: Duration = Duration::from_secs(10);
/// What a PUBLISH holds beside topic and payload, of the kind that is sent here; and some room.
const OVERHEAD: usize = 32;
/// A broker that has refused a payload by its size is not tried with less.
const SMALLEST: usize = 128;
/// A connection that ends soon, with a payload of this size on its way, may end for that.
const LARGE: usize = 1024;
/// Connections in a row that the broker has ended soon, before somebody else is thought of.
const SUSPICIOUS: u32 = 3;

/// A retained value.
#[derive(Clone)]
pub enum Payload {
    Bytes(Vec<u8>),
    /// Made for the broker: with at most so many bytes, where that can be done.
    Fit(Arc<dyn Fn(usize) -> Vec<u8> + Send + Sync>),
}

impl Default for Payload {
    fn default() -> Self {
        Payload::Bytes(Vec::new())
    }
}

impl<T: Into<Vec<u8>>> From<T> for Payload {
    fn from(bytes: T) -> Self {
        Payload::Bytes(bytes.into())
    }
}

/// Topics and what is to be retained there in the end.
pub type Last = Vec<(String, Payload)>;

impl Payload {
    fn within(&self, limit: usize) -> Vec<u8> {
        match self {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Fit(make) => make(limit),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    /// Set while connected and subscribed.
    pub client: Option<Client>,
    capabilities: Option<Capabilities>,
    pub connects: u64,
    retained: BTreeMap<String, Retained>,
    /// Topic filters beside those of the configuration.
    pub extra: Vec<String>,
    /// Publishes handed to the event loop, in order, which it has not numbered yet, with the bytes
    /// of their payloads.
    unnumbered: VecDeque<(Waiter, usize)>,
    /// As those, by packet identifier.
    numbered: HashMap<u16, (Waiter, usize)>,
    /// Bytes of a payload that the broker has shown to take, where it has refused a larger one.
    learned: Option<usize>,
    up_since: Option<Instant>,
    /// Connections in a row that ended soon after they were up.
    quick_ends: u32,
    /// What nobody has been told yet.
    refused: Vec<Fault>,
}

#[derive(Default)]
struct Retained {
    payload: Payload,
    dirty: bool,
    in_flight: bool,
    /// The broker has refused it in this connection, or would.
    refused: bool,
}

/// Who hears of a PUBACK.
pub(super) enum Waiter {
    Caller(oneshot::Sender<Result<(), Fault>>),
    Retained(String),
}

impl State {
    pub fn set_retained(&mut self, topic: &str, payload: Payload) {
        let slot = self.retained.entry(topic.to_owned()).or_default();
        slot.payload = payload;
        slot.dirty = true;
        self.flush();
    }

    /// Bytes of the largest payload that the broker takes on `topic`.
    fn room(&self, topic: &str) -> usize {
        let announced = self
            .capabilities
            .and_then(|has| has.max_packet)
            .map(|max| (max as usize).saturating_sub(topic.len() + OVERHEAD));
        let limits = announced.into_iter().chain(self.learned);
        limits.min().unwrap_or(usize::MAX)
    }

    /// `payload` as the broker takes it on `topic`; None: it takes no such thing.
    pub fn fitting(&self, topic: &str, payload: &Payload) -> Option<Vec<u8>> {
        let room = self.room(topic);
        Some(payload.within(room)).filter(|payload| payload.len() <= room)
    }

    pub fn publish(
        &mut self,
        topic: &str,
        payload: Vec<u8>,
        properties: Properties,
        waiter: Waiter,
    ) -> Result<(), Fault> {
        let client = self
            .client
            .as_ref()
            .ok_or_else(|| Fault::new(FaultKind::Offline, "no connection to the MQTT broker"))?;
        let room = self.room(topic);
        if payload.len() > room {
            let what = format!("{} bytes on {topic:?}, it takes {room}", payload.len());
            return Err(Fault::refusal(&what, Reason::PACKET_TOO_LARGE));
        }
        let Properties {
            expiry,
            correlation,
            retain,
        } = properties;
        let retain = retain && self.capabilities.is_none_or(|has| has.retain);
        let length = payload.len();
        client
            .publish(topic, retain, payload, expiry, correlation)
            .map_err(|_| {
                Fault::new(
                    FaultKind::Overload,
                    "the MQTT broker is too slow: too many messages wait for its answer",
                )
            })?;
        self.unnumbered.push_back((waiter, length));
        Ok(())
    }

    /// Sends the retained values that changed and are not on their way.
    fn flush(&mut self) {
        if self.client.is_none() {
            return;
        }
        let mut retained = std::mem::take(&mut self.retained);
        for (topic, slot) in &mut retained {
            if !slot.dirty || slot.in_flight {
                continue;
            }
            let properties = Properties {
                retain: true,
                ..Properties::default()
            };
            let payload = slot.payload.within(self.room(topic));
            let waiter = Waiter::Retained(topic.clone());
            match self.publish(topic, payload, properties, waiter) {
                Ok(()) => slot.in_flight = true,
                Err(fault) if fault.kind == FaultKind::TooLarge => {
                    if !std::mem::replace(&mut slot.refused, true) {
                        self.refused.push(fault);
                    }
                }
                Err(_) => break,
            }
            slot.dirty = false;
        }
        self.retained = retained;
    }

    pub fn numbered(&mut self, pkid: u16) {
        if let Some(waiter) = self.unnumbered.pop_front() {
            self.numbered.insert(pkid, waiter);
        }
    }

    pub fn acknowledged(&mut self, pkid: u16, reason: Reason) {
        match self.numbered.remove(&pkid) {
            None => {}
            Some((Waiter::Caller(sender), _)) => {
                let answer = match reason.is_success() {
                    true => Ok(()),
                    false => Err(Fault::refusal("the message", reason)),
                };
                // A caller that no longer waits does not care.
                let _ = sender.send(answer);
            }
            Some((Waiter::Retained(topic), _)) => {
                let Some(slot) = self.retained.get_mut(&topic) else {
                    return;
                };
                slot.in_flight = false;
                let refused = !reason.is_success();
                let first = !std::mem::replace(&mut slot.refused, refused);
                if refused && first {
                    let what = format!("messages on {topic:?}");
                    self.refused.push(Fault::refusal(&what, reason));
                }
                self.flush();
            }
        }
    }

    /// What the broker has refused, or would, and nobody else hears of.
    pub fn take_refused(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.refused)
    }

    pub fn subscribe_extra(&self, filter: &str) {
        if let Some(client) = &self.client {
            // A full queue is that of a broker which does not answer: the next connection tries
            // again.
            let _ = client.subscribe([(filter, RetainedAt::Never)]);
        }
    }

    /// Sends the value of `topic` once more, where it has one.
    pub fn say_again(&mut self, topic: &str) {
        if let Some(slot) = self.retained.get_mut(topic) {
            slot.dirty = true;
            self.flush();
        }
    }

    pub fn up(&mut self, client: Client, capabilities: Capabilities) {
        self.client = Some(client);
        self.capabilities = Some(capabilities);
        self.connects += 1;
        self.up_since = Some(Instant::now());
        for slot in self.retained.values_mut() {
            slot.dirty = true;
            slot.in_flight = false;
            slot.refused = false;
        }
        for filter in &self.extra {
            self.subscribe_extra(filter);
        }
        self.flush();
    }

    /// Ends the connection by `fault`; gives what is to be told of it.
    pub fn down(&mut self, fault: Fault) -> Fault {
        self.client = None;
        let waiting = self
            .unnumbered
            .drain(..)
            .chain(self.numbered.drain().map(|(_, waiter)| waiter));
        let mut largest = 0;
        for (waiter, length) in waiting {
            largest = largest.max(length);
            if let Waiter::Caller(sender) = waiter {
                let text = format!("the connection to the MQTT broker was lost: {fault}");
                let _ = sender.send(Err(Fault::new(fault.kind, text)));
            }
        }
        for slot in self.retained.values_mut() {
            slot.in_flight = false;
        }
        let Some(since) = self.up_since.take() else {
            return fault;
        };
        self.quick_ends = match since.elapsed() < STABLE {
            true => self.quick_ends + 1,
            false => 0,
        };
        let by_size = fault.kind == FaultKind::TooLarge
            || (fault.kind == FaultKind::Closed && self.quick_ends > 1 && largest > LARGE);
        if by_size && largest > 0 {
            self.learned = Some((largest / 2).max(SMALLEST));
        } else if fault.kind == FaultKind::Closed && self.quick_ends >= SUSPICIOUS {
            let text = format!(
                "{fault}, {} times in a row within {} s of connecting: the broker's log says why; most likely {}",
                self.quick_ends,
                STABLE.as_secs(),
                Reason::SESSION_TAKEN_OVER
            );
            return Fault::new(FaultKind::TakenOver, text);
        }
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Fault {
        Fault::new(FaultKind::Closed, "mqtt://h closed the connection")
    }

    /// A state whose session was up, with this many bytes on their way.
    fn was_up(state: &mut State, in_flight: Option<usize>) {
        state.up_since = Some(Instant::now());
        let waiter = |length| (Waiter::Retained("state".into()), length);
        state.unnumbered.extend(in_flight.map(waiter));
    }

    #[test]
    fn several_quick_ends_are_told_as_what_they_most_likely_are() {
        let mut state = State::default();
        for end in 1..=SUSPICIOUS {
            was_up(&mut state, None);
            let told = state.down(closed());
            let expected = match end < SUSPICIOUS {
                true => FaultKind::Closed,
                false => FaultKind::TakenOver,
            };
            assert_eq!(told.kind, expected, "{told}");
        }
        was_up(&mut state, None);
        assert!(state.down(closed()).text.contains("set client-id"));
        // Tries that never came up say nothing about it.
        assert_eq!(state.down(closed()).kind, FaultKind::Closed);
    }

    #[test]
    fn what_the_broker_does_not_take_is_halved_until_it_fits() {
        let mut state = State::default();
        let mut size = 9000;
        for _ in 0..10 {
            was_up(&mut state, Some(size));
            state.down(Fault::refusal("it", Reason::PACKET_TOO_LARGE));
            let room = state.room("state");
            assert_eq!(room, (size / 2).max(SMALLEST));
            size = room;
        }
        assert_eq!(state.room("state"), SMALLEST);
    }

    #[test]
    fn a_broker_that_ends_without_a_word_is_tried_with_less() {
        let mut state = State::default();
        for _ in 0..2 {
            was_up(&mut state, Some(9000));
            assert_eq!(state.down(closed()).kind, FaultKind::Closed);
        }
        assert_eq!(state.room("state"), 4500);
    }

    #[test]
    fn room_is_what_the_broker_announces_without_the_topic() {
        let state = State {
            capabilities: Some(Capabilities {
                max_packet: Some(600),
                ..Capabilities::ALL
            }),
            ..State::default()
        };
        assert_eq!(state.room("a/b"), 600 - 3 - OVERHEAD);
        assert_eq!(State::default().room("a/b"), usize::MAX);
    }
}
