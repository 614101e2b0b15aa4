// SPDX-License-Identifier: MPL-2.0

//! An MQTT 5 session that comes back by itself: one task, back-off with jitter, a
//! subscription on every CONNACK, retained topics that always hold the newest value.
//!
//! Nothing here waits on the caller's side: [`Session::set_retained`] stores, and
//! [`Session::publish`] is for callers that want to wait for the broker's PUBACK.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rumqttc::{
    NetworkOptions, Outgoing,
    v5::{
        AsyncClient, Event as MqttEvent, EventLoop, MqttOptions, Request,
        mqttbytes::{
            QoS,
            v5::{
                Filter, LastWill, Packet, PubAckReason, Publish, PublishProperties,
                RetainForwardRule, SubscribeReasonCode,
            },
        },
    },
};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    broker::BrokerUrl,
    fault::{Fault, FaultKind},
    transport::transport,
};
use crate::{
    backoff::{Backoff, jitter},
    net::{connect::look_up, tls},
    secret::Secret,
    words::command::check_id,
};

/// TCP, TLS, CONNECT and CONNACK together. With the pause before the next try it is less than
/// the five seconds in which a robot is back after a fault that only a new connection ends.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// In place of it for each [`SLOW_TRY`]th try in a row, on a link too slow for the others. While
/// SYNs are dropped it is as good: TCP repeats them after 1, 3 and 7 s.
const SLOW_CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
const SLOW_TRY: u32 = 8;
/// For the broker's name, before connecting. The name server keeps what it finds later.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// For SUBACK and PINGRESP: how long a broker that has to answer may be silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// A pause before the next try, counted from the beginning of the last one; its end and the
/// next beginning are never closer than `BACKOFF_MIN` (with jitter).
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// A connection that lasted this long makes the next wait the shortest again.
const STABLE: Duration = Duration::from_secs(10);
/// A connection as old as this, and then each time that its age has doubled, says anew what the
/// last will would change: that of a login which was given up comes late where the nodes of a
/// cluster wait for each other, and stands until somebody says otherwise.
const LATE_WILL: Duration = Duration::from_secs(15);
/// Last publishes and DISCONNECT at a clean end. What is written by then is on its way: the
/// kernel goes on sending it.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// For [`Config::receive_maximum`]: all that Mosquitto queues (1000) and has in flight (20) by
/// default. Mosquitto before 2.0.15 fills this window with expired messages as with others, and
/// sends nothing where there is no other among them: the `stop` behind 20 expired `start` would
/// not come (its issue 2609).
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// Requests that wait for the event loop, beside all acknowledgements: DISCONNECT and publishes.
const CHANNEL: usize = 128;
/// Unacknowledged publishes; rumqttc reserves memory for this many.
const INFLIGHT: u16 = 20;
/// Announced to the broker, which then withholds larger packets instead of cutting us off.
const MAX_PACKET: u32 = 32 * 1024;
/// rumqttc's lower bound for MQTT 5.
pub const MIN_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// User name and password, asked for anew at each connect.
pub type Credentials =
    Box<dyn Fn() -> Result<(Option<String>, Option<Secret>), String> + Send + Sync>;

/// What a session needs to know; nothing is checked before [`Session::spawn`] but what the
/// types say.
pub struct Config {
    pub broker: BrokerUrl,
    pub client_id: String,
    pub credentials: Credentials,
    /// Needed for `mqtts` and `wss`; see [`tls::TlsFiles`].
    pub tls: Option<tls::Client>,
    /// At least [`MIN_KEEP_ALIVE`]; a shorter one is raised to it.
    pub keep_alive: Duration,
    /// How long the broker keeps queued commands for this client. Zero: not at all.
    pub session_expiry: Duration,
    /// It takes the place of a session with the same client id that has just ended: what the
    /// broker has kept since then is not forgotten.
    pub resumes: bool,
    /// Messages that the broker may send ahead of our acknowledgements; usually
    /// [`RECEIVE_MAXIMUM`]. Of more retained values than this and 1000 together, Mosquitto drops
    /// those beyond at a new subscription.
    pub receive_maximum: u16,
    /// Topic and payload of the retained last will. A value that the session has there by
    /// [`Session::set_retained`] is said again now and then, in case the will came all the same.
    pub will: Option<(String, String)>,
    /// Topic filters, QoS 1.
    pub subscriptions: Vec<String>,
}

/// What happens to a session, in order.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed.
    Up,
    /// Not connected: why. Comes for each failed try.
    Down(Fault),
    /// A message; it is acknowledged when the handler returns, in a session that the broker
    /// keeps, so that none is lost with the connection.
    Message(Message),
    /// The broker does not take a retained value, or a subscription beside those that the
    /// session needs: which, and the remedy. Comes once for each in a connection.
    Refused(Fault),
}

/// A message on a subscribed topic.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Sent by the broker because it was retained, not because somebody just published it.
    pub retained: bool,
    /// What the sender knows this message by (MQTT 5, 3.3.2.3.6).
    pub correlation: Option<Vec<u8>>,
}

impl Message {
    /// The correlation data, where it is fit for logs and states as a viewer's id is.
    pub fn correlation_text(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.correlation.as_deref()?).ok()?;
        check_id(text).ok()
    }
}

/// What a message carries beside its payload.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    /// The broker forgets the message when it has waited this long for a receiver.
    pub expiry: Option<Duration>,
    /// Handed to the receivers, who name the message by it.
    pub correlation: Option<Vec<u8>>,
    /// The broker keeps the message as the topic's value.
    pub retain: bool,
}

/// One MQTT session; lives until [`Session::stop`] or until it is dropped (without a clean end).
pub struct Session {
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<Vec<(String, String)>>>,
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
        let (stop, stopped) = oneshot::channel();
        let task = Task {
            clean_start: !config.resumes,
            config,
            state: state.clone(),
            on_event,
            delivered: Delivered::default(),
        };
        let task = runtime.spawn(task.run(stopped));
        Session {
            state,
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

    /// Makes `payload` the retained value of `topic`, now or as soon as the broker is there.
    /// Values that come faster than the broker acknowledges replace each other.
    pub fn set_retained(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let mut state = self.state.lock();
        let slot = state.retained.entry(topic.to_owned()).or_default();
        slot.payload = payload.into();
        slot.dirty = true;
        state.flush();
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
            // What still comes goes nowhere, and the next connection does without.
            let _ = client.try_unsubscribe(filter);
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
    pub async fn stop(mut self, last: Vec<(String, String)>) {
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

/// What the session's task and its callers share.
#[derive(Default)]
struct State {
    /// Set while connected and subscribed.
    client: Option<AsyncClient>,
    connects: u64,
    retained: BTreeMap<String, Retained>,
    /// Topic filters beside those of the configuration.
    extra: Vec<String>,
    /// Publishes handed to the event loop, in order, which it has not numbered yet.
    unnumbered: VecDeque<Waiter>,
    /// Publishes by packet identifier.
    numbered: HashMap<u16, Waiter>,
}

#[derive(Default)]
struct Retained {
    payload: Vec<u8>,
    dirty: bool,
    in_flight: bool,
    /// The broker has refused it in this connection.
    refused: bool,
}

/// Who hears of a PUBACK.
enum Waiter {
    Caller(oneshot::Sender<Result<(), Fault>>),
    Retained(String),
}

impl State {
    fn publish(
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
        let retain = properties.retain;
        let properties = PublishProperties {
            message_expiry_interval: properties
                .expiry
                .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
            correlation_data: properties.correlation.map(Into::into),
            ..PublishProperties::default()
        };
        client
            .try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            .map_err(|_| {
                Fault::new(
                    FaultKind::Overload,
                    "the MQTT broker is too slow: too many messages wait for its answer",
                )
            })?;
        self.unnumbered.push_back(waiter);
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
            let (payload, waiter) = (slot.payload.clone(), Waiter::Retained(topic.clone()));
            if self.publish(topic, payload, properties, waiter).is_err() {
                break;
            }
            slot.dirty = false;
            slot.in_flight = true;
        }
        self.retained = retained;
    }

    fn numbered(&mut self, pkid: u16) {
        if let Some(waiter) = self.unnumbered.pop_front() {
            self.numbered.insert(pkid, waiter);
        }
    }

    /// Returns what a retained value was refused for, where nobody else hears of it.
    fn acknowledged(&mut self, pkid: u16, reason: PubAckReason) -> Option<Fault> {
        let taken = matches!(
            reason,
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers
        );
        match self.numbered.remove(&pkid)? {
            Waiter::Caller(sender) => {
                let answer = taken.then_some(()).ok_or_else(|| {
                    let text = format!("the MQTT broker refused the message: {reason:?}");
                    Fault::new(FaultKind::Refused, text)
                });
                // A caller that no longer waits does not care.
                let _ = sender.send(answer);
                None
            }
            Waiter::Retained(topic) => {
                let slot = self.retained.get_mut(&topic)?;
                slot.in_flight = false;
                let first = !std::mem::replace(&mut slot.refused, !taken);
                self.flush();
                (!taken && first).then(|| refusal(&format!("messages on {topic:?}"), reason))
            }
        }
    }

    fn subscribe_extra(&self, path: &str) {
        if let Some(client) = &self.client {
            // A full queue is that of a broker which does not answer: the next connection tries
            // again.
            let _ = client.try_subscribe_many([filter(path, RetainForwardRule::Never)]);
        }
    }

    /// Sends the value of `topic` once more, where it has one.
    fn say_again(&mut self, topic: &str) {
        if let Some(slot) = self.retained.get_mut(topic) {
            slot.dirty = true;
            self.flush();
        }
    }

    fn up(&mut self, client: AsyncClient) {
        self.client = Some(client);
        self.connects += 1;
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

    fn down(&mut self, fault: &Fault) {
        self.client = None;
        let waiting = self
            .unnumbered
            .drain(..)
            .chain(self.numbered.drain().map(|(_, waiter)| waiter));
        for waiter in waiting {
            if let Waiter::Caller(sender) = waiter {
                let text = format!("the connection to the MQTT broker was lost: {fault}");
                let _ = sender.send(Err(Fault::new(fault.kind, text)));
            }
        }
    }
}

fn refusal(what: &str, reason: impl fmt::Debug) -> Fault {
    let text = format!("the broker refuses {what} ({reason:?}): check its access rights");
    Fault::new(FaultKind::Refused, text)
}

fn filter(path: &str, retain_forward_rule: RetainForwardRule) -> Filter {
    Filter {
        path: path.to_owned(),
        qos: QoS::AtLeastOnce,
        nolocal: false,
        preserve_retain: false,
        retain_forward_rule,
    }
}

/// What the session's task goes on with from connection to connection.
struct Task<F> {
    config: Config,
    state: Arc<Mutex<State>>,
    on_event: F,
    clean_start: bool,
    delivered: Delivered,
}

/// What the event handler got of this session, as far as the broker may not know that it did.
///
/// An acknowledgement can be lost with its connection; the broker then delivers once more what
/// may be long over (a `start` whose lease has ended).
#[derive(Default)]
struct Delivered(VecDeque<(u16, u64)>);

impl Delivered {
    /// Takes note of a message; returns whether it is one that was noted before.
    fn is_again(&mut self, publish: &Publish) -> bool {
        let mut hasher = DefaultHasher::new();
        (&publish.topic, &publish.payload).hash(&mut hasher);
        let message = (publish.pkid, hasher.finish());
        if publish.dup && self.0.contains(&message) {
            return true;
        }
        if self.0.len() >= usize::from(RECEIVE_MAXIMUM) {
            self.0.pop_front();
        }
        self.0.push_back(message);
        false
    }
}

fn connect_timeout(tries: u32) -> Duration {
    if tries.is_multiple_of(SLOW_TRY) {
        SLOW_CONNECT_TIMEOUT
    } else {
        CONNECT_TIMEOUT
    }
}

/// What the broker has to answer, and until when; or when it is to be asked something.
struct Patience {
    owed: Option<&'static str>,
    until: Instant,
}

impl Patience {
    fn owe(&mut self, what: &'static str) {
        self.owed = Some(what);
        self.until = Instant::now() + ANSWER_TIMEOUT;
    }

    /// Nothing is owed until the next ping, after `pause`.
    fn answered(&mut self, pause: Duration) {
        self.owed = None;
        self.until = Instant::now() + pause;
    }

    /// Something came: the link lives, though the answer may stand in a queue.
    fn heard(&mut self) {
        if self.owed.is_some() {
            self.until = Instant::now() + ANSWER_TIMEOUT;
        }
    }
}

impl<F: FnMut(Event) + Send> Task<F> {
    async fn run(mut self, mut stopped: oneshot::Receiver<Vec<(String, String)>>) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut tries = 0;
        let channel = usize::from(self.config.receive_maximum) + CHANNEL;
        loop {
            let started = Instant::now();
            let connects = self.state.lock().connects;
            tries += 1;
            let connect_timeout = connect_timeout(tries);
            let fault = match options(&self.config, self.clean_start, connect_timeout) {
                Err(text) => Fault::new(FaultKind::Setup, text),
                Ok(options) => {
                    let (client, mut events) = AsyncClient::new(options, channel);
                    tokio::select! {
                        biased;
                        last = &mut stopped => {
                            if let Ok(last) = last {
                                close(&client, &mut events, &self.state, last).await;
                            }
                            return;
                        }
                        end = self.drive(&client, &mut events) => match end {
                            Ok(()) => continue,
                            Err(fault) => fault,
                        },
                    }
                }
            };
            self.state.lock().down(&fault);
            (self.on_event)(Event::Down(fault));
            if self.state.lock().connects != connects {
                tries = 0;
                if started.elapsed() >= STABLE {
                    backoff.reset();
                }
            }
            let random = jitter();
            let pause = backoff.next(random).saturating_sub(started.elapsed());
            let shortest = Backoff::new(BACKOFF_MIN, BACKOFF_MIN).next(random);
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = sleep(pause.max(shortest)) => {}
            }
        }
    }

    /// Runs one connection to its end. `Ok`: by it the broker has forgotten what it kept for an
    /// earlier life of this client.
    ///
    /// Commands queued for that life are stale: only what comes while this session lives is kept
    /// for it. They are forgotten by a connection of its own, because Mosquitto 2.0 does not store
    /// a session that began with a clean start: after a restart of the broker it would not know of
    /// commands sent before we are back.
    async fn drive(&mut self, client: &AsyncClient, events: &mut EventLoop) -> Result<(), Fault> {
        let (config, state, on_event) = (&self.config, &self.state, &mut self.on_event);
        let connect_timeout = Duration::from_secs(events.options.connection_timeout());
        let BrokerUrl { host, port, .. } = &config.broker;
        // Whether the name has an address, told apart from whether that one answers. What is found
        // is not used: rumqttc asks again, with the name that TLS and WebSocket need.
        look_up(host, *port, LOOKUP_TIMEOUT)
            .await
            .map_err(|text| Fault::new(FaultKind::Unreachable, text))?;
        let mut subscribed = config.subscriptions.is_empty();
        let mut ping_pause = Duration::ZERO;
        let began = Instant::now();
        let mut say_again = began + LATE_WILL;
        // While it connects, rumqttc's own time-out comes first.
        let mut patience = Patience {
            owed: Some("the connection"),
            until: Instant::now() + SLOW_CONNECT_TIMEOUT * 2,
        };
        loop {
            let event = match timeout_at(patience.until, events.poll()).await {
                Err(_) => match patience.owed {
                    Some(what) => {
                        let text = format!(
                            "{} has not answered {what} within {} s: the link is dead, or the broker hangs",
                            config.broker,
                            ANSWER_TIMEOUT.as_secs()
                        );
                        return Err(Fault::new(FaultKind::Timeout, text));
                    }
                    None => {
                        // Dropping poll() loses nothing once it is connected.
                        events.pending.push_back(Request::PingReq);
                        patience.owe("a ping");
                        continue;
                    }
                },
                Ok(Err(err)) => {
                    return Err(Fault::of_connection(&err, &config.broker, connect_timeout));
                }
                Ok(Ok(event)) => event,
            };
            if matches!(event, MqttEvent::Incoming(_)) {
                patience.heard();
            }
            match event {
                MqttEvent::Incoming(Packet::PingResp(_)) if subscribed => {
                    patience.answered(ping_pause);
                    let now = Instant::now();
                    if let Some((topic, _)) = config.will.as_ref().filter(|_| now >= say_again) {
                        say_again = now + (now - began);
                        state.lock().say_again(topic);
                    }
                }
                MqttEvent::Incoming(Packet::ConnAck(answer)) => {
                    if !answer.session_present {
                        // A new session counts its packets anew.
                        self.delivered.0.clear();
                    }
                    // Twice as often as the broker expects it. rumqttc would ping once in the whole
                    // time and wait for the answer as long again; it keeps its first ping only.
                    ping_pause = match events.options.keep_alive() {
                        Duration::ZERO => config.keep_alive,
                        // The broker may have named another one than ours.
                        keep_alive => keep_alive,
                    } / 2;
                    events
                        .options
                        .set_keep_alive(Duration::from_secs(u16::MAX.into()));
                    if std::mem::take(&mut self.clean_start) && is_kept(config) {
                        disconnect(client, events).await;
                        return Ok(());
                    }
                    if subscribed {
                        patience.answered(ping_pause);
                        state.lock().up(client.clone());
                        on_event(Event::Up);
                        continue;
                    }
                    // A session that goes on was given what is retained, and all that followed.
                    let filters = config
                        .subscriptions
                        .iter()
                        .map(|topic| match is_kept(config) {
                            true => filter(topic, RetainForwardRule::OnNewSubscribe),
                            false => filter(topic, RetainForwardRule::OnEverySubscribe),
                        });
                    if client.try_subscribe_many(filters).is_err() {
                        return Err(Fault::new(
                            FaultKind::Overload,
                            "cannot subscribe: the request queue is full",
                        ));
                    }
                    patience.owe("the subscription");
                }
                MqttEvent::Incoming(Packet::SubAck(answer)) => {
                    let is_refused = |code: &_| !matches!(code, SubscribeReasonCode::Success(_));
                    let mut codes = answer.return_codes.iter();
                    if subscribed {
                        if let Some(code) = codes.find(|code| is_refused(code)) {
                            let extra = state.lock().extra.join(", ");
                            let what = format!("the subscription to {extra}");
                            on_event(Event::Refused(refusal(&what, code)));
                        }
                        continue;
                    }
                    let mut answers = config.subscriptions.iter().zip(codes);
                    if let Some((topic, code)) = answers.find(|(_, code)| is_refused(code)) {
                        return Err(refusal(&format!("the subscription to {topic:?}"), code));
                    }
                    subscribed = true;
                    patience.answered(ping_pause);
                    state.lock().up(client.clone());
                    on_event(Event::Up);
                }
                MqttEvent::Incoming(Packet::Publish(publish)) => {
                    if !self.delivered.is_again(&publish) {
                        on_event(Event::Message(Message {
                            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                            payload: publish.payload.to_vec(),
                            retained: publish.retain,
                            correlation: publish
                                .properties
                                .as_ref()
                                .and_then(|properties| properties.correlation_data.as_ref())
                                .map(|data| data.to_vec()),
                        }));
                    }
                    if is_kept(config) {
                        // There is room for all of them.
                        let _ = client.try_ack(&publish);
                    }
                }
                MqttEvent::Incoming(Packet::PubAck(answer)) => {
                    let refused = state.lock().acknowledged(answer.pkid, answer.reason);
                    if let Some(fault) = refused {
                        on_event(Event::Refused(fault));
                    }
                }
                MqttEvent::Outgoing(Outgoing::PingReq) if subscribed => patience.owe("a ping"),
                MqttEvent::Outgoing(Outgoing::Publish(pkid)) => state.lock().numbered(pkid),
                MqttEvent::Incoming(Packet::Disconnect(disconnect)) => {
                    return Err(Fault::of_disconnect(disconnect.reason_code));
                }
                _ => {}
            }
        }
    }
}

/// Publishes `last` and disconnects.
async fn close(
    client: &AsyncClient,
    events: &mut EventLoop,
    state: &Mutex<State>,
    last: Vec<(String, String)>,
) {
    if state.lock().client.take().is_none() {
        return;
    }
    for (topic, payload) in last {
        if client
            .try_publish(topic, QoS::AtLeastOnce, true, payload)
            .is_err()
        {
            break;
        }
    }
    disconnect(client, events).await;
}

/// Disconnects, and reads until the broker closes: closing with unread input would reset the
/// connection and set off the last will.
async fn disconnect(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    // The deadline is the only other end: the broker answers DISCONNECT by closing.
    let _ = timeout(CLOSE_TIMEOUT, async {
        while events.poll().await.is_ok() {}
    })
    .await;
}

/// Whether the broker keeps for the next connection what this one has not acknowledged.
fn is_kept(config: &Config) -> bool {
    !config.session_expiry.is_zero()
}

fn options(
    config: &Config,
    clean_start: bool,
    connect_timeout: Duration,
) -> Result<MqttOptions, String> {
    let broker = &config.broker;
    let host = if broker.scheme.is_websocket() {
        broker.to_string()
    } else {
        broker.host.clone()
    };
    let mut options = MqttOptions::new(&config.client_id, host, broker.port);
    options.set_transport(transport(broker.scheme, config.tls.as_ref())?);
    let (username, password) = (config.credentials)()?;
    if username.is_some() || password.is_some() {
        options.set_credentials(
            username.unwrap_or_default(),
            password.as_ref().map_or("", Secret::expose),
        );
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_connection_timeout(connect_timeout.as_secs())
        .set_keep_alive(config.keep_alive.max(MIN_KEEP_ALIVE))
        .set_outgoing_inflight_upper_limit(INFLIGHT)
        .set_max_packet_size(Some(MAX_PACKET))
        .set_session_expiry_interval(Some(
            u32::try_from(config.session_expiry.as_secs()).unwrap_or(u32::MAX),
        ))
        .set_clean_start(clean_start)
        .set_receive_maximum(Some(config.receive_maximum.max(1)))
        // By itself rumqttc acknowledges many at once, ahead of the handler.
        .set_manual_acks(is_kept(config));
    if let Some((topic, payload)) = &config.will {
        options.set_last_will(LastWill::new(
            topic,
            payload.as_bytes(),
            QoS::AtLeastOnce,
            true,
            None,
        ));
    }
    Ok(options)
}
