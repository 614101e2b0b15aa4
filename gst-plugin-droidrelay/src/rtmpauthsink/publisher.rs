// SPDX-License-Identifier: MPL-2.0

//! What the streaming threads, the application and the session's task share: media that
//! waits, whether a session is wanted, and what became of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use droidrelay_wire::{PublishState, words::state::PublishPhase};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::queue::{Frame, Next, Queue, Track};
use droidrelay_rtmp::flv::{Metadata, VideoCodec};

use crate::element::link::{self, SessionEvent};

/// During its first seconds a session asks for a key frame this often: readers attach a
/// moment after the publisher, and none of them should wait for a whole group of pictures.
const EARLY_KEY_INTERVAL: Duration = Duration::from_millis(250);
const EARLY: Duration = Duration::from_secs(2);
/// Without a valve, a session ends after this time without media.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long media waits for the second track before it goes out alone, beyond what the elements
/// of that track say that it is late.
const TRACK_TIMEOUT: Duration = Duration::from_millis(500);
/// The same where a valve has said that media of that track is wanted: it is on its way, behind a
/// device and an encoder that start.
const WANTED_TRACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest latency of an encoder that a session waits for, in nanoseconds.
const MOST_LATENCY: i64 = 30_000_000_000;
/// A thread that waits for room looks again after this time at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A message body: what the format puts in front, or all of it, and the payload without a copy.
#[derive(Default, Clone)]
pub struct Body {
    pub prefix: Vec<u8>,
    pub payload: Option<Arc<gst::MappedBuffer<gst::buffer::Readable>>>,
}

impl Body {
    pub fn parts(&self) -> [&[u8]; 2] {
        let payload = self.payload.as_ref().map(|payload| payload.as_slice());
        [&self.prefix, payload.unwrap_or_default()]
    }

    pub fn size(&self) -> usize {
        self.parts().map(<[u8]>::len).iter().sum()
    }
}

/// What a streaming thread is to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It can wait and has waited: it will be sent.
    Lossless,
    /// It is live, or the server is away: it may be dropped.
    Lossy,
    /// Told to wait no longer before there was room.
    Interrupted,
}

/// What has become of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// The encoder must be asked for a key frame.
    pub needs_key: bool,
    /// For the first time in this session media is lost.
    pub first_loss: bool,
}

/// What a server must know of the tracks before their first frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Headers {
    pub metadata: Metadata,
    /// Complete message body of the video sequence header.
    pub video: Option<Vec<u8>>,
    /// Complete message body of the audio sequence header, where the codec has one.
    pub audio: Option<Vec<u8>>,
}

impl Headers {
    /// Every track is announced by a sequence header of its own (MP3 has none).
    pub fn announce_all(&self) -> bool {
        self.video.is_some() && (self.metadata.audio_codec.is_none() || self.audio.is_some())
    }
}

/// What a valve upstream of one pad has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValveState {
    /// No valve spoke: a session is wanted while media comes.
    Unknown,
    /// The session of this opening is wanted, its media has not begun.
    Opening(u64),
    /// What comes is media of the session of this opening.
    Open(u64),
    /// The session of this opening was the last one.
    Closed(u64),
}

impl ValveState {
    fn opening(self) -> u64 {
        match self {
            ValveState::Unknown => 0,
            ValveState::Opening(opening)
            | ValveState::Open(opening)
            | ValveState::Closed(opening) => opening,
        }
    }

    /// After what a valve said. What it said of an opening that has ended, or of an older one
    /// than ours, comes late; of ours, the stream may tell before the announcement.
    fn after(self, session: SessionEvent) -> Self {
        match session {
            SessionEvent::Wanted(opening) if opening > self.opening() => {
                ValveState::Opening(opening)
            }
            SessionEvent::Begins(opening, _)
                if opening > self.opening() || self == ValveState::Opening(opening) =>
            {
                ValveState::Open(opening)
            }
            SessionEvent::Unwanted(opening) if opening >= self.opening() => {
                ValveState::Closed(opening)
            }
            SessionEvent::Released(opening) if opening >= self.opening() => ValveState::Unknown,
            _ => self,
        }
    }
}

/// Figures for the `stats` property.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub sessions: u64,
    pub reconnects: u64,
    pub frames: u64,
    pub bytes: u64,
    pub acknowledged: u64,
    /// Bits per second that the server took over the last seconds.
    pub bitrate: u64,
    /// Bits per second that the encoder is told to make; None where it is left alone.
    pub target_bitrate: Option<u64>,
    pub last_error: Option<String>,
    /// Frames dropped, and those of them that were dropped in a session.
    pub dropped: u64,
    pub lost: u64,
    /// Nanoseconds of media that wait.
    pub waiting: i64,
}

pub struct MediaPublisher {
    inner: Mutex<Inner>,
    /// Wakes the session's task: media, a wish, or the end.
    pub changed: Notify,
    /// Wakes streaming threads that wait for room, or for the end of what waits.
    room: Condvar,
    /// Wakes the session's task where it waits for the next try: somebody asks for it now.
    pub retry: Notify,
}

struct Inner {
    running: bool,
    /// The session's task is to end once nothing is wanted.
    ended: bool,
    valves: [ValveState; 2],
    /// Whether somebody is linked to the pad.
    expected: [bool; 2],
    headers: Headers,
    queue: Queue<Body>,
    /// What came first since a session is wanted.
    first_media: Option<Instant>,
    /// Media of a source that is not live goes at the pace of the clock, not of the server.
    sync: bool,
    /// The streaming thread of a track is to wait for nothing.
    interrupted: [bool; 2],
    /// A track has ended and its thread waits until all has been sent.
    draining: bool,
    /// Something has left the queue that the server's kernel has not.
    in_flight: bool,
    /// Of this session it has been said that media is lost.
    loss_is_known: bool,
    last_media: Option<Instant>,
    published_at: Option<Instant>,
    last_key_request: Option<Instant>,
    publish: PublishState,
    /// When it became that.
    publish_since: Instant,
    stats: Stats,
}

impl MediaPublisher {
    pub fn new() -> Self {
        MediaPublisher {
            inner: Mutex::new(Inner {
                running: false,
                ended: false,
                valves: [ValveState::Unknown; 2],
                expected: [false; 2],
                headers: Headers::default(),
                queue: Queue::new(0),
                first_media: None,
                sync: true,
                interrupted: [false; 2],
                draining: false,
                in_flight: false,
                loss_is_known: false,
                last_media: None,
                published_at: None,
                last_key_request: None,
                publish: PublishState::default(),
                publish_since: Instant::now(),
                stats: Stats::default(),
            }),
            changed: Notify::new(),
            room: Condvar::new(),
            retry: Notify::new(),
        }
    }

    /// Something has changed for whoever waits.
    fn wake(&self) {
        self.changed.notify_one();
        self.room.notify_all();
    }

    // ---- from the element -----------------------------------------------------------------

    /// The session's task starts.
    pub fn begin(&self) {
        self.inner.lock().ended = false;
    }

    /// Nothing is wanted any more, and the session's task ends when it has said so.
    pub fn end(&self) {
        self.inner.lock().ended = true;
        self.set_running(false);
    }

    pub fn has_ended(&self) -> bool {
        self.inner.lock().ended
    }

    /// Between READY and NULL nothing is wanted.
    pub fn set_running(&self, running: bool) {
        let mut inner = self.inner.lock();
        inner.running = running;
        // Time begins anew: a session that overlooks the pause must not go on.
        inner.queue.reset();
        inner.expect_again();
        inner.last_media = None;
        if !running {
            // A valve that is still there says so again.
            inner.valves = [ValveState::Unknown; 2];
        }
        drop(inner);
        self.wake();
    }

    /// Whether somebody is linked to the pad of `track`: sessions wait a moment for its media.
    pub fn expect(&self, track: Track, expected: bool) {
        let mut inner = self.inner.lock();
        inner.expected[track as usize] = expected;
        match track {
            Track::Video => inner.queue.has_video |= expected,
            Track::Audio => {
                inner.queue.sorted = expected;
                if !expected {
                    inner.headers.audio = None;
                    inner.valves[Track::Audio as usize] = ValveState::Unknown;
                    inner.queue.end(Track::Audio);
                }
            }
        }
    }

    /// Media of a source that is not live is sent at its own pace, not as fast as it goes.
    pub fn set_sync(&self, sync: bool) {
        self.inner.lock().sync = sync;
        self.wake();
    }

    /// What the elements upstream of `track` say of themselves.
    pub fn set_upstream(&self, track: Track, is_live: bool, latency: Duration) {
        let latency = i64::try_from(latency.as_nanos()).unwrap_or(i64::MAX);
        let mut inner = self.inner.lock();
        inner.queue.set_patient(track, !is_live);
        inner.queue.set_latency(track, latency);
        if track == Track::Video && !inner.expected[Track::Audio as usize] {
            // Both may come here, in FLV.
            inner.queue.set_patient(Track::Audio, !is_live);
        }
        drop(inner);
        self.wake();
    }

    pub fn is_patient(&self, track: Track) -> bool {
        self.inner.lock().queue.is_patient(track)
    }

    /// The other track than `track`, where a session waits for it.
    pub fn waits_for_other(&self, track: Track) -> Option<Track> {
        let (inner, other) = (self.inner.lock(), track.other());
        let waits = inner.expected[other as usize]
            && !inner.queue.is_open()
            && !inner.queue.has_come(other);
        waits.then_some(other)
    }

    /// A valve upstream of `track` has spoken.
    pub fn valve(&self, track: Track, session: SessionEvent) {
        let mut inner = self.inner.lock();
        let valve = &mut inner.valves[track as usize];
        let before = std::mem::replace(valve, valve.after(session));
        let begins = *valve != before;
        // Of a session that is wanted already, it asks for the next try.
        let again = before == ValveState::Opening(before.opening())
            || before == ValveState::Open(before.opening());
        if again && session == SessionEvent::Wanted(before.opening()) {
            self.retry.notify_waiters();
        }
        // Being sticky, it may come once more.
        if let (true, SessionEvent::Begins(_, history)) = (begins, session) {
            let history = i64::try_from(history.nseconds()).unwrap_or(i64::MAX);
            inner.queue.expect_history(history);
        }
        if !inner.is_wanted() {
            inner.queue.clear();
            inner.expect_again();
        }
        drop(inner);
        self.wake();
    }

    /// What was upstream of `track` is not any more.
    pub fn unlinked(&self, track: Track) {
        let mut inner = self.inner.lock();
        inner.valves[track as usize] = ValveState::Unknown;
        drop(inner);
        self.changed.notify_one();
    }

    /// Whether media on `track` has a use: otherwise it need not even be parsed.
    pub fn accepts(&self, track: Track) -> bool {
        let inner = self.inner.lock();
        inner.running && inner.is_open(track)
    }

    /// Holds the thread of a track that is not live until a frame has room. While the server is
    /// away its media is dropped as that of a live one, at the pace of the clock; without that
    /// pace it waits for the server.
    pub fn wait_for_room(&self, track: Track) -> Room {
        let mut inner = self.inner.lock();
        loop {
            let can_wait = inner.running
                && inner.is_open(track)
                && inner.queue.is_patient(track)
                && !(inner.sync && inner.is_server_away());
            if !can_wait {
                return Room::Lossy;
            }
            if !inner.queue.is_full(track) {
                return Room::Lossless;
            }
            if inner.interrupted[track as usize] {
                return Room::Interrupted;
            }
            // There is media, it only waits.
            inner.last_media = Some(Instant::now());
            self.room.wait_for(&mut inner, LOOK_AGAIN);
        }
    }

    /// The thread of `track` is to wait for nothing, or may wait again.
    pub fn interrupt(&self, track: Track, interrupted: bool) {
        self.inner.lock().interrupted[track as usize] = interrupted;
        self.room.notify_all();
    }

    /// The stream of `track` ended: waits until what there is of it has been sent, for live media
    /// not longer than `live`, else than `patience`.
    pub fn drain(&self, track: Track, live: Duration, patience: Duration) {
        let mut inner = self.inner.lock();
        inner.queue.end(track);
        inner.draining = true;
        if inner.last_media.is_some() {
            inner.last_media = Some(Instant::now());
        }
        let deadline = Instant::now()
            + if inner.queue.is_patient(track) {
                patience
            } else {
                live
            };
        self.changed.notify_one();
        while inner.is_wanted()
            && !inner.is_server_away()
            && !inner.interrupted[track as usize]
            && (inner.in_flight || !inner.queue.is_drained(track))
            && !self.room.wait_until(&mut inner, deadline).timed_out()
        {}
        inner.draining = false;
        // With all that has come, the wish ends.
        let has_ended = Track::ALL
            .iter()
            .all(|track| inner.queue.has_ended(*track) || !inner.expected[*track as usize]);
        if has_ended && inner.valves[track as usize] == ValveState::Unknown {
            inner.last_media = None;
        }
        drop(inner);
        self.wake();
    }

    /// Of `track`, what waits is not wanted; its time begins anew where `anew`.
    pub fn flush(&self, track: Track, anew: bool) {
        self.inner.lock().queue.flush(track, anew);
        self.wake();
    }

    /// Changes what servers must know of `track` ahead of its media; a running session is followed
    /// by another one where that differs from what it has told.
    pub fn update_headers(&self, track: Track, update: impl FnOnce(&mut Headers)) {
        let mut inner = self.inner.lock();
        let before = inner.headers.clone();
        update(&mut inner.headers);
        if inner.headers != before {
            let told = match track {
                Track::Video => before.metadata.video_codec.is_some(),
                Track::Audio => before.metadata.audio_codec.is_some(),
            };
            if told || inner.queue.is_open() {
                inner.queue.renew(track);
            }
            inner.queue.has_video |= inner.headers.video.is_some();
            drop(inner);
            self.wake();
        }
    }

    /// Takes a frame that has had its `room`.
    pub fn push(&self, frame: Frame<Body>, room: Room) -> Pushed {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if !inner.running {
            return Pushed::default();
        }
        inner.last_media = Some(now);
        inner.first_media.get_or_insert(now);
        let before = |at: Option<Instant>| at.map(|at| now.duration_since(at));
        let is_early = before(inner.published_at).is_some_and(|since| since < EARLY);
        let is_due = before(inner.last_key_request).is_none_or(|since| since >= EARLY_KEY_INTERVAL);
        // A key frame is the one that was asked for.
        let is_key = frame.key && frame.track == Track::Video;
        let lost = inner.queue.lost;
        let is_needed = inner.queue.push(frame, room == Room::Lossless);
        let needs_key = (is_needed || is_early) && !is_key && is_due;
        if needs_key {
            inner.last_key_request = Some(now);
        }
        let is_loss = inner.queue.lost > lost && inner.published_at.is_some();
        let first_loss = is_loss && !std::mem::replace(&mut inner.loss_is_known, true);
        drop(inner);
        self.changed.notify_one();
        Pushed {
            needs_key,
            first_loss,
        }
    }

    // ---- from the session's task ----------------------------------------------------------

    pub fn is_wanted(&self) -> bool {
        self.inner.lock().is_wanted()
    }

    /// When a session that only media asks for ends, if none comes.
    pub fn idle_deadline(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        inner
            .last_media
            .filter(|_| !inner.is_wanted_by_valve())
            .map(|at| at + IDLE_TIMEOUT)
    }

    /// Begins a session with these headers; None while the first frame is missing, or another
    /// track that may still come.
    pub fn open(&self) -> Option<Headers> {
        let mut inner = self.inner.lock();
        let waited = inner
            .opening_deadline()
            .is_some_and(|at| at <= Instant::now());
        if waited {
            inner.queue.go_without_video();
        }
        if !inner.queue.can_open() || !(waited || inner.is_complete()) {
            return None;
        }
        inner.queue.open();
        Some(inner.headers.clone())
    }

    /// When [`MediaPublisher::open`] stops waiting for the other track.
    pub fn opening_deadline(&self) -> Option<Instant> {
        self.inner.lock().opening_deadline()
    }

    /// Whether the server must be told to expect Enhanced RTMP.
    pub fn is_hevc(&self) -> bool {
        self.inner.lock().headers.metadata.video_codec == Some(VideoCodec::Hevc)
    }

    /// Looks at the media that waits, or changes it.
    pub fn queue<T>(&self, work: impl FnOnce(&mut Queue<Body>) -> T) -> T {
        work(&mut self.inner.lock().queue)
    }

    /// What is to be sent next, and how far it is behind the newest media of its track.
    pub fn next(&self) -> (Next<Body>, Duration) {
        let mut inner = self.inner.lock();
        let next = inner.queue.pop();
        let mut behind = 0;
        if let Next::Frame(frame) = &next {
            behind = inner.queue.behind(frame.track, frame.time);
            inner.in_flight = true;
        }
        drop(inner);
        self.room.notify_all();
        let behind = Duration::from_nanos(behind.try_into().unwrap_or_default());
        (next, behind)
    }

    /// Whether the server's kernel lacks something that has left the queue. True where somebody
    /// waits for that to end.
    pub fn set_in_flight(&self, in_flight: bool) -> bool {
        let mut inner = self.inner.lock();
        inner.in_flight = in_flight;
        let draining = inner.draining;
        drop(inner);
        if draining {
            self.room.notify_all();
        }
        draining && in_flight
    }

    /// A new session begins: at a key frame, without what is older, unless that can wait.
    pub fn restart_queue(&self) {
        let mut inner = self.inner.lock();
        let patient = Track::ALL.map(|track| inner.queue.is_patient(track));
        inner.queue.restart(patient.contains(&true));
        inner.in_flight = false;
        inner.published_at = None;
        inner.loss_is_known = false;
        inner.last_key_request = None;
    }

    /// The server has accepted the session, or it ended.
    pub fn set_published(&self, published: bool) {
        let mut inner = self.inner.lock();
        inner.published_at = published.then(Instant::now);
        if published {
            inner.queue.accepted();
        }
        drop(inner);
        self.room.notify_all();
    }

    /// Stores the state; false where nothing changed.
    pub fn set_publish_state(&self, publish: &PublishState) -> bool {
        let mut inner = self.inner.lock();
        if inner.publish == *publish {
            return false;
        }
        inner.publish = publish.clone();
        inner.publish_since = Instant::now();
        drop(inner);
        self.room.notify_all();
        true
    }

    /// The state as it is now: the next try has come nearer.
    pub fn publish_state(&self) -> PublishState {
        let inner = self.inner.lock();
        let mut publish = inner.publish.clone();
        link::pass(&mut publish, inner.publish_since.elapsed());
        publish
    }

    pub fn count(&self, update: impl FnOnce(&mut Stats)) {
        update(&mut self.inner.lock().stats);
    }

    pub fn stats(&self) -> Stats {
        let inner = self.inner.lock();
        Stats {
            dropped: inner.queue.dropped,
            lost: inner.queue.lost,
            waiting: inner.queue.waiting(),
            ..inner.stats.clone()
        }
    }
}

impl Inner {
    /// Media of `track` belongs to the session.
    fn is_open(&self, track: Track) -> bool {
        matches!(
            self.valves[track as usize],
            ValveState::Open(_) | ValveState::Unknown
        )
    }

    fn is_server_away(&self) -> bool {
        let phase = &self.publish.state;
        matches!(phase, PublishPhase::Backoff | PublishPhase::Refused)
    }

    /// All tracks that are expected have come, with their headers.
    fn is_complete(&self) -> bool {
        let has = |track, header: bool| {
            let has_come = header && self.queue.has_come(track);
            has_come || self.queue.has_ended(track) || !self.expected[track as usize]
        };
        has(Track::Video, self.headers.video.is_some())
            && has(Track::Audio, self.headers.metadata.audio_codec.is_some())
    }

    fn opening_deadline(&self) -> Option<Instant> {
        let is_missing =
            |track: Track| self.expected[track as usize] && !self.queue.has_come(track);
        let waits = Track::ALL
            .into_iter()
            .filter(|track| is_missing(*track))
            .map(|track| {
                let latency = self.queue.latency(track).clamp(0, MOST_LATENCY);
                let timeout = match self.valves[track as usize] {
                    ValveState::Opening(_) | ValveState::Open(_) => WANTED_TRACK_TIMEOUT,
                    ValveState::Unknown | ValveState::Closed(_) => TRACK_TIMEOUT,
                };
                timeout + Duration::from_nanos(latency as u64)
            });
        let wait = waits.max().unwrap_or(TRACK_TIMEOUT);
        Some(self.first_media? + wait)
    }

    /// The next session waits for all tracks again.
    fn expect_again(&mut self) {
        self.first_media = None;
        self.queue.has_video = self.expected[Track::Video as usize] || self.headers.video.is_some();
    }

    fn is_wanted_by_valve(&self) -> bool {
        let mut valves = self.valves.iter();
        valves.any(|valve| matches!(valve, ValveState::Opening(_) | ValveState::Open(_)))
    }

    fn is_wanted(&self) -> bool {
        let has_media = || {
            self.last_media
                .is_some_and(|at| at.elapsed() < IDLE_TIMEOUT)
        };
        let no_valve = self.valves == [ValveState::Unknown; 2];
        self.running && (self.is_wanted_by_valve() || (no_valve && has_media()))
    }
}

#[cfg(test)]
mod tests;
