// SPDX-License-Identifier: MPL-2.0

//! What the robots and the broker last said, and waiting for what they say next.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use droidrelay_wire::{
    Command, RobotState, StreamState,
    mqtt::session::{Capabilities, Event, Message, Version},
    words::{
        command::quote,
        topics::{OFFLINE, ONLINE},
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    clock::{Clock, Now},
    events::Events,
    metrics::Sums,
    robots::{Directory, Robot, Word},
    share::{ShareLink, Shares},
    view::{Availability, RobotView, Speaker},
    wanted::{ConnectionAge, Delivery, Heard, LeaseTable},
    watch::Watch,
    watcher::Watcher,
    webhook::Webhooks,
};

/// Retained topics arrive right behind the subscription; after this a silent robot is one
/// that the broker knows nothing of.
const SETTLE: Duration = Duration::from_millis(500);
/// Whatever a broker sends at a subscription has come by then.
const SURELY_SETTLED: Duration = Duration::from_secs(30);
/// More commands than are on their way back from the broker when nothing is wrong.
const UNHEARD: u32 = 25;
/// Robots with bad names that are told of.
const MISNAMED: usize = 100;
/// In a connection so young, commands of the time before it may only be known from notes.
const YOUNG: Duration = Duration::from_secs(2);

/// The connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerLink {
    /// The first try has not ended yet.
    Connecting,
    /// Connected and subscribed since.
    Up(Instant),
    /// Why not.
    Down(String),
}

impl BrokerLink {
    /// Why nobody can be reached over it; None: it is up.
    pub fn fault(&self) -> Option<String> {
        let reason = match self {
            BrokerLink::Up(_) => return None,
            BrokerLink::Connecting => "it has not answered yet",
            BrokerLink::Down(reason) => reason,
        };
        Some(format!("the MQTT broker is out of reach: {reason}"))
    }
}

/// All robots' views, fed by the MQTT session.
pub struct Fleet {
    /// Which robots there are.
    pub directory: Directory,
    /// Locked ahead of what is wanted, where both are.
    views: Mutex<HashMap<String, watch::Sender<RobotView>>>,
    link: watch::Sender<BrokerLink>,
    /// What is wanted of the robots.
    pub wanted: LeaseTable,
    /// Each change goes out here.
    pub events: Events,
    /// Links to look at a robot.
    pub shares: Shares,
    /// Who is told when something happens.
    webhooks: Webhooks,
    /// Where players find the streams.
    pub watch_urls: Watch,
    was_up: AtomicBool,
    /// What the broker of the last connection can do.
    broker: Mutex<Option<Capabilities>>,
    /// Names that no robot can have, which the log has named.
    misnamed: Mutex<HashSet<String>>,
    /// Robots that have been online, and when they went; and robots that are back.
    seen: Mutex<HashMap<String, Option<Duration>>>,
    returned: Mutex<Vec<(String, Option<Duration>)>>,
    /// Robots that were taken away, and those of them whose topics are to be cleared.
    removed: Mutex<HashSet<String>>,
    to_clear: Mutex<HashSet<String>>,
    /// Where the mark of this bridge is sent, and what it is known by.
    mark: (String, Vec<u8>),
    /// The mark has come back over this connection.
    marked: watch::Sender<bool>,
    /// Commands that the broker has taken since it last gave one back.
    unheard: AtomicU32,
    clock: Clock,
}

impl Fleet {
    /// `id` names this bridge to others on the broker.
    pub fn new(
        directory: Directory,
        watch_urls: Watch,
        id: String,
        shares: Shares,
        webhooks: Webhooks,
    ) -> Self {
        let clock = Clock::default();
        let mark = (directory.mark_topic(&id), id.clone().into_bytes());
        Fleet {
            mark,
            marked: watch::Sender::new(false),
            directory,
            views: Mutex::default(),
            link: watch::Sender::new(BrokerLink::Connecting),
            wanted: LeaseTable::new(id, clock.now().wall),
            events: Events::default(),
            shares,
            webhooks,
            watch_urls,
            was_up: AtomicBool::new(false),
            broker: Mutex::default(),
            misnamed: Mutex::default(),
            seen: Mutex::default(),
            returned: Mutex::default(),
            removed: Mutex::default(),
            to_clear: Mutex::default(),
            unheard: AtomicU32::new(0),
            clock,
        }
    }

    /// The time, as [`Fleet::wanted`] counts it.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// The moment that `monotonic` is in [`Fleet::now`].
    pub fn instant(&self, monotonic: Duration) -> Instant {
        self.clock.instant(monotonic)
    }

    /// The share link of this token, if it still lets anybody in; none before what was revoked is
    /// known.
    pub fn check_share(&self, token: &str) -> Option<ShareLink> {
        self.check_share_at(token, self.now().wall)
    }

    /// As [`Fleet::check_share`], for who has begun to look: the link may have ended meanwhile, but
    /// not been revoked.
    pub fn check_begun_share(&self, token: &str) -> Option<ShareLink> {
        self.check_share_at(token, Duration::ZERO)
    }

    fn check_share_at(&self, token: &str, now: Duration) -> Option<ShareLink> {
        let link = self.shares.check(token, now)?;
        self.was_up.load(Ordering::Relaxed).then_some(link)
    }

    /// Whether what was revoked has ever been heard.
    pub fn knows_links(&self) -> bool {
        self.was_up.load(Ordering::Relaxed)
    }

    /// The robot's newest event, as a listener gets it.
    pub fn newest_event(&self, name: &str) -> Option<Bytes> {
        self.events
            .newest(name, || Some(self.describe(&self.directory.robot(name)?)))
    }

    /// Takes what happens to the session; does not block.
    pub fn apply(&self, event: Event) {
        match event {
            Event::Up(broker) => {
                info!("connected to the MQTT broker with MQTT {}", broker.version);
                for lack in broker.lacks() {
                    warn!("{lack}");
                }
                *self.broker.lock() = Some(broker);
                self.marked.send_replace(false);
                self.link.send_replace(BrokerLink::Up(Instant::now()));
                self.wanted.connected();
                self.was_up.store(true, Ordering::Relaxed);
                self.events.broker(&self.broker());
            }
            Event::Down(fault) => {
                let link = BrokerLink::Down(fault.text);
                if self.link.send_replace(link.clone()) != link {
                    if let BrokerLink::Down(reason) = link {
                        warn!("no MQTT broker: {reason}");
                    }
                    self.events.broker(&self.broker());
                }
                // Nobody knows now; the retained topics tell anew at the next connection.
                self.views.lock().retain(|_, view| {
                    view.send_replace(RobotView::default());
                    view.receiver_count() > 0
                });
            }
            Event::Message(message) => self.hear(&message),
            Event::Refused(fault) => warn!("{fault}"),
        }
    }

    fn hear(&self, message: &Message) {
        let Some((name, word)) = self.directory.resolve(&message.topic) else {
            self.name_misnamed(&message.topic);
            return;
        };
        match word {
            Word::Wanted | Word::Shares if message.payload.is_empty() => self.hear_mark(message),
            Word::Availability => self.hear_availability(name, message),
            Word::State => self.hear_state(name, message),
            Word::Command => self.hear_command(name, message),
            Word::Wanted => self.hear_note(name, message),
            Word::Shares => self.hear_shares(name, message),
        }
    }

    /// A topic that would be a robot's, had it another name, is told once.
    fn name_misnamed(&self, topic: &str) {
        let Some((name, error)) = self.directory.misnamed(topic) else {
            debug!(?topic, "message of no robot");
            return;
        };
        let mut told = self.misnamed.lock();
        if told.len() < MISNAMED && told.insert(name.to_owned()) {
            let name = quote(name);
            warn!("a robot calls itself {name}, and is not shown: {error}");
        }
    }

    /// Why robots cannot be served by this broker, though it is there.
    pub fn unfit(&self) -> Option<String> {
        let broker = (*self.broker.lock())?;
        (!broker.retain).then(|| broker.lacks().join("; "))
    }

    /// Whether the broker speaks MQTT 5: it forgets a command by itself when it has waited too
    /// long, and carries correlation data.
    pub fn speaks_mqtt_5(&self) -> bool {
        let broker = *self.broker.lock();
        broker.is_none_or(|broker| broker.version == Version::V5)
    }

    fn hear_mark(&self, message: &Message) {
        let (topic, mark) = &self.mark;
        // A broker without MQTT 5 hands no correlation data on.
        let is_ours = message
            .correlation
            .as_ref()
            .is_none_or(|correlation| correlation == mark);
        if !message.retained && message.topic == *topic && is_ours {
            self.marked.send_replace(true);
        }
    }

    /// The broker does not take the mark over this connection.
    pub fn do_without_mark(&self) {
        self.marked.send_replace(true);
    }

    /// Topic and correlation data of this bridge's mark.
    pub fn mark(&self) -> (String, Vec<u8>) {
        self.mark.clone()
    }

    fn hear_availability(&self, name: &str, message: &Message) {
        let Some(availability) = Availability::parse(&message.payload) else {
            warn!(
                robot = name,
                "availability is neither {ONLINE} nor {OFFLINE}: ignored"
            );
            return;
        };
        debug!(robot = name, ?availability);
        let by = match self.speaks_mqtt_5() {
            true => Speaker::of(message.correlation.as_deref()),
            false => Speaker::Either,
        };
        if by != Speaker::Bridge {
            self.note_return(name, availability, message.retained);
        }
        self.change_view(name, |view| {
            self.wanted.told(name, availability, by, self.now());
            if availability == Availability::Offline && self.removed.lock().contains(name) {
                self.clear(name);
            }
            view.send_if_modified(|view| {
                std::mem::replace(&mut view.availability, availability) != availability
            });
        });
    }

    /// A robot that speaks MQTT itself and comes back may have missed what was sent meanwhile: the
    /// broker has lost its session, or had none.
    fn note_return(&self, name: &str, availability: Availability, retained: bool) {
        let before = self.view(name).availability;
        let is_online = availability.is_online();
        if before.is_online() == is_online {
            return;
        }
        let left = (!is_online).then(|| self.now().monotonic);
        let was_seen = self.seen.lock().insert(name.to_owned(), left);
        // Who was never here has not come back, and has missed nothing.
        let is_known = was_seen.is_some() || before == Availability::Offline;
        if is_online && is_known && !retained {
            let returned = (name.to_owned(), was_seen.flatten());
            self.returned.lock().push(returned);
            self.wanted.wake.notify_one();
        }
    }

    /// Robots that are back, and when they were seen last.
    pub fn take_returned(&self) -> Vec<(String, Option<Duration>)> {
        std::mem::take(&mut *self.returned.lock())
    }

    fn hear_state(&self, name: &str, message: &Message) {
        let mut state = None;
        if !message.payload.is_empty() {
            let Some(told) = read::<RobotState>(name, "state", message) else {
                return;
            };
            state = Some(Arc::new(told));
        }
        if let Some(state) = state.as_ref().filter(|_| !message.retained) {
            let more = !state.lists_all_viewers();
            self.wanted.seen_obeyed(name, &state.viewers, more);
        }
        let word = state.as_ref().map(|state| state.state.as_str());
        debug!(robot = name, state = word);
        self.change_view(name, |view| view.send_modify(|view| view.state = state));
    }

    /// Changes what is known of a robot, and tells everybody who wants to know.
    fn change_view(&self, name: &str, change: impl FnOnce(&watch::Sender<RobotView>)) {
        let mut views = self.views.lock();
        let view = views.entry(name.to_owned()).or_default();
        change(view);
        let now = view.borrow().clone();
        if now.is_empty() && view.receiver_count() == 0 {
            views.remove(name);
        }
        drop(views);
        self.webhooks.hear(name, &now, self.now().wall);
        if now.is_empty() && !self.directory.is_listed(name) {
            return self.events.gone(name);
        }
        self.events.robot(name, || {
            let robot = self.directory.robot(name)?;
            Some(self.describe_view(&robot, &now))
        });
    }

    fn hear_command(&self, name: &str, message: &Message) {
        // As at a valve: what the broker has kept was sent at a time that nobody knows. MQTT 5
        // gives none of it here: a mark says that it is kept from now on.
        if message.retained && !self.speaks_mqtt_5() {
            return;
        }
        self.unheard.store(0, Ordering::Relaxed);
        match Command::parse(&message.payload) {
            Ok(command) => {
                let availability = self.view(name).availability;
                let (age, now) = (self.connection_age(), self.now());
                let heard = Heard {
                    command: &command,
                    expiry: message.expiry,
                    is_kept: message.retained,
                };
                self.wanted.obey(name, &heard, availability, age, now);
            }
            Err(refusal) => debug!(robot = name, "not a command: {refusal}"),
        }
    }

    fn connection_age(&self) -> ConnectionAge {
        match self.link() {
            BrokerLink::Up(since) if since.elapsed() >= YOUNG => ConnectionAge::Settled,
            _ => ConnectionAge::Young,
        }
    }

    fn hear_note(&self, name: &str, message: &Message) {
        let delivery = match message.retained {
            true => Delivery::Retained,
            false => Delivery::Live,
        };
        if let Some(note) = read(name, "note of what is wanted", message) {
            let (age, now) = (self.connection_age(), self.now());
            self.wanted.read(name, &note, delivery, age, now);
        }
    }

    fn hear_shares(&self, name: &str, message: &Message) {
        if let Some(revoked) = read(name, "list of revoked links", message)
            && self.shares.read(name, revoked, self.now().wall)
        {
            self.wanted.wake.notify_one();
        }
    }

    /// These robots have been taken away, and no others: once they are offline, nothing that the
    /// broker keeps of them tells of them any more.
    pub fn set_removed(&self, removed: HashSet<String>) {
        for name in &removed {
            if self.view(name).availability != Availability::Online {
                self.clear(name);
            }
        }
        *self.removed.lock() = removed;
    }

    pub fn removed(&self) -> HashSet<String> {
        self.removed.lock().clone()
    }

    fn clear(&self, name: &str) {
        self.to_clear.lock().insert(name.to_owned());
        self.wanted.wake.notify_one();
    }

    /// Robots whose topics are to be cleared.
    pub fn uncleared(&self) -> Vec<String> {
        self.to_clear.lock().drain().collect()
    }

    /// The broker has acknowledged a command of ours, which it then gives back to us as well.
    pub fn sent_command(&self) {
        if self.unheard.fetch_add(1, Ordering::Relaxed) + 1 == UNHEARD {
            warn!(
                "the broker gives no command back: without the right to read the command topics, robots that poll are told nothing, and at MediaMTX no robot may publish"
            );
        }
    }

    /// What everybody who may see the robot is told of it.
    pub fn describe(&self, robot: &Robot) -> Value {
        self.describe_view(robot, &self.view(&robot.name))
    }

    fn describe_view(&self, robot: &Robot, view: &RobotView) -> Value {
        let online = match self.link() {
            BrokerLink::Up(_) => Some(view.availability.is_online()),
            _ => None,
        };
        json!({
            "robot": robot.name,
            "topic": robot.topic,
            "path": robot.path,
            "online": online,
            "state": view.state.as_deref(),
            "watch": self.watch_urls.fill(robot),
            "whep": self.watch_urls.whep(robot),
            "hls": self.watch_urls.playlist(robot),
        })
    }

    /// What everybody is told of the connection to the broker.
    pub fn broker(&self) -> Value {
        match self.link() {
            BrokerLink::Up(_) => json!({ "connected": true }),
            BrokerLink::Connecting => json!({ "connected": false, "error": "connecting" }),
            BrokerLink::Down(reason) => json!({ "connected": false, "error": reason }),
        }
    }

    /// How many robots there are of each kind.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums {
            is_broker_connected: self.is_up(),
            ..Sums::default()
        };
        for view in self.views.lock().values() {
            let view = view.borrow();
            sums.robots_online += i64::from(view.availability.is_online());
            let state = view.state.as_ref().map(|state| &state.state);
            let known = StreamState::ALL
                .iter()
                .position(|known| Some(known) == state);
            if let Some(known) = known {
                sums.robots_by_state[known] += 1;
            }
        }
        sums
    }

    pub fn link(&self) -> BrokerLink {
        self.link.borrow().clone()
    }

    /// Connected and subscribed.
    pub fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), BrokerLink::Up(_))
    }

    /// The link once its first try has ended, or the deadline has passed.
    pub async fn link_decided(&self, deadline: Instant) -> BrokerLink {
        let mut link = self.link.subscribe();
        let decided = link.wait_for(|link| *link != BrokerLink::Connecting);
        // The sender lives in self: only the deadline can end this early.
        let _ = timeout_at(deadline, decided).await;
        self.link()
    }

    /// The link as it is from now on.
    pub fn watch_link(&self) -> watch::Receiver<BrokerLink> {
        self.link.subscribe()
    }

    /// Waits until all that is retained has come; false: it has not by the deadline. The broker
    /// sends it in order ahead of this bridge's own mark; brokers that do not keep that order get
    /// some time besides. Without a connection there is nothing to wait for.
    pub async fn settled(&self, deadline: Instant) -> bool {
        let BrokerLink::Up(since) = self.link() else {
            return true;
        };
        let mut marked = self.marked.subscribe();
        let settled = async {
            sleep_until(since + SETTLE).await;
            // The sender lives in self.
            let marked = marked.wait_for(|marked| *marked);
            let _ = timeout_at(since + SURELY_SETTLED, marked).await;
        };
        timeout_at(deadline, settled).await.is_ok()
    }

    /// Whether every command of the last `age` seconds has been heard.
    pub fn has_heard_all_since(&self, age: f64) -> bool {
        match self.link() {
            BrokerLink::Up(since) => since.elapsed().as_secs_f64() >= age,
            _ => false,
        }
    }

    pub fn view(&self, name: &str) -> RobotView {
        self.views
            .lock()
            .get(name)
            .map_or_else(RobotView::default, |view| view.borrow().clone())
    }

    /// The view, given a moment to arrive where the connection is very young.
    pub async fn settled_view(&self, name: &str) -> RobotView {
        if let BrokerLink::Up(since) = self.link() {
            let deadline = since + SETTLE;
            if Instant::now() < deadline {
                let mut watcher = self.watch(name);
                let is_known = |view: &RobotView| view.availability != Availability::Unknown;
                let known = watcher.receiver.wait_for(is_known);
                let _ = timeout_at(deadline, known).await;
            }
        }
        self.view(name)
    }

    /// Follows one robot, also one that has not said anything yet.
    pub fn watch(&self, name: &str) -> Watcher<'_, RobotView> {
        let name = name.to_owned();
        let mut views = self.views.lock();
        let receiver = views.entry(name.clone()).or_default().subscribe();
        Watcher::new(receiver, move || self.forget_if_useless(&name))
    }

    /// A robot that has not said anything, and whom nobody watches.
    fn forget_if_useless(&self, name: &str) {
        let mut views = self.views.lock();
        let is_useless = |view: &watch::Sender<RobotView>| {
            view.receiver_count() == 0 && view.borrow().is_empty()
        };
        if views.get(name).is_some_and(is_useless) {
            views.remove(name);
        }
    }

    /// Names of all robots that are listed or have been heard of, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.views.lock().keys().cloned().collect();
        names.extend(self.directory.listed().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A payload of JSON; one that cannot be read is told in the log, and changes nothing.
fn read<T: DeserializeOwned>(robot: &str, what: &str, message: &Message) -> Option<T> {
    serde_json::from_slice(&message.payload)
        .inspect_err(|err| warn!(robot, "{what} that cannot be read, ignored: {err}"))
        .ok()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::robots::TopicTemplate;
    use droidrelay_wire::{Fault, FaultKind};

    fn fleet() -> Fleet {
        let template = TopicTemplate::parse("robots/{robot}/stream").unwrap();
        Fleet::new(
            Directory::new(Some((template, "{robot}".into())), vec![], None),
            Watch::default(),
            "bridge".into(),
            Shares::default(),
            Webhooks::default(),
        )
    }

    fn say(fleet: &Fleet, topic: &str, payload: &str) {
        fleet.apply(Event::Message(Message {
            topic: topic.into(),
            payload: payload.into(),
            retained: true,
            may_be_old: false,
            expiry: None,
            correlation: None,
        }));
    }

    #[test]
    fn a_robot_is_known_by_what_it_says_and_forgotten_when_it_takes_it_back() {
        let fleet = fleet();
        say(&fleet, "robots/r1/stream/availability", "online");
        say(&fleet, "robots/r1/stream/state", r#"{"state":"live"}"#);
        assert!(fleet.view("r1").is_live());
        assert_eq!(fleet.names(), ["r1"]);
        say(&fleet, "robots/r1/stream/availability", "offline");
        assert!(!fleet.view("r1").is_live());
        say(&fleet, "robots/r1/stream/availability", "");
        say(&fleet, "robots/r1/stream/state", "");
        assert!(fleet.names().is_empty());
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let fleet = fleet();
        say(&fleet, "robots/r1/stream/availability", "online");
        say(&fleet, "robots/r1/stream/state", r#"{"state":"idle"}"#);
        say(&fleet, "robots/r1/stream/availability", "maybe");
        say(&fleet, "robots/r1/stream/state", "{");
        let view = fleet.view("r1");
        assert_eq!(view.availability, Availability::Online);
        assert_eq!(view.state.unwrap().state, StreamState::Idle);
    }

    #[test]
    fn without_the_broker_nothing_is_known() {
        let fleet = fleet();
        say(&fleet, "robots/r1/stream/availability", "online");
        let watcher = fleet.watch("r1");
        fleet.apply(Event::Down(Fault::new(FaultKind::Closed, "gone")));
        assert_eq!(fleet.link(), BrokerLink::Down("gone".into()));
        assert_eq!(fleet.view("r1").availability, Availability::Unknown);
        drop(watcher);
        assert!(fleet.names().is_empty());
    }

    #[tokio::test]
    async fn a_young_connection_is_given_a_moment_to_tell() {
        let fleet = fleet();
        fleet.apply(Event::Up(Capabilities::ALL));
        let (view, ()) = tokio::join!(fleet.settled_view("r1"), async {
            tokio::task::yield_now().await;
            say(&fleet, "robots/r1/stream/availability", "offline");
        });
        assert_eq!(view.availability, Availability::Offline);
        assert_eq!(
            fleet.settled_view("r2").await.availability,
            Availability::Unknown
        );
        assert_eq!(fleet.names(), ["r1"], "asking leaves nothing behind");
    }
}
