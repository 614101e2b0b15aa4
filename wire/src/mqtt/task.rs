// SPDX-License-Identifier: MPL-2.0

//! The task of a session: from connection to connection, and through each of them.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    broker::BrokerUrl,
    config::{Config, Event, MIN_KEEP_ALIVE, Message, RECEIVE_MAXIMUM},
    connection::Connection,
    fault::{Cause, Fault, FaultKind},
    protocol::{Capabilities, Client, Opening, Publish, RetainedAt, Step, Version},
    reason::Reason,
    state::{Last, STABLE, State},
    transport,
};
use crate::{
    backoff::{Backoff, jitter},
    net::tls,
    secret::Secret,
};

/// TCP, TLS, CONNECT and CONNACK together. With the pause before the next try it is less than
/// the five seconds in which a robot is back after a fault that only a new connection ends.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// In place of it for each [`SLOW_TRY`]th try in a row, on a link too slow for the others. While
/// SYNs are dropped it is as good: TCP repeats them after 1, 3 and 7 s.
const SLOW_CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
const SLOW_TRY: u32 = 8;
/// For the files with password and certificates.
const FILES_TIMEOUT: Duration = Duration::from_secs(3);
/// For SUBACK and PINGRESP: how long a broker that has to answer may be silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// A pause before the next try, counted from the beginning of the last one; its end and the
/// next beginning are never closer than `BACKOFF_MIN` (with jitter).
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// In place of it where the broker says that somebody else has our session: each try takes it from
/// them, and the longer that goes on the rarer it is. Where that is only supposed, the broker may
/// as well have died, and its return is not to be missed.
const TAKEN_OVER_MIN: Duration = Duration::from_secs(10);
const TAKEN_OVER_MAX: Duration = Duration::from_secs(60);
/// A connection as old as this, and then each time that its age has doubled, says anew what the
/// last will would change: that of a login which was given up comes late where the nodes of a
/// cluster wait for each other, and stands until somebody says otherwise.
const LATE_WILL: Duration = Duration::from_secs(15);
/// Last publishes and DISCONNECT at a clean end. What is written by then is on its way: the
/// kernel goes on sending it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// Requests that wait for the event loop, beside all acknowledgements: DISCONNECT and publishes.
const CHANNEL: usize = 128;
/// What comes this soon after a session of MQTT 3.1.1 has gone on may have waited at the broker.
const MAY_BE_OLD: Duration = Duration::from_secs(1);

/// What the session's task goes on with from connection to connection.
pub(super) struct Task<F> {
    config: Arc<Config>,
    state: Arc<Mutex<State>>,
    hurry: Arc<Notify>,
    on_event: F,
    clean_start: bool,
    delivered: Delivered,
    speaks: Speaks,
    /// The next try does not wait.
    at_once: bool,
    /// The broker has refused a last will that is retained.
    no_retain: bool,
    /// The files are still being read for a try before.
    reading: Option<Reading>,
    /// Where the broker answered last.
    address: Option<SocketAddr>,
}

/// Which version of MQTT the broker speaks, as far as that is known.
///
/// One that hangs up on MQTT 5, or does not answer it, may be none at this moment, behind a balancer
/// for example: it is asked with MQTT 3.1.1 by a connection that changes nothing there, and then with
/// MQTT 5 once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// MQTT 5 is tried.
    Unknown,
    /// It has not taken MQTT 5.
    NotNow,
    /// Then it has answered 3.1.1.
    Answers311,
    /// And again has not taken MQTT 5.
    Only311,
}

/// How a connection ended.
enum End {
    /// By it the broker has forgotten what it kept for an earlier life of this client.
    Forgotten,
    Fault(Fault),
}

/// Password and trust, as the files are at this moment.
struct Files {
    username: Option<String>,
    password: Option<Secret>,
    tls: Option<tls::Client>,
}

type Reading = JoinHandle<Result<Files, String>>;

impl<F: FnMut(Event) + Send> Task<F> {
    pub fn new(config: Config, state: Arc<Mutex<State>>, hurry: Arc<Notify>, on_event: F) -> Self {
        Task {
            clean_start: !config.resumes,
            config: Arc::new(config),
            state,
            hurry,
            on_event,
            delivered: Delivered::default(),
            speaks: Speaks::Unknown,
            at_once: false,
            no_retain: false,
            reading: None,
            address: None,
        }
    }

    pub async fn run(mut self, mut stopped: oneshot::Receiver<Last>) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut taken_over = Backoff::new(TAKEN_OVER_MIN, TAKEN_OVER_MAX);
        let mut tries = 0;
        loop {
            let started = Instant::now();
            let connects = self.state.lock().connects;
            tries += 1;
            let fault = match self.attempt(connect_timeout(tries), &mut stopped).await {
                None => return,
                Some(End::Forgotten) => continue,
                Some(End::Fault(fault)) => fault,
            };
            if std::mem::take(&mut self.at_once) {
                // What has just been learned is used: three times in a row at most.
                continue;
            }
            let fault = self.state.lock().down(fault);
            let is_taken = fault.reason == Some(Reason::SESSION_TAKEN_OVER);
            (self.on_event)(Event::Down(fault));
            if self.state.lock().connects != connects {
                tries = 0;
                if started.elapsed() >= STABLE {
                    backoff.reset();
                }
            }
            let random = jitter();
            let pause = match is_taken {
                true => {
                    if started.elapsed() > TAKEN_OVER_MAX {
                        taken_over.reset();
                    }
                    taken_over.next(random)
                }
                false => backoff.next(random).saturating_sub(started.elapsed()),
            };
            let shortest = Backoff::new(BACKOFF_MIN, BACKOFF_MIN).next(random);
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = sleep(pause.max(shortest)) => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    /// One try to connect, and the connection, if there is one, to its end. None: the session
    /// was stopped.
    async fn attempt(
        &mut self,
        connect_timeout: Duration,
        stopped: &mut oneshot::Receiver<Last>,
    ) -> Option<End> {
        let files = tokio::select! {
            biased;
            _ = &mut *stopped => return None,
            files = files(&self.config, &mut self.reading) => match files {
                Ok(files) => files,
                Err(text) => return Some(End::Fault(Fault::new(FaultKind::Setup, text))),
            },
        };
        let version = match self.speaks {
            Speaks::Unknown | Speaks::Answers311 => Version::V5,
            Speaks::NotNow | Speaks::Only311 => Version::V311,
        };
        let connected = self.connect(version, &files, connect_timeout, stopped);
        let (fault, greeted) = match connected.await? {
            (End::Fault(fault), greeted) => (fault, greeted),
            (end, _) => return Some(end),
        };
        self.no_retain |= fault.reason == Some(Reason::RETAIN_NOT_SUPPORTED);
        if !greeted {
            self.learn(&fault);
        }
        Some(End::Fault(fault))
    }

    /// What a connection tells that the broker has not accepted.
    fn learn(&mut self, fault: &Fault) {
        let hung_up = matches!(
            fault.kind,
            FaultKind::Closed | FaultKind::Protocol | FaultKind::Version
        );
        let not_taken = hung_up || fault.kind == FaultKind::Timeout;
        let before = self.speaks;
        self.speaks = match before {
            Speaks::Unknown if not_taken => Speaks::NotNow,
            Speaks::NotNow if fault.kind == FaultKind::Refused => Speaks::Answers311,
            Speaks::Answers311 if not_taken => Speaks::Only311,
            Speaks::Only311 if !hung_up => Speaks::Only311,
            _ => Speaks::Unknown,
        };
        self.at_once = match (before, self.speaks) {
            (Speaks::Unknown, Speaks::NotNow) => hung_up,
            (before, speaks) => speaks != before && speaks != Speaks::Unknown,
        };
    }

    /// One connection from its beginning to its end, and whether the broker has accepted it.
    async fn connect(
        &mut self,
        version: Version,
        files: &Files,
        connect_timeout: Duration,
        stopped: &mut oneshot::Receiver<Last>,
    ) -> Option<(End, bool)> {
        let config = self.config.clone();
        let is_probe = self.speaks == Speaks::NotNow;
        let will = config.will.as_ref().filter(|_| !is_probe);
        let opening = Opening {
            version,
            // Brokers may take the user's name for it anyway: a probe leaves the session as it is.
            client_id: &config.client_id,
            username: files.username.as_deref(),
            password: files.password.as_ref(),
            keep_alive: config.keep_alive.max(MIN_KEEP_ALIVE),
            session_expiry: config.session_expiry,
            clean_start: self.clean_start && !is_probe,
            receive_maximum: config.receive_maximum,
            will: will.map(|(topic, payload)| (topic.as_str(), payload.as_str(), !self.no_retain)),
            channel: usize::from(config.receive_maximum) + CHANNEL,
        };
        let greeted = tokio::select! {
            biased;
            _ = &mut *stopped => return None,
            greeted = greet(&opening, &config.broker, files.tls.as_ref(), &mut self.address, connect_timeout) => greeted,
        };
        let (client, mut connection) = match greeted {
            Ok(greeted) => greeted,
            Err(fault) => return Some((End::Fault(fault), false)),
        };
        let end = tokio::select! {
            biased;
            last = &mut *stopped => {
                if let Ok(last) = last {
                    close(&client, &mut connection, &self.state, last).await;
                }
                return None;
            }
            end = self.drive(&client, &mut connection) => end,
        };
        Some((end, true))
    }

    /// Runs one connection to its end.
    ///
    /// Commands queued for an earlier life of this client are stale: only what comes while this
    /// session lives is kept for it. They are forgotten by a connection of its own, because
    /// Mosquitto 2.0 does not store a session that began with a clean start: after a restart of
    /// the broker it would not know of commands sent before we are back.
    async fn drive(&mut self, client: &Client, connection: &mut Connection) -> End {
        let config = self.config.clone();
        let fault = |cause| End::Fault(Fault::of(cause, &config.broker, ANSWER_TIMEOUT));
        let mut up = Up {
            capabilities: Capabilities::ALL,
            subscribed: config.subscriptions.is_empty() && config.live.is_empty(),
            session_present: false,
            since: Instant::now(),
        };
        let mut ping_pause = Duration::ZERO;
        let began = Instant::now();
        let mut say_again = began + LATE_WILL;
        // Its answer is there: it is the first step.
        let mut patience = Patience {
            owed: Some("the connection"),
            until: Instant::now() + ANSWER_TIMEOUT,
        };
        loop {
            let step = match timeout_at(patience.until, connection.next()).await {
                Err(_) => match patience.owed {
                    Some(what) => {
                        let text = format!(
                            "{} has not answered {what} within {} s: the link is dead, or the broker hangs",
                            config.broker,
                            ANSWER_TIMEOUT.as_secs()
                        );
                        return End::Fault(Fault::new(FaultKind::Timeout, text));
                    }
                    None => {
                        // Dropping next() loses nothing.
                        if let Err(cause) = connection.ping() {
                            return fault(cause);
                        }
                        patience.owe("a ping");
                        continue;
                    }
                },
                Ok(Err(cause)) => return fault(cause),
                Ok(Ok(step)) => step,
            };
            if step.came() {
                patience.heard();
            }
            match step {
                Step::Greeted {
                    session_present,
                    capabilities,
                    at_most_once,
                } => {
                    if self.speaks == Speaks::NotNow {
                        self.speaks = Speaks::Answers311;
                        self.at_once = true;
                        disconnect(client, connection).await;
                        let text = "it speaks MQTT 3.1.1";
                        return End::Fault(Fault::new(FaultKind::Version, text));
                    }
                    if connection.version() == Version::V5 {
                        self.speaks = Speaks::Unknown;
                    }
                    if at_most_once {
                        return End::Fault(Fault::refusal("commands", Reason::QOS_NOT_SUPPORTED));
                    }
                    if !session_present {
                        // A new session counts its packets anew.
                        self.delivered.0.clear();
                    }
                    up.session_present = session_present;
                    up.capabilities = capabilities;
                    up.capabilities.retain &= !self.no_retain;
                    up.since = Instant::now();
                    // Twice as often as the broker expects it.
                    ping_pause = match connection.keep_alive() {
                        Duration::ZERO => config.keep_alive,
                        // The broker may have named another one than ours.
                        keep_alive => keep_alive,
                    } / 2;
                    if std::mem::take(&mut self.clean_start) && config.is_kept() {
                        disconnect(client, connection).await;
                        return End::Forgotten;
                    }
                    if up.subscribed {
                        patience.answered(ping_pause);
                        self.up(client, up.capabilities);
                        continue;
                    }
                    // A session that goes on was given what is retained, and all that followed.
                    let retained = match config.is_kept() {
                        true => RetainedAt::NewSubscription,
                        false => RetainedAt::EachSubscription,
                    };
                    let usual = config
                        .subscriptions
                        .iter()
                        .map(|it| (it.as_str(), retained));
                    let live = config.live.iter();
                    let live = live.map(|it| (it.as_str(), RetainedAt::Publication));
                    if client.subscribe(usual.chain(live)).is_err() {
                        return End::Fault(Fault::new(
                            FaultKind::Overload,
                            "cannot subscribe: the request queue is full",
                        ));
                    }
                    patience.owe("the subscription");
                }
                Step::Subscribed(reasons) => {
                    let mut reasons = reasons.into_iter();
                    if up.subscribed {
                        if let Some(reason) = reasons.find(|reason| !reason.is_success()) {
                            let extra = self.state.lock().extra.join(", ");
                            let what = format!("the subscription to {extra}");
                            (self.on_event)(Event::Refused(Fault::refusal(&what, reason)));
                        }
                        continue;
                    }
                    let mut answers = config.subscriptions.iter().chain(&config.live).zip(reasons);
                    if let Some((topic, reason)) = answers.find(|(_, code)| !code.is_success()) {
                        let what = format!("the subscription to {topic:?}");
                        return End::Fault(Fault::refusal(&what, reason));
                    }
                    up.subscribed = true;
                    patience.answered(ping_pause);
                    self.up(client, up.capabilities);
                }
                Step::Message(publish) => {
                    if !self.delivered.is_again(&publish) && !self.is_told_again(&publish, &up) {
                        (self.on_event)(Event::Message(up.message(&publish)));
                    }
                    if config.is_kept() {
                        client.acknowledge(&publish);
                    }
                }
                Step::Pong if up.subscribed => {
                    patience.answered(ping_pause);
                    let now = Instant::now();
                    if let Some((topic, _)) = config.will.as_ref().filter(|_| now >= say_again) {
                        say_again = now + (now - began);
                        self.state.lock().say_again(topic);
                    }
                }
                Step::Acknowledged(pkid, reason) => self.state.lock().acknowledged(pkid, reason),
                Step::Pinged if up.subscribed => patience.owe("a ping"),
                Step::Numbered(pkid) => self.state.lock().numbered(pkid),
                _ => {}
            }
            self.tell_refused();
        }
    }

    fn up(&mut self, client: &Client, capabilities: Capabilities) {
        self.state.lock().up(client.clone(), capabilities);
        (self.on_event)(Event::Up(capabilities));
        self.tell_refused();
    }

    fn tell_refused(&mut self) {
        let refused = self.state.lock().take_refused();
        for fault in refused {
            (self.on_event)(Event::Refused(fault));
        }
    }

    /// What is retained, as MQTT 3.1.1 gives it once more at each subscription.
    fn is_told_again(&self, publish: &Publish, up: &Up) -> bool {
        up.capabilities.version == Version::V311
            && publish.retained
            && (self.config.is_kept() && up.session_present
                || self.state.lock().extra.contains(&publish.topic))
    }
}

/// A connection that the broker has accepted.
struct Up {
    capabilities: Capabilities,
    subscribed: bool,
    session_present: bool,
    since: Instant,
}

impl Up {
    fn message(&self, publish: &Publish) -> Message {
        let Publish {
            topic,
            payload,
            retained,
            expiry,
            correlation,
            ..
        } = publish;
        Message {
            topic: topic.clone(),
            payload: payload.clone(),
            retained: *retained,
            may_be_old: self.capabilities.version == Version::V311
                && self.session_present
                && self.since.elapsed() < MAY_BE_OLD,
            expiry: *expiry,
            correlation: correlation.clone(),
        }
    }
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
        let message = (publish.packet_id, hasher.finish());
        if publish.duplicate && self.0.contains(&message) {
            return true;
        }
        if self.0.len() >= usize::from(RECEIVE_MAXIMUM) {
            self.0.pop_front();
        }
        self.0.push_back(message);
        false
    }
}

/// A connection that the broker has accepted, or why there is none.
async fn greet(
    opening: &Opening<'_>,
    broker: &BrokerUrl,
    tls: Option<&tls::Client>,
    address: &mut Option<SocketAddr>,
    patience: Duration,
) -> Result<(Client, Connection), Fault> {
    let (stream, deadline) = transport::open(broker, tls, address, patience).await?;
    match timeout_at(deadline, Connection::greet(stream, opening)).await {
        Ok(Ok(greeted)) => Ok(greeted),
        Ok(Err(cause)) => Err(Fault::of(cause, broker, patience)),
        Err(_) => Err(Fault::of(Cause::NoAnswer, broker, patience)),
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

/// Reads the files with password and certificates, where a disk that hangs holds up nobody. It
/// holds one thread at most: as long as that is `reading`, no other one begins.
async fn files(config: &Arc<Config>, reading: &mut Option<Reading>) -> Result<Files, String> {
    let config = config.clone();
    let begin = || spawn_blocking(move || read(&config));
    let mut read = reading.take().unwrap_or_else(begin);
    match timeout(FILES_TIMEOUT, &mut read).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => Err("reading the files with password and certificates has failed".into()),
        Err(_) => {
            *reading = Some(read);
            Err(format!(
                "the files with password and certificates are not read within {} s: is their disk there, and are they files?",
                FILES_TIMEOUT.as_secs()
            ))
        }
    }
}

fn read(config: &Config) -> Result<Files, String> {
    let (username, password) = (config.credentials)()?;
    let tls = config.tls.as_ref().map(tls::Source::client).transpose()?;
    Ok(Files {
        username,
        password,
        tls,
    })
}

/// Publishes `last` and disconnects.
async fn close(client: &Client, connection: &mut Connection, state: &Mutex<State>, last: Last) {
    if state.lock().client.take().is_none() {
        return;
    }
    for (topic, payload) in last {
        let Some(payload) = state.lock().fitting(&topic, &payload) else {
            continue;
        };
        if client.publish(&topic, true, payload, None, None).is_err() {
            break;
        }
    }
    disconnect(client, connection).await;
}

/// Disconnects, and reads until the broker closes: closing with unread input would reset the
/// connection and set off the last will.
async fn disconnect(client: &Client, connection: &mut Connection) {
    if client.disconnect().is_err() {
        return;
    }
    // The deadline is the only other end: the broker answers DISCONNECT by closing.
    let _ = timeout(CLOSE_TIMEOUT, async {
        while connection.next().await.is_ok() {}
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    };
    use tokio::runtime::Builder;

    #[test]
    fn a_disk_that_hangs_holds_one_thread_however_often_it_is_asked() {
        let (release, held) = mpsc::channel::<()>();
        let (begun, held) = (Arc::new(AtomicU32::new(0)), Mutex::new(held));
        let count = begun.clone();
        let config = Arc::new(Config {
            broker: BrokerUrl::parse("mqtt://h").unwrap().0,
            client_id: "id".into(),
            credentials: Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
                // Its sender is dropped when the disk is back.
                let _ = held.lock().recv();
                Ok((Some("user".into()), None))
            }),
            tls: None,
            keep_alive: MIN_KEEP_ALIVE,
            session_expiry: Duration::ZERO,
            resumes: false,
            receive_maximum: 1,
            will: None,
            subscriptions: Vec::new(),
            live: Vec::new(),
        });
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut reading = None;
            for _ in 0..2 {
                let error = files(&config, &mut reading).await.err().unwrap();
                assert!(error.contains("not read within"), "{error}");
            }
            assert_eq!(begun.load(Ordering::SeqCst), 1);
            drop(release);
            let read = files(&config, &mut reading).await.ok().unwrap();
            assert_eq!(read.username.as_deref(), Some("user"));
            assert!(reading.is_none());
        });
    }
}
