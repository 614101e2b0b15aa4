// SPDX-License-Identifier: MPL-2.0

//! What the robots and the broker last said, and waiting for what they say next.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use droidrelay_wire::{
    Command, RobotState, StreamState,
    mqtt::session::{Event, Message},
    words::topics::{OFFLINE, ONLINE},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    config::Watch,
    events::Events,
    robots::{Directory, Robot, Word},
    share::Shares,
    wanted::{Board, Now, ON_BEHALF},
    webhook::Alarms,
};

/// Retained topics arrive right behind the subscription; after this a silent robot is one
/// that the broker knows nothing of.
const SETTLE: Duration = Duration::from_millis(500);
/// More commands than are on their way back from the broker when nothing is wrong.
const UNHEARD: u32 = 25;
/// In a connection so young, commands of the time before it may only be known from notes.
const YOUNG: Duration = Duration::from_secs(2);

/// The connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// The first try has not ended yet.
    Connecting,
    /// Connected and subscribed since.
    Up(Instant),
    /// Why not.
    Down(String),
}

/// What a robot last said; empty where it said nothing or the broker is out of reach.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub online: Option<bool>,
    pub state: Option<Arc<RobotState>>,
}

impl View {
    /// Frames reach the server, by the word of a robot that is there.
    pub fn is_live(&self) -> bool {
        let live = |state: &Arc<RobotState>| state.state == StreamState::Live;
        self.online != Some(false) && self.state.as_ref().is_some_and(live)
    }

    fn is_empty(&self) -> bool {
        self.online.is_none() && self.state.is_none()
    }
}

/// How many robots there are of each kind.
#[derive(Debug, Default)]
pub struct Sums {
    pub online: i64,
    /// In the order of [`StreamState::ALL`], whatever the robots' presence.
    pub by_state: [i64; StreamState::ALL.len()],
}

/// All robots' views, fed by the MQTT session.
pub struct Fleet {
    pub directory: Directory,
    /// Locked ahead of what is wanted, where both are.
    views: Mutex<HashMap<String, watch::Sender<View>>>,
    link: watch::Sender<Link>,
    /// What is wanted of the robots.
    pub wanted: Board,
    /// Each change goes out here.
    pub events: Events,
    /// Links to look at a robot.
    pub shares: Shares,
    /// Who is told when something happens.
    pub alarms: Option<Alarms>,
    watch_urls: Watch,
    was_up: AtomicBool,
    /// Commands that the broker has taken since it last gave one back.
    unheard: AtomicU32,
    started: Instant,
}

impl Fleet {
    /// `id` names this bridge to others on the broker.
    pub fn new(directory: Directory, watch_urls: Watch, id: String) -> Self {
        Fleet {
            directory,
            views: Mutex::default(),
            link: watch::Sender::new(Link::Connecting),
            wanted: Board::new(id, wall_time()),
            events: Events::default(),
            shares: Shares::default(),
            alarms: None,
            watch_urls,
            was_up: AtomicBool::new(false),
            unheard: AtomicU32::new(0),
            started: Instant::now(),
        }
    }

    /// The time, as [`Fleet::wanted`] counts it.
    pub fn now(&self) -> Now {
        Now {
            monotonic: self.started.elapsed(),
            wall: wall_time(),
        }
    }

    /// The moment that `monotonic` is in [`Fleet::now`].
    pub fn instant(&self, monotonic: Duration) -> Instant {
        self.started + monotonic
    }

    /// Takes what happens to the session; does not block.
    pub fn apply(&self, event: Event) {
        match event {
            Event::Up => {
                info!("connected to the MQTT broker");
                self.link.send_replace(Link::Up(Instant::now()));
                self.wanted.forget_commanded();
                self.was_up.store(true, Ordering::Relaxed);
                self.events.broker(&self.broker());
            }
            Event::Down(fault) => {
                let link = Link::Down(fault.text);
                if self.link.send_replace(link.clone()) != link {
                    if let Link::Down(reason) = link {
                        warn!("no MQTT broker: {reason}");
                    }
                    self.events.broker(&self.broker());
                }
                // Nobody knows now; the retained topics tell anew at the next connection.
                self.lock().retain(|_, view| {
                    view.send_replace(View::default());
                    view.receiver_count() > 0
                });
            }
            Event::Message(message) => self.hear(&message),
            Event::Refused(fault) => warn!("{fault}"),
        }
    }

    fn hear(&self, message: &Message) {
        let Some((name, word)) = self.directory.resolve(&message.topic) else {
            debug!(topic = ?message.topic, "message of no robot");
            return;
        };
        match word {
            Word::Command => return self.hear_command(name, message),
            Word::Wanted => return self.hear_note(name, message),
            Word::Shares => return self.hear_shares(name, message),
            Word::State | Word::Availability => {}
        }
        let mut views = self.lock();
        let view = views.entry(name.to_owned()).or_default();
        match word {
            Word::Availability => {
                let online = match message.payload.as_slice() {
                    b"" => None,
                    payload if payload == ONLINE.as_bytes() => Some(true),
                    payload if payload == OFFLINE.as_bytes() => Some(false),
                    _ => {
                        warn!(
                            robot = name,
                            "availability is neither {ONLINE} nor {OFFLINE}: ignored"
                        );
                        return;
                    }
                };
                debug!(robot = name, ?online);
                let on_behalf = message.correlation.as_deref() == Some(ON_BEHALF);
                self.wanted.available(name, online, on_behalf, self.now());
                view.send_if_modified(|view| std::mem::replace(&mut view.online, online) != online);
            }
            _ => {
                let state = if message.payload.is_empty() {
                    None
                } else {
                    match serde_json::from_slice::<RobotState>(&message.payload) {
                        Ok(state) => Some(Arc::new(state)),
                        Err(err) => {
                            warn!(robot = name, "state that cannot be read, ignored: {err}");
                            return;
                        }
                    }
                };
                debug!(
                    robot = name,
                    state = state.as_ref().map(|state| state.state.as_str())
                );
                view.send_modify(|view| view.state = state);
            }
        }
        let now = view.borrow().clone();
        if now.is_empty() && view.receiver_count() == 0 {
            views.remove(name);
        }
        drop(views);
        if let Some(alarms) = &self.alarms {
            alarms.hear(name, &now, wall_time());
        }
        self.events.robot(name, || {
            let robot = self.directory.robot(name)?;
            Some(self.describe_view(&robot, &now))
        });
    }

    fn hear_command(&self, name: &str, message: &Message) {
        // As at a valve: what is retained was sent at a time that nobody knows.
        if message.retained {
            return;
        }
        self.unheard.store(0, Ordering::Relaxed);
        match Command::parse(&message.payload) {
            Ok(command) => {
                let online = self.view(name).online;
                self.wanted
                    .obey(name, &command, online, self.is_young(), self.now());
            }
            Err(refusal) => debug!(robot = name, "not a command: {refusal}"),
        }
    }

    /// The connection is so young that commands may have been missed.
    fn is_young(&self) -> bool {
        match self.link() {
            Link::Up(since) => since.elapsed() < YOUNG,
            _ => true,
        }
    }

    fn hear_note(&self, name: &str, message: &Message) {
        if message.payload.is_empty() {
            return;
        }
        let is_young = self.is_young();
        match serde_json::from_slice(&message.payload) {
            Ok(note) => self
                .wanted
                .read(name, note, message.retained, is_young, self.now()),
            Err(err) => warn!(
                robot = name,
                "note of what is wanted that cannot be read, ignored: {err}"
            ),
        }
    }

    fn hear_shares(&self, name: &str, message: &Message) {
        if message.payload.is_empty() {
            return;
        }
        match serde_json::from_slice(&message.payload) {
            Ok(revoked) => {
                if self.shares.read(name, revoked, wall_time()) {
                    self.wanted.wake.notify_one();
                }
            }
            Err(err) => warn!(
                robot = name,
                "revoked links that cannot be read, ignored: {err}"
            ),
        }
    }

    /// The broker has acknowledged a command of ours, which it then gives back to us as well.
    pub fn sent_command(&self) {
        if self.unheard.fetch_add(1, Ordering::Relaxed) + 1 == UNHEARD {
            warn!(
                "the broker gives no command back: without the right to read the command topics, robots that poll are told nothing, and at MediaMTX no robot may publish"
            );
        }
    }

    /// What is retained has been heard of at least once.
    pub fn has_been_up(&self) -> bool {
        self.was_up.load(Ordering::Relaxed)
    }

    /// Where streams are, for a robot to be filled in.
    pub fn watch_templates(&self) -> &Watch {
        &self.watch_urls
    }

    /// Where players find the robot's stream.
    pub fn watch_urls(&self, robot: &Robot) -> Map<String, Value> {
        self.watch_urls.fill(robot)
    }

    /// What everybody who may see the robot is told of it.
    pub fn describe(&self, robot: &Robot) -> Value {
        self.describe_view(robot, &self.view(&robot.name))
    }

    fn describe_view(&self, robot: &Robot, view: &View) -> Value {
        let online = match self.link() {
            Link::Up(_) => Some(view.online.unwrap_or(false)),
            _ => None,
        };
        json!({
            "robot": robot.name,
            "topic": robot.topic,
            "path": robot.path,
            "online": online,
            "state": view.state.as_deref(),
            "watch": self.watch_urls.fill(robot),
        })
    }

    /// What everybody is told of the connection to the broker.
    pub fn broker(&self) -> Value {
        match self.link() {
            Link::Up(_) => json!({ "connected": true }),
            Link::Connecting => json!({ "connected": false, "error": "connecting" }),
            Link::Down(reason) => json!({ "connected": false, "error": reason }),
        }
    }

    /// How many robots there are of each kind.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for view in self.lock().values() {
            let view = view.borrow();
            sums.online += i64::from(view.online == Some(true));
            if let Some(state) = &view.state {
                let known = StreamState::ALL
                    .iter()
                    .position(|known| *known == state.state);
                if let Some(known) = known {
                    sums.by_state[known] += 1;
                }
            }
        }
        sums
    }

    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// The link once its first try has ended, or the deadline has passed.
    pub async fn link_decided(&self, deadline: Instant) -> Link {
        let mut link = self.link.subscribe();
        let decided = link.wait_for(|link| *link != Link::Connecting);
        // The sender lives in self: only the deadline can end this early.
        let _ = timeout_at(deadline, decided).await;
        self.link()
    }

    /// The link as it is from now on.
    pub fn watch_link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Waits until what is retained has come, where the connection is very young.
    pub async fn settled(&self) {
        if let Link::Up(since) = self.link() {
            tokio::time::sleep_until(since + SETTLE).await;
        }
    }

    pub fn view(&self, name: &str) -> View {
        self.lock()
            .get(name)
            .map_or_else(View::default, |view| view.borrow().clone())
    }

    /// The view, given a moment to arrive where the connection is very young.
    pub async fn settled_view(&self, name: &str) -> View {
        if let Link::Up(since) = self.link() {
            let deadline = since + SETTLE;
            if Instant::now() < deadline {
                let mut watcher = self.watch(name);
                let known = watcher.receiver.wait_for(|view| view.online.is_some());
                let _ = timeout_at(deadline, known).await;
            }
        }
        self.view(name)
    }

    /// Follows one robot, also one that has not said anything yet.
    pub fn watch(&self, name: &str) -> Watcher<'_> {
        Watcher {
            receiver: self.lock().entry(name.to_owned()).or_default().subscribe(),
            fleet: self,
            name: name.to_owned(),
        }
    }

    /// Names of all robots that are listed or have been heard of, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().keys().cloned().collect();
        names.extend(self.directory.listed().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        names
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wall_time() -> Duration {
    // A clock that stands before 1970 is as good as one that stands there.
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// Forgets a robot that never said anything when the last one who asked for it goes.
pub struct Watcher<'a> {
    pub receiver: watch::Receiver<View>,
    fleet: &'a Fleet,
    name: String,
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut views = self.fleet.lock();
        // Our own receiver is still counted.
        let useless =
            |view: &watch::Sender<View>| view.receiver_count() <= 1 && view.borrow().is_empty();
        if views.get(&self.name).is_some_and(useless) {
            views.remove(&self.name);
        }
    }
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
        )
    }

    fn say(fleet: &Fleet, topic: &str, payload: &str) {
        fleet.apply(Event::Message(Message {
            topic: topic.into(),
            payload: payload.into(),
            retained: true,
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
        assert_eq!(view.online, Some(true));
        assert_eq!(view.state.unwrap().state, StreamState::Idle);
    }

    #[test]
    fn without_the_broker_nothing_is_known() {
        let fleet = fleet();
        say(&fleet, "robots/r1/stream/availability", "online");
        let watcher = fleet.watch("r1");
        fleet.apply(Event::Down(Fault::new(FaultKind::Closed, "gone")));
        assert_eq!(fleet.link(), Link::Down("gone".into()));
        assert_eq!(fleet.view("r1").online, None);
        drop(watcher);
        assert!(fleet.names().is_empty());
    }

    #[tokio::test]
    async fn a_young_connection_is_given_a_moment_to_tell() {
        let fleet = fleet();
        fleet.apply(Event::Up);
        let (view, ()) = tokio::join!(fleet.settled_view("r1"), async {
            tokio::task::yield_now().await;
            say(&fleet, "robots/r1/stream/availability", "offline");
        });
        assert_eq!(view.online, Some(false));
        assert_eq!(fleet.settled_view("r2").await.online, None);
        assert_eq!(fleet.names(), ["r1"], "asking leaves nothing behind");
    }
}
