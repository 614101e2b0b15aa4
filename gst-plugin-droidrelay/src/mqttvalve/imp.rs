// SPDX-License-Identifier: MPL-2.0

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use droidrelay_wire::{
    Backoff, Command, Secret,
    backoff::jitter,
    mqtt::session::{Event, Message, Session},
    words::topics::{OFFLINE, ONLINE},
    words::{
        command,
        gate::{Lease, Origin, Outcome},
    },
};
use glib::subclass::Signal;
use gst::{prelude::*, subclass::prelude::*};
use gst_base::prelude::*;
use once_cell::sync::Lazy;

use super::{
    Standby,
    board::Seat,
    control::Control,
    discovery::{self, Device},
    kept::Kept,
    leases,
    settings::{
        DEFAULT_ACCEPT_RETAINED, DEFAULT_KEEP_ALIVE, DEFAULT_LEASE, DEFAULT_OFFLINE_TIMEOUT,
        DEFAULT_PREROLL_TIME, MAX_PREROLL_TIME, Settings, Topics,
    },
    standby::{Errors, Upstream},
};
use crate::element::{
    io::Io,
    keyunit, link, neighbours,
    property::{path, path_value, secret_spec, text, text_spec},
    worker::Worker,
};

pub static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "mqttvalve",
        gst::DebugColorFlags::empty(),
        Some("Valve on MQTT messages"),
    )
});

/// Key frames that `keyframe` commands can cause: one in this time.
const KEYFRAME_INTERVAL: Duration = Duration::from_millis(500);
/// A camera that fails to open is tried again within these bounds.
const CAMERA_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How long after a session its memory is given back.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// How long READY to NULL waits for a job of ours.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Values of the one word in the data path.
mod word {
    /// Buffers are dropped.
    pub const CLOSED: u32 = 0;
    /// The next buffer that may be the first goes through, as the first of a session.
    pub const OPENING: u32 = 1;
    /// Buffers go through.
    pub const OPEN: u32 = 2;
    /// As `OPEN`, and a key frame is asked for ahead of the next buffer.
    pub const KEY_UNIT: u32 = 3;
}

/// What the caps say about opening in the middle of the stream.
mod media {
    /// Raw or intra-only video: any frame may be the first; the encoder is downstream.
    pub const RAW: u32 = 0;
    /// Delta-coded: a key frame must be the first; the encoder is upstream.
    pub const CODED: u32 = 1;
    /// Audio and others: nothing to ask for.
    pub const OTHER: u32 = 2;
}

/// When a camera that failed is tried again, on the element's clock.
struct Retry {
    backoff: Backoff,
    at: Duration,
}

impl Retry {
    fn new() -> Self {
        Retry {
            backoff: Backoff::new(CAMERA_BACKOFF.0, CAMERA_BACKOFF.1),
            at: Duration::ZERO,
        }
    }

    fn reset(&mut self) {
        *self = Retry::new();
    }
}

/// Whether memory is still held that a session needed.
enum Tidy {
    Done,
    /// The valve is or was open.
    Needed,
    /// At this time of the element's clock.
    At(Duration),
}

/// What the standby job remembers between its runs.
struct Standing {
    upstream: Option<Upstream>,
    retry: Retry,
    tidy: Tidy,
}

/// Exists from READY on; dropped on the way to NULL.
struct State {
    io: Arc<Io>,
    link: Option<Arc<Link>>,
    discovery: Discovery,
}

/// The valve at its broker.
struct Link {
    session: Session,
    seat: Seat,
    topics: Topics,
}

/// What Home Assistant has been told.
struct Discovery {
    device: Device,
    /// The prefix below which the device is announced.
    prefix: Option<String>,
    /// The prefix as it was set, good or not.
    asked: Option<String>,
    /// Home Assistant has come up.
    again: bool,
}

pub struct MqttValve {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    /// Start of this element's monotonic clock.
    epoch: Instant,
    // Locks are never held together, nor across a push, post, notify or join.
    settings: Mutex<Settings>,
    control: Mutex<Control>,
    state: Mutex<Option<State>>,
    /// What a warm or hot valve that is closed sends first when it opens.
    kept: Mutex<Kept>,
    word: AtomicU32,
    media: AtomicU32,
    passed: AtomicU64,
    dropped: AtomicU64,
    key_units: AtomicU32,
    connected: AtomicBool,
    /// What `notify::connected` was last sent for.
    connected_told: AtomicBool,
    /// `standby=cold` works here: upstream is ours to stop.
    cold: AtomicBool,
    /// `standby=hot`: nanoseconds that are kept; else 0.
    preroll_time: AtomicU64,
    /// Upstream is stopped, by us.
    released: AtomicBool,
    upstream_errors: Errors,
    started: AtomicBool,
    /// The next start goes on where another life of this valve has ended.
    resume: AtomicBool,
    /// The elements behind the valve cannot take anything now.
    resetting: AtomicBool,
    /// An EOS that the standby thread is to push, because upstream cannot.
    pending_eos: AtomicBool,
    /// Events, notifications and messages, in the order of the changes.
    announcer: Arc<Worker<super::MqttValve>>,
    /// State changes upstream, and the kept frame.
    standby: Arc<Worker<super::MqttValve>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MqttValve {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    // ---- commands -------------------------------------------------------------------------

    /// The one door in: every command, wherever it comes from, ends here. `correlation`: what its
    /// sender knows it by, where that is not the id in it.
    fn command(&self, command: &Command, origin: Origin, correlation: Option<&str>) {
        let lease = locked(&self.settings).lease;
        let now = self.now();
        let (outcome, changed) = {
            let mut control = locked(&self.control);
            let outcome = control.gate.apply(command, origin, lease, now);
            let changed = control.decided(outcome.clone(), now);
            if outcome == Outcome::Keyframe {
                control.want_keyframe();
            }
            if !matches!(outcome, Outcome::Refused(_)) {
                control.obeyed(command.to_payload(), correlation.or(command.id()));
            }
            if changed {
                self.set_word(control.gate.is_open());
            }
            (outcome, changed)
        };
        gst::debug!(CAT, imp = self, "{command:?} from {origin:?}: {outcome:?}");
        if let Outcome::Refused(reason) = outcome {
            gst::warning!(CAT, imp = self, "command refused: {reason}");
        }
        self.announcer.wake();
        if changed {
            self.standby.wake();
        }
    }

    /// Called under the `control` lock, so that the word follows the gate's order.
    fn set_word(&self, open: bool) {
        self.word.store(
            if open { word::OPENING } else { word::CLOSED },
            Ordering::Release,
        );
    }

    fn refuse(&self, reason: String) {
        gst::warning!(CAT, imp = self, "command refused: {reason}");
        locked(&self.control).refuse(reason);
        self.announcer.wake();
    }

    /// Goes on with what another valve, or this one, has held.
    fn take_up(&self, given: Vec<Lease>) {
        let now = self.now();
        let changed = {
            let mut control = locked(&self.control);
            let outcome = control.gate.take_up(given, now);
            let changed = control.decided(outcome, now);
            if changed {
                self.set_word(control.gate.is_open());
            }
            changed
        };
        if locked(&self.state).is_none() {
            self.resume.store(true, Ordering::Relaxed);
        }
        self.announcer.wake();
        if changed {
            self.standby.wake();
        }
    }

    // ---- MQTT -----------------------------------------------------------------------------

    /// Runs in the I/O thread.
    fn on_mqtt(&self, event: Event) {
        match event {
            Event::Up => {
                gst::info!(CAT, imp = self, "connected to the broker and subscribed");
                let now = self.now();
                locked(&self.control).gate.link(true, now);
                self.connected.store(true, Ordering::Relaxed);
            }
            Event::Down(fault) => {
                gst::warning!(CAT, imp = self, "no MQTT session: {fault}");
                let now = self.now();
                let mut control = locked(&self.control);
                control.gate.link(false, now);
                control.note(fault.text);
                self.connected.store(false, Ordering::Relaxed);
            }
            Event::Message(message) => return self.on_message(&message),
            Event::Refused(fault) => {
                gst::warning!(CAT, imp = self, "{fault}");
                locked(&self.control).note(fault.text);
            }
        }
        self.announcer.wake();
    }

    /// A message on another topic than that of the commands.
    fn on_home_assistant(&self, message: &Message) {
        gst::debug!(CAT, imp = self, "Home Assistant has a status");
        if message.payload == discovery::BIRTH {
            if let Some(state) = locked(&self.state).as_mut() {
                state.discovery.again = true;
            }
            self.announcer.wake();
        }
    }

    fn on_message(&self, message: &Message) {
        gst::log!(
            CAT,
            imp = self,
            "message of {} bytes on {}, retained: {}",
            message.payload.len(),
            message.topic,
            message.retained
        );
        let accept_retained = locked(&self.settings).accept_retained;
        match Command::parse(&message.payload) {
            Err(refusal) => self.refuse(refusal.to_string()),
            Ok(_) if message.retained && !accept_retained => self.refuse(
                "it is a retained message, which may be old: publish commands without the retain flag, or set accept-retained"
                    .into(),
            ),
            Ok(command) => self.command(&command, Origin::Mqtt, message.correlation_text()),
        }
    }

    // ---- announcer thread -----------------------------------------------------------------

    /// Tells the world what has changed; returns when something is due by itself.
    fn announce(&self) -> Option<Duration> {
        let now = self.now();
        let (offline_timeout, standby) = {
            let settings = locked(&self.settings);
            (settings.offline_timeout, settings.standby)
        };
        let standby = self.real_standby(standby);
        let (changes, said, news, keyframe, due, expired) = {
            let mut control = locked(&self.control);
            let outcome = control.gate.expire(offline_timeout, now);
            let expired = control.decided(outcome, now);
            if expired {
                self.set_word(control.gate.is_open());
            }
            let changes = std::mem::take(&mut control.changes);
            let said = control.robot_state(standby.as_str(), now);
            let news = control.take_news() || !changes.is_empty();
            let keyframe = control.take_keyframe(now, KEYFRAME_INTERVAL);
            let due = control
                .gate
                .next_deadline(offline_timeout)
                .into_iter()
                .chain(control.keyframe_due(KEYFRAME_INTERVAL))
                .min();
            (changes, said, news, keyframe, due, expired)
        };
        if expired {
            self.standby.wake();
        }
        for (opening, change) in &changes {
            gst::info!(
                CAT,
                imp = self,
                "{} ({}{})",
                if change.open { "opens" } else { "closes" },
                change.cause.as_str(),
                change
                    .who
                    .as_ref()
                    .map(|who| format!(", {who}"))
                    .unwrap_or_default(),
            );
            // Nobody downstream need understand it.
            let session = if change.open {
                link::Session::Wanted(*opening)
            } else {
                link::Session::Unwanted(*opening)
            };
            let _ = self.srcpad.push_event(session.event());
        }
        if !changes.is_empty() {
            self.obj().notify("drop");
        }
        let connected = self.connected.load(Ordering::Relaxed);
        if self.connected_told.swap(connected, Ordering::Relaxed) != connected {
            self.obj().notify("connected");
        }
        self.announce_device();
        if keyframe {
            self.ask_for_key_unit();
        }
        let link = locked(&self.state)
            .as_ref()
            .and_then(|state| state.link.clone());
        if let Some(link) = link
            && let Some(said) = link.seat.say(&said)
        {
            match serde_json::to_vec(&said) {
                Ok(payload) => link.session.set_retained(&link.topics.state, payload),
                Err(err) => gst::error!(CAT, imp = self, "cannot write the state: {err}"),
            }
        }
        if news {
            let structure = gst::Structure::builder("mqttvalve-state")
                .field("state", said.state.as_str())
                .field("open", self.word.load(Ordering::Relaxed) != word::CLOSED)
                .field("cause", said.cause.as_str())
                .field(
                    "who",
                    changes.back().and_then(|(_, change)| change.who.clone()),
                )
                .field("viewers", said.viewers.len() as u32)
                .field("lease-until", &said.lease_until)
                .field("last-error", &said.last_error)
                .build();
            let message = gst::message::Element::builder(structure)
                .src(&*self.obj())
                .build();
            // Without a bus nobody listens.
            let _ = self.obj().post_message(message);
        }
        due.map(|due| due.saturating_sub(self.now()))
    }

    /// What stands by, which may be less than was asked for.
    fn real_standby(&self, asked: Standby) -> Standby {
        match asked {
            Standby::Cold if self.cold.load(Ordering::Relaxed) => Standby::Cold,
            Standby::Hot if self.media.load(Ordering::Relaxed) != media::RAW => Standby::Hot,
            _ => Standby::Warm,
        }
    }

    /// Tells Home Assistant of the device, or takes it back, as `discovery-prefix` says.
    fn announce_device(&self) {
        let prefix = locked(&self.settings).discovery_prefix.clone();
        let mut state = locked(&self.state);
        let Some(State {
            link: Some(link),
            discovery,
            ..
        }) = state.as_mut()
        else {
            return;
        };
        let again = std::mem::take(&mut discovery.again);
        let mut error = None;
        if discovery.asked != prefix {
            discovery.asked.clone_from(&prefix);
            if let Some(before) = discovery.prefix.take() {
                link.session.unsubscribe(&discovery::status_topic(&before));
                link.session
                    .set_retained(&discovery.device.config_topic(&before), "");
            }
            error = prefix
                .as_ref()
                .and_then(|prefix| discovery.device.check(prefix).err());
            if error.is_none() {
                discovery.prefix = prefix;
            }
            if let Some(prefix) = &discovery.prefix {
                link.session.subscribe(&discovery::status_topic(prefix));
            }
        } else if !again {
            return;
        }
        if let Some(prefix) = &discovery.prefix {
            let topic = discovery.device.config_topic(prefix);
            link.session
                .set_retained(&topic, discovery.device.payload());
        }
        drop(state);
        if let Some(error) = error {
            self.warn(&error);
        }
    }

    fn ask_for_key_unit(&self) {
        match self.media.load(Ordering::Relaxed) {
            media::RAW => {
                // The streaming thread sends it, in its place among the buffers.
                let _ = self.word.compare_exchange(
                    word::OPEN,
                    word::KEY_UNIT,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
            }
            media::CODED => self.ask_upstream(),
            _ => {}
        }
    }

    fn ask_upstream(&self) {
        let count = self.key_units.fetch_add(1, Ordering::Relaxed);
        if !self.sinkpad.push_event(keyunit::upstream(count)) {
            gst::debug!(
                CAT,
                imp = self,
                "nobody upstream makes key frames on request"
            );
        }
    }

    // ---- standby thread -------------------------------------------------------------------

    /// Brings what is around the valve to where the gate wants it; returns when to try again.
    fn stand_by(&self, standing: &mut Standing) -> Option<Duration> {
        let upstream = standing.upstream.as_ref();
        let retry = self.follow(upstream, &mut standing.retry);
        let tidy = self.tidy(upstream.is_some(), &mut standing.tidy);
        retry.into_iter().chain(tidy).min()
    }

    /// Gives back what a session needed, a while after its end: sooner it would be asked for
    /// again, and some of it is still in use.
    fn tidy(&self, cold: bool, tidy: &mut Tidy) -> Option<Duration> {
        let now = self.now();
        let open = self.word.load(Ordering::Acquire) != word::CLOSED;
        match *tidy {
            _ if open => *tidy = Tidy::Needed,
            Tidy::Done => {}
            Tidy::Needed => *tidy = Tidy::At(now + TIDY_AFTER),
            Tidy::At(due) if due <= now => {
                self.reset_downstream(cold);
                trim();
                *tidy = Tidy::Done;
            }
            Tidy::At(_) => {}
        }
        match *tidy {
            Tidy::At(due) => Some(due.saturating_sub(now)),
            Tidy::Done | Tidy::Needed => None,
        }
    }

    /// Lets the encoder behind the closed valve begin anew, as before the first session.
    fn reset_downstream(&self, cold: bool) {
        self.resetting.store(true, Ordering::Release);
        // Who has not seen this is through when the lock is free.
        drop(self.sinkpad.stream_lock());
        if self.word.load(Ordering::Acquire) == word::CLOSED
            && super::standby::reset(&self.srcpad)
            && !cold
        {
            // What is upstream has said it already, and will not say it again.
            self.repeat_events();
        }
        self.resetting.store(false, Ordering::Release);
        self.push_kept();
    }

    fn repeat_events(&self) {
        let mut events = Vec::new();
        self.srcpad.sticky_events_foreach(|event| {
            // A copy: the event itself counts as sent.
            events.push(event.copy());
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        for event in events {
            self.srcpad.push_event(event);
        }
    }

    /// Brings what is upstream to where the gate wants it; returns when to try again.
    fn follow(&self, upstream: Option<&Upstream>, retry: &mut Retry) -> Option<Duration> {
        if self.pending_eos.swap(false, Ordering::AcqRel) {
            self.srcpad.push_event(gst::event::Eos::new());
        }
        let Some(upstream) = upstream else {
            self.push_kept();
            return None;
        };
        // A state change that comes between is noticed by the wake that it causes.
        for _ in 0..3 {
            let open = self.word.load(Ordering::Acquire) != word::CLOSED;
            let released = self.released.load(Ordering::Relaxed);
            if !open {
                retry.reset();
            }
            if open && !self.upstream_errors.is_empty() && !released {
                return Some(self.camera_failed(upstream, retry));
            }
            if open != released {
                return None;
            }
            if open {
                // Errors of the last try wake this thread as well.
                let left = retry.at.saturating_sub(self.now());
                if !left.is_zero() {
                    return Some(left);
                }
                let target = self.target_state();
                gst::debug!(CAT, imp = self, "starting what is upstream to {target:?}");
                // What an earlier life posted says nothing about this one.
                self.upstream_errors.clear();
                self.released.store(false, Ordering::Relaxed);
                self.obj().unset_element_flags(gst::ElementFlags::SOURCE);
                match upstream.start(self.obj().upcast_ref(), target) {
                    Ok(()) => {
                        let latency = gst::message::Latency::builder().src(&*self.obj()).build();
                        let _ = self.obj().post_message(latency);
                    }
                    Err(error) => return Some(self.camera_lost(upstream, retry, error)),
                }
            } else {
                self.release(upstream);
            }
        }
        // Somebody toggles faster than the camera follows: look again after the others.
        Some(Duration::from_millis(1))
    }

    fn release(&self, upstream: &Upstream) {
        gst::debug!(CAT, imp = self, "stopping what is upstream");
        // Stopping an element whose streaming thread is below the valve would wait for it
        // while the application may wait for us: let that push return first.
        drop(self.sinkpad.stream_lock());
        upstream.stop();
        self.released.store(true, Ordering::Relaxed);
        // So that a pipeline-wide EOS reaches what is downstream while no source runs.
        self.obj().set_element_flags(gst::ElementFlags::SOURCE);
    }

    fn camera_failed(&self, upstream: &Upstream, retry: &mut Retry) -> Duration {
        let error = self
            .upstream_errors
            .first()
            .unwrap_or_else(|| "upstream failed".into());
        self.camera_lost(upstream, retry, error)
    }

    fn camera_lost(&self, upstream: &Upstream, retry: &mut Retry, error: String) -> Duration {
        // Not before: by the error the end of the failed stream, which may just be on its way, is
        // known as such.
        self.release(upstream);
        self.upstream_errors.clear();
        let wait = retry.backoff.next(jitter());
        retry.at = self.now() + wait;
        gst::warning!(
            CAT,
            imp = self,
            "camera failed, next try in {} ms: {error}",
            wait.as_millis()
        );
        {
            let mut control = locked(&self.control);
            control.fault(Some(error));
            // What comes next is a new beginning, and the end of the fault.
            self.set_word(control.gate.is_open());
        }
        self.announcer.wake();
        wait
    }

    /// The state that the valve has or is on its way to.
    fn target_state(&self) -> gst::State {
        let (_, current, pending) = self.obj().state(gst::ClockTime::ZERO);
        if pending == gst::State::VoidPending {
            current
        } else {
            pending
        }
    }

    /// What is kept goes out at the opening, without waiting for the next buffer.
    fn push_kept(&self) {
        if self.word.load(Ordering::Acquire) != word::OPENING {
            return;
        }
        let _streaming = self.sinkpad.stream_lock();
        if self.word.load(Ordering::Acquire) == word::OPENING
            && let Err(err) = self.open_stream(None)
        {
            gst::debug!(CAT, imp = self, "kept media not taken: {err}");
        }
    }

    // ---- streaming thread -----------------------------------------------------------------

    #[inline]
    fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) == word::OPEN
    }

    /// In the open valve's chain without a guard: must not panic.
    #[inline]
    fn pass(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        // Only the streaming thread writes it: no locked instruction needed.
        let passed = self.passed.load(Ordering::Relaxed);
        self.passed.store(passed + 1, Ordering::Relaxed);
        match self.srcpad.push(buffer) {
            Err(_) if self.word.load(Ordering::Relaxed) == word::CLOSED => Ok(gst::FlowSuccess::Ok),
            result => result,
        }
    }

    /// While the valve is not simply open.
    #[cold]
    fn sink_chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        match self.word.load(Ordering::Acquire) {
            word::OPENING if !self.resetting.load(Ordering::Acquire) => {
                return self.open_stream(Some(buffer));
            }
            word::CLOSED | word::OPENING => {
                self.drop_buffer();
                self.keep(buffer);
                return Ok(gst::FlowSuccess::Ok);
            }
            word::KEY_UNIT => {
                let _ = self.word.compare_exchange(
                    word::KEY_UNIT,
                    word::OPEN,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if self.media.load(Ordering::Relaxed) == media::RAW {
                    self.push_key_unit();
                }
            }
            _ => {}
        }
        self.pass(buffer)
    }

    /// Keeps of a closed stream what the next opening begins with.
    fn keep(&self, buffer: gst::Buffer) {
        let raw = self.media.load(Ordering::Relaxed) == media::RAW;
        let span = self.preroll_time.load(Ordering::Relaxed);
        let ask = if raw && !self.cold.load(Ordering::Relaxed) {
            locked(&self.kept).add(buffer, gst::ClockTime::ZERO)
        } else if !raw && span > 0 {
            locked(&self.kept).add(buffer, gst::ClockTime::from_nseconds(span))
        } else {
            false
        };
        if ask {
            self.ask_upstream();
        }
    }

    /// Begins a session with what is kept and `buffer`; not before a key frame where the stream
    /// needs one. In the stream lock.
    fn open_stream(&self, buffer: Option<gst::Buffer>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let media = self.media.load(Ordering::Relaxed);
        let (mut buffers, mut history) = locked(&self.kept).take();
        if media == media::RAW && buffer.is_some() {
            // Newer than the one that is kept.
            buffers.clear();
        }
        buffers.extend(buffer);
        if buffers.len() == 1 {
            history = gst::ClockTime::ZERO;
        }
        let Some(first) = buffers.first_mut() else {
            return Ok(gst::FlowSuccess::Ok);
        };
        if media == media::CODED && first.flags().contains(gst::BufferFlags::DELTA_UNIT) {
            self.drop_buffer();
            locked(&self.control).want_keyframe();
            self.announcer.wake();
            return Ok(gst::FlowSuccess::Ok);
        }
        if self
            .word
            .compare_exchange(
                word::OPENING,
                word::OPEN,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_err()
        {
            self.drop_buffer();
            return Ok(gst::FlowSuccess::Ok);
        }
        first.make_mut().set_flags(gst::BufferFlags::DISCONT);
        let now = self.now();
        let opening = locked(&self.control).flowing(now);
        // Elements that do not know the event ignore it.
        let _ = self
            .srcpad
            .push_event(link::Session::Begins(opening, history).event());
        self.announcer.wake();
        if media == media::RAW {
            self.push_key_unit();
        }
        for buffer in buffers {
            if self.word.load(Ordering::Relaxed) == word::CLOSED {
                self.drop_buffer();
            } else {
                self.pass(buffer)?;
            }
        }
        Ok(gst::FlowSuccess::Ok)
    }

    fn push_key_unit(&self) {
        keyunit::by_controls(&self.srcpad);
        let count = self.key_units.fetch_add(1, Ordering::Relaxed);
        let _ = self.srcpad.push_event(keyunit::downstream(count));
    }

    fn drop_buffer(&self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        self.dropped.store(dropped + 1, Ordering::Relaxed);
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        use gst::EventView;

        gst::log!(CAT, obj = pad, "{:?}", event.type_());
        let closed = self.word.load(Ordering::Acquire) == word::CLOSED;
        match event.view() {
            EventView::Caps(caps) => {
                let media = media_of(caps.caps());
                self.media.store(media, Ordering::Relaxed);
                locked(&self.kept).clear();
                if media == media::RAW && self.preroll_time.load(Ordering::Relaxed) > 0 {
                    self.warn("standby=hot keeps encoded media, and here comes raw video: warm instead. Put the valve behind the encoder");
                }
            }
            EventView::FlushStop(_) | EventView::Segment(_) => locked(&self.kept).clear(),
            // A source that fails ends its stream; ours goes on with the next try.
            EventView::Eos(_) if !self.upstream_errors.is_empty() => return false,
            EventView::Eos(_) => {}
            _ if closed && event.is_serialized() && !event.is_sticky() => return true,
            _ => {}
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    fn src_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        if let Some(publish) = link::parse_publish(&event) {
            gst::debug!(CAT, obj = pad, "the sink is {}", publish.state);
            locked(&self.control).publish(publish);
            self.announcer.wake();
            return true;
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    // ---- states ---------------------------------------------------------------------------

    /// NULL to READY: checks, reads secrets, and starts connecting without waiting for it.
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = locked(&self.settings).clone();
        let failed = |error: String| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        let config = settings.check(&self.obj().name()).map_err(failed)?;
        let io = Io::acquire().map_err(|err| failed(format!("cannot start a thread: {err}")))?;
        let topics = settings.topics();

        let now = self.now();
        let mut upstream = None;
        if settings.standby == Standby::Cold {
            match self.find_upstream() {
                Ok(found) => upstream = Some(found),
                Err(reason) => {
                    self.warn(&format!(
                        "standby=cold is not possible, warm instead: {reason}"
                    ));
                }
            }
        }
        self.cold.store(upstream.is_some(), Ordering::Relaxed);
        if upstream.is_some() {
            keep_little();
        }
        let preroll_time = match settings.standby {
            Standby::Hot => settings.preroll_time.as_nanos() as u64,
            Standby::Cold | Standby::Warm => 0,
        };
        self.preroll_time.store(preroll_time, Ordering::Relaxed);
        self.free_sinks();
        let open = {
            let mut control = locked(&self.control);
            // Leases that ran out while the element was stopped do not open it again.
            let outcome = control.gate.expire(Duration::ZERO, now);
            control.decided(outcome, now);
            control.start(now);
            let open = control.gate.is_open();
            self.set_word(open);
            open
        };
        self.released.store(false, Ordering::Relaxed);
        if let Some(upstream) = upstream.as_ref().filter(|_| !open) {
            // State changes run from sink to source: the camera is not touched at all.
            upstream.lock();
            self.released.store(true, Ordering::Relaxed);
            self.obj().set_element_flags(gst::ElementFlags::SOURCE);
        }

        let link = config.map(|config| {
            let broker = config.broker.to_string();
            let weak = self.obj().downgrade();
            let command_topic = topics.command.clone();
            let on_event = move |event| {
                if let Some(valve) = weak.upgrade() {
                    let imp = valve.imp();
                    gst::panic_to_error!(imp, (), {
                        match event {
                            Event::Message(message) if message.topic != command_topic => {
                                imp.on_home_assistant(&message);
                            }
                            event => imp.on_mqtt(event),
                        }
                    });
                }
            };
            let session = if self.resume.load(Ordering::Relaxed) {
                Session::resume(io.handle(), config, on_event)
            } else {
                Session::spawn(io.handle(), config, on_event)
            };
            session.set_retained(&topics.availability, ONLINE);
            let announcer = self.announcer.clone();
            let seat = Seat::take(&broker, &topics.state, move || announcer.wake());
            Arc::new(Link {
                session,
                seat,
                topics,
            })
        });

        self.resume.store(false, Ordering::Relaxed);
        self.started.store(true, Ordering::Relaxed);
        let timers = io.handle();
        self.announcer.start(&self.obj(), timers.clone(), |valve| {
            let imp = valve.imp();
            gst::panic_to_error!(imp, None, { imp.announce() })
        });
        let mut standing = Standing {
            upstream,
            retry: Retry::new(),
            tidy: Tidy::Done,
        };
        self.standby
            .start(&self.obj(), timers.clone(), move |valve| {
                let imp = valve.imp();
                gst::panic_to_error!(imp, None, { imp.stand_by(&mut standing) })
            });
        let discovery = Discovery {
            device: settings.device(&self.obj().name()),
            prefix: None,
            asked: None,
            again: false,
        };
        *locked(&self.state) = Some(State {
            io,
            link,
            discovery,
        });
        self.announcer.wake();
        self.standby.wake();
        Ok(())
    }

    /// Sinks that would wait for a first buffer to preroll with, before the first opening, would
    /// keep the whole pipeline from playing: live, they need none.
    fn free_sinks(&self) {
        for sink in neighbours::beyond(&self.srcpad) {
            if let Some(sink) = sink.downcast_ref::<gst_base::BaseSink>()
                && sink.is_async()
            {
                gst::info!(CAT, imp = self, "{}: async=false", sink.name());
                sink.set_async(false);
            }
        }
    }

    /// Something that does not work as it was asked for, and what is done instead.
    fn warn(&self, text: &str) {
        gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
        locked(&self.control).note(text.to_owned());
    }

    fn find_upstream(&self) -> Result<Upstream, super::standby::Ineligible> {
        // The worker's job holds what is found: weak, for the ring would end under a lock of
        // GStreamer's when a pipeline that still plays is dropped.
        let waker = Arc::downgrade(&self.standby);
        Upstream::find(&self.sinkpad, self.upstream_errors.clone(), move || {
            if let Some(waker) = waker.upgrade() {
                waker.wake();
            }
        })
    }

    /// READY to NULL: says goodbye where a broker is there, within a deadline.
    fn stop(&self) {
        let Some(state) = locked(&self.state).take() else {
            return;
        };
        let State { io, link, .. } = state;
        // The streams are down already. Nothing that was upstream may be touched from here on
        // but by the bin, which comes to it after us.
        if !self.standby.stop(JOIN_TIMEOUT) {
            gst::error!(
                CAT,
                imp = self,
                "what is upstream has not changed its state within {} ms: its thread is left behind",
                JOIN_TIMEOUT.as_millis()
            );
        }
        self.obj().unset_element_flags(gst::ElementFlags::SOURCE);
        self.announcer.stop(JOIN_TIMEOUT);
        if let Some(link) = link.and_then(Arc::into_inner) {
            let Link {
                session,
                seat,
                topics,
            } = link;
            // Others may go on on the same topics.
            let last = if seat.leave() {
                vec![
                    (topics.state, self.last_state()),
                    (topics.availability, OFFLINE.to_owned()),
                ]
            } else {
                Vec::new()
            };
            let (done, finished) = std::sync::mpsc::channel();
            io.handle().spawn(async move {
                session.stop(last).await;
                // The receiver may have given up.
                let _ = done.send(());
            });
            if finished.recv_timeout(JOIN_TIMEOUT).is_err() {
                gst::warning!(CAT, imp = self, "the MQTT session did not end in time");
            }
        }
        self.connected.store(false, Ordering::Relaxed);
        if self.connected_told.swap(false, Ordering::Relaxed) {
            self.obj().notify("connected");
        }
        locked(&self.kept).clear();
    }

    /// The state that stays on the broker after a clean end.
    fn last_state(&self) -> String {
        let standby = locked(&self.settings).standby.as_str();
        let now = self.now();
        let said = locked(&self.control).robot_state(standby, now).into_ended();
        serde_json::to_string(&said).unwrap_or_default()
    }

    /// What the state topic says, or would say; none of a valve that has never been started.
    fn state_text(&self) -> Option<String> {
        self.started.load(Ordering::Relaxed).then_some(())?;
        let standby = self.real_standby(locked(&self.settings).standby);
        let now = self.now();
        let said = locked(&self.control).robot_state(standby.as_str(), now);
        serde_json::to_string(&said).ok()
    }

    fn stats(&self) -> gst::Structure {
        let reconnects = {
            let state = locked(&self.state);
            let link = state.as_ref().and_then(|state| state.link.as_ref());
            link.map_or(0, |link| link.session.connects().saturating_sub(1))
        };
        let (opens, refused, viewers, start_latency) = {
            let control = locked(&self.control);
            let viewers = control.gate.holders().len() as u32;
            (
                control.opens(),
                control.refused(),
                viewers,
                control.start_latency().unwrap_or_default().as_nanos() as u64,
            )
        };
        gst::Structure::builder("application/x-mqttvalve-stats")
            .field("passed", self.passed.load(Ordering::Relaxed))
            .field("dropped", self.dropped.load(Ordering::Relaxed))
            .field("opens", opens)
            .field("refused-commands", refused)
            .field("reconnects", reconnects)
            .field("viewers", viewers)
            .field("start-latency", start_latency)
            .build()
    }
}

/// Gives freed memory back to the system: what encoder and camera held lies scattered over the
/// heaps of their threads.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the allocator give back what is free at the end of each of its arenas, which
/// [`trim`] does for the first one alone. By itself it keeps twice the largest block that was
/// ever freed: megabytes of pictures in each, and a camera that fails begins anew in another one.
/// It is the whole process's, so who has chosen a threshold himself keeps it.
fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 128 * 1024;
        let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
        if std::env::var_os("MALLOC_TRIM_THRESHOLD_").is_some()
            || tunables.contains("malloc.trim_threshold")
        {
            return;
        }
        // SAFETY: sets a number of the allocator's, in its own lock.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
    }
}

fn media_of(caps: &gst::CapsRef) -> u32 {
    let Some(structure) = caps.structure(0) else {
        return media::OTHER;
    };
    match structure.name().as_str() {
        "video/x-raw" | "image/jpeg" | "image/png" | "video/x-bayer" => media::RAW,
        name if name.starts_with("video/") => media::CODED,
        _ => media::OTHER,
    }
}

#[glib::object_subclass]
impl ObjectSubclass for MqttValve {
    const NAME: &'static str = "GstMqttValve";
    type Type = super::MqttValve;
    type ParentType = gst::Element;

    fn with_class(klass: &Self::Class) -> Self {
        let flags = gst::PadFlags::PROXY_CAPS | gst::PadFlags::PROXY_ALLOCATION;
        let sinkpad = gst::Pad::builder_from_template(&klass.pad_template("sink").unwrap())
            .chain_function(|_, parent, buffer| {
                // What an open valve does cannot panic: it needs no guard, which costs more.
                match parent.and_then(|parent| parent.downcast_ref::<super::MqttValve>()) {
                    Some(valve) if valve.imp().is_open() => valve.imp().pass(buffer),
                    _ => MqttValve::catch_panic_pad_function(
                        parent,
                        || Err(gst::FlowError::Error),
                        |valve| valve.sink_chain(buffer),
                    ),
                }
            })
            .event_function(|pad, parent, event| {
                MqttValve::catch_panic_pad_function(
                    parent,
                    || false,
                    |valve| valve.sink_event(pad, event),
                )
            })
            .flags(flags)
            .build();
        let srcpad = gst::Pad::builder_from_template(&klass.pad_template("src").unwrap())
            .event_function(|pad, parent, event| {
                MqttValve::catch_panic_pad_function(
                    parent,
                    || false,
                    |valve| valve.src_event(pad, event),
                )
            })
            .flags(flags)
            .build();
        MqttValve {
            sinkpad,
            srcpad,
            epoch: Instant::now(),
            settings: Mutex::default(),
            control: Mutex::default(),
            state: Mutex::default(),
            kept: Mutex::default(),
            preroll_time: AtomicU64::new(0),
            word: AtomicU32::new(word::CLOSED),
            media: AtomicU32::new(media::OTHER),
            passed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            key_units: AtomicU32::new(0),
            connected: AtomicBool::new(false),
            connected_told: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            released: AtomicBool::new(false),
            upstream_errors: Errors::default(),
            started: AtomicBool::new(false),
            resume: AtomicBool::new(false),
            resetting: AtomicBool::new(false),
            pending_eos: AtomicBool::new(false),
            announcer: Worker::new(),
            standby: Worker::new(),
        }
    }
}

impl ObjectImpl for MqttValve {
    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.add_pad(&self.sinkpad).unwrap();
        obj.add_pad(&self.srcpad).unwrap();
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
            vec![
                text_spec("broker", "Broker", "URL of the MQTT broker: mqtt://, mqtts://, ws:// or wss:// host[:port]. Credentials in it are taken out at once. Unset: no MQTT, only the drop property and the action signals"),
                glib::ParamSpecString::builder("topic")
                    .nick("Topic")
                    .blurb("Topic on which commands come; no wildcards")
                    .default_value(Some(droidrelay_wire::words::topics::DEFAULT_TOPIC))
                    .mutable_ready()
                    .build(),
                text_spec("username", "Username", "User name at the broker. Unset: none, or the one from the broker URL"),
                secret_spec("password", "Password", "Password at the broker; on a command line every user of the machine can read it, so prefer password-file"),
                text_spec("password-file", "Password File", "File whose first line is the password at the broker; read anew at each connect. Wins over password"),
                text_spec("ca-file", "CA File", "PEM file of the certificates to trust for mqtts and wss. Unset: the system's trust store"),
                text_spec("cert-file", "Certificate File", "PEM file of the client's certificate chain for mutual TLS; needs key-file"),
                text_spec("key-file", "Key File", "PEM file of the private key for cert-file"),
                text_spec("client-id", "Client ID", "MQTT client id, which names the session that the broker keeps. Unset: made of host, element name and topic. Two clients with one id throw each other out"),
                glib::ParamSpecUInt::builder("keep-alive-interval")
                    .nick("Keep Alive Interval")
                    .blurb("Seconds between pings to the broker; a dead link is noticed within two of them. At least 5")
                    .minimum(1)
                    .maximum(u16::MAX.into())
                    .default_value(DEFAULT_KEEP_ALIVE.as_secs() as u32)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoolean::builder("drop")
                    .nick("Drop")
                    .blurb("Whether buffers are dropped (closed). The local switch: false opens until it is set to true, true closes and ends all leases")
                    .default_value(true)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("standby", Standby::default())
                    .nick("Standby")
                    .blurb("What keeps running while closed. Where cold is not possible (a tee, sometimes pads, a source that is not live) it is warm, with a warning")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("preroll-time")
                    .nick("Preroll Time")
                    .blurb("With standby=hot: seconds of encoded media from before an opening that are sent first, from a key frame on (so a little more)")
                    .minimum(1)
                    .maximum(MAX_PREROLL_TIME.as_secs() as u32)
                    .default_value(DEFAULT_PREROLL_TIME.as_secs() as u32)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("lease")
                    .nick("Lease")
                    .blurb("Seconds for which a start without a lease of its own holds (0 = until stop)")
                    .default_value(DEFAULT_LEASE.as_secs() as u32)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("offline-timeout")
                    .nick("Offline Timeout")
                    .blurb("Seconds without the broker after which what was started by MQTT is closed (0 = never)")
                    .default_value(DEFAULT_OFFLINE_TIMEOUT.as_secs() as u32)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("accept-retained")
                    .nick("Accept Retained")
                    .blurb("Whether a retained command is obeyed; it may be old, so by default it is refused and logged")
                    .default_value(DEFAULT_ACCEPT_RETAINED)
                    .mutable_playing()
                    .build(),
                text_spec("state-topic", "State Topic", "Topic of the retained JSON state. Unset: the topic with /state behind it"),
                text_spec("availability-topic", "Availability Topic", "Topic of the retained online or offline. Unset: the topic with /availability behind it"),
                glib::ParamSpecString::builder("discovery-prefix")
                    .nick("Discovery Prefix")
                    .blurb("Topic prefix by which Home Assistant discovers devices, as a rule homeassistant: the robot is announced there as one device. Unset: not announced; unset while running, it is taken back")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("connected")
                    .nick("Connected")
                    .blurb("Whether the session with the broker is up")
                    .read_only()
                    .build(),
                glib::ParamSpecString::builder("state")
                    .nick("State")
                    .blurb("This valve's state as the state topic tells it, in JSON, without a broker too; element message mqttvalve-state says that it has changed. Unset before the first start")
                    .read_only()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("leases")
                    .nick("Leases")
                    .blurb("Who holds the valve open, as structure application/x-mqttvalve-leases. Setting what was read, from this valve or from one that it replaces, makes it go on: with these leases in place of its own and, if set before it starts, with the commands that the broker has kept meanwhile")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("Structure application/x-mqttvalve-stats with passed and dropped (buffers), opens, refused-commands, reconnects (counts), viewers (leases that live), start-latency (nanoseconds from the last opening to its first buffer)")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn signals() -> &'static [Signal] {
        static SIGNALS: Lazy<Vec<Signal>> = Lazy::new(|| {
            vec![
                Signal::builder("start")
                    .param_types([Option::<String>::static_type(), u32::static_type()])
                    .return_type::<bool>()
                    .action()
                    .class_handler(|args| {
                        let valve = args[0].get::<super::MqttValve>().ok()?;
                        let id = text(&args[1]);
                        let lease = args[2].get::<u32>().ok()?;
                        Some(valve.imp().local_start(id, lease).to_value())
                    })
                    .build(),
                Signal::builder("stop")
                    .param_types([Option::<String>::static_type()])
                    .return_type::<bool>()
                    .action()
                    .class_handler(|args| {
                        let valve = args[0].get::<super::MqttValve>().ok()?;
                        let id = text(&args[1]);
                        Some(valve.imp().local_stop(id).to_value())
                    })
                    .build(),
                Signal::builder("keyframe")
                    .return_type::<bool>()
                    .action()
                    .class_handler(|args| {
                        let valve = args[0].get::<super::MqttValve>().ok()?;
                        Some(valve.imp().local_keyframe().to_value())
                    })
                    .build(),
            ]
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let seconds =
            || Duration::from_secs(u64::from(value.get::<u32>().expect("checked by GObject")));
        let flag = || value.get::<bool>().expect("checked by GObject");
        let name = pspec.name();
        if !name.starts_with("password") && name != "broker" {
            gst::info!(CAT, imp = self, "{name}: {:?}", value.transform::<String>());
        }
        if name == "drop" {
            let command = if flag() {
                Command::stop()
            } else {
                Command::Start {
                    id: None,
                    lease: Some(Duration::ZERO),
                }
            };
            return self.command(&command, Origin::Local, None);
        }
        if name == "leases" {
            return match leases::read(value) {
                Ok(given) => self.take_up(given),
                Err(reason) => gst::warning!(CAT, imp = self, "leases not taken up: {reason}"),
            };
        }
        let mut settings = locked(&self.settings);
        match name {
            "broker" => {
                settings.set_broker(text(value));
                let shown = settings.broker.clone();
                drop(settings);
                gst::info!(CAT, imp = self, "broker: {shown:?}");
            }
            "topic" => {
                settings.topic = text(value)
                    .unwrap_or_else(|| droidrelay_wire::words::topics::DEFAULT_TOPIC.into());
            }
            "username" => settings.username = text(value),
            "password" => settings.password = text(value).map(Secret::new),
            "password-file" => settings.password_file = path(value),
            "ca-file" => settings.tls.ca_file = path(value),
            "cert-file" => settings.tls.cert_file = path(value),
            "key-file" => settings.tls.key_file = path(value),
            "client-id" => settings.client_id = text(value),
            "keep-alive-interval" => settings.keep_alive = seconds(),
            "standby" => settings.standby = value.get().expect("checked by GObject"),
            "preroll-time" => settings.preroll_time = seconds(),
            "lease" => settings.lease = seconds(),
            "offline-timeout" => {
                settings.offline_timeout = seconds();
                drop(settings);
                self.announcer.wake();
            }
            "accept-retained" => settings.accept_retained = flag(),
            "state-topic" => settings.state_topic = text(value).filter(|topic| !topic.is_empty()),
            "availability-topic" => {
                settings.availability_topic = text(value).filter(|topic| !topic.is_empty());
            }
            "discovery-prefix" => {
                settings.discovery_prefix = text(value).filter(|prefix| !prefix.is_empty());
                drop(settings);
                self.announcer.wake();
            }
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let seconds = |duration: Duration| (duration.as_secs() as u32).to_value();
        match pspec.name() {
            "drop" => {
                return (self.word.load(Ordering::Acquire) == word::CLOSED).to_value();
            }
            "connected" => return self.connected.load(Ordering::Relaxed).to_value(),
            "stats" => return self.stats().to_value(),
            "state" => return self.state_text().to_value(),
            "leases" => {
                let now = self.now();
                let held = locked(&self.control).gate.hand_over(now);
                return leases::write(held).to_value();
            }
            _ => {}
        }
        let settings = locked(&self.settings);
        match pspec.name() {
            "broker" => settings.broker.to_value(),
            "topic" => settings.topic.to_value(),
            "username" => settings.username.to_value(),
            "password-file" => path_value(settings.password_file.as_ref()),
            "ca-file" => path_value(settings.tls.ca_file.as_ref()),
            "cert-file" => path_value(settings.tls.cert_file.as_ref()),
            "key-file" => path_value(settings.tls.key_file.as_ref()),
            "client-id" => settings.client_id.to_value(),
            "keep-alive-interval" => seconds(settings.keep_alive),
            "standby" => settings.standby.to_value(),
            "preroll-time" => seconds(settings.preroll_time),
            "lease" => seconds(settings.lease),
            "offline-timeout" => seconds(settings.offline_timeout),
            "accept-retained" => settings.accept_retained.to_value(),
            "state-topic" => settings.topics().state.to_value(),
            "availability-topic" => settings.topics().availability.to_value(),
            "discovery-prefix" => settings.discovery_prefix.to_value(),
            name => unreachable!("GObject knows no property {name}"),
        }
    }
}

impl MqttValve {
    /// Action signal `start`; returns whether the valve is open now.
    fn local_start(&self, id: Option<String>, lease: u32) -> bool {
        let id = id.filter(|id| !id.is_empty());
        if let Some(refusal) = id.as_deref().and_then(|id| command::check_id(id).err()) {
            self.refuse(refusal.to_string());
        } else {
            let lease = (lease > 0).then(|| Duration::from_secs(lease.into()));
            self.command(&Command::Start { id, lease }, Origin::Local, None);
        }
        self.word.load(Ordering::Acquire) != word::CLOSED
    }

    /// Action signal `stop`; returns whether the valve is closed now.
    fn local_stop(&self, id: Option<String>) -> bool {
        let id = id.filter(|id| !id.is_empty());
        self.command(&Command::Stop { id }, Origin::Local, None);
        self.word.load(Ordering::Acquire) == word::CLOSED
    }

    /// Action signal `keyframe`; returns whether the valve is open, so that there will be one.
    fn local_keyframe(&self) -> bool {
        self.command(&Command::Keyframe, Origin::Local, None);
        self.word.load(Ordering::Acquire) != word::CLOSED
    }
}

impl GstObjectImpl for MqttValve {}

impl ElementImpl for MqttValve {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::with_additional(
                "MQTT valve",
                "Filter/Network",
                "Passes media while somebody asks for it over MQTT, drops it otherwise",
                env!("CARGO_PKG_REPOSITORY"),
                super::doc::DOC,
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            [
                ("sink", gst::PadDirection::Sink),
                ("src", gst::PadDirection::Src),
            ]
            .map(|(name, direction)| {
                gst::PadTemplate::new(
                    name,
                    direction,
                    gst::PadPresence::Always,
                    &gst::Caps::new_any(),
                )
                .unwrap()
            })
            .into()
        });
        &TEMPLATES
    }

    fn send_event(&self, event: gst::Event) -> bool {
        // While upstream is stopped no source can send it.
        if event.type_() == gst::EventType::Eos && self.released.load(Ordering::Relaxed) {
            // The caller holds the pipeline's state lock, and a sink that prerolls with the EOS
            // would wait for that in this very thread.
            self.pending_eos.store(true, Ordering::Release);
            self.standby.wake();
            return true;
        }
        self.parent_send_event(event)
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        gst::trace!(CAT, imp = self, "{transition:?}");
        if transition == gst::StateChange::NullToReady {
            self.start().map_err(|error| {
                self.post_error_message(error);
                gst::StateChangeError
            })?;
        }
        let success = self.parent_change_state(transition)?;
        match transition {
            gst::StateChange::ReadyToPaused => {
                self.reannounce();
                Ok(gst::StateChangeSuccess::NoPreroll)
            }
            // Closed, it delivers nothing to preroll with.
            gst::StateChange::PlayingToPaused => Ok(gst::StateChangeSuccess::NoPreroll),
            gst::StateChange::PausedToReady => {
                locked(&self.kept).clear();
                let control = locked(&self.control);
                self.set_word(control.gate.is_open());
                Ok(success)
            }
            gst::StateChange::ReadyToNull => {
                self.stop();
                Ok(success)
            }
            _ => Ok(success),
        }
    }
}

impl MqttValve {
    /// What downstream could not hear while its pads were not active.
    fn reannounce(&self) {
        let mut control = locked(&self.control);
        control.announce_again();
        drop(control);
        self.announcer.wake();
        self.standby.wake();
    }
}
