// SPDX-License-Identifier: MPL-2.0

//! What the streaming threads, the application and the session's task share: media that
//! waits, whether a session is wanted, and what became of it.

use std::time::{Duration, Instant};

use droidrelay_wire::PublishState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::queue::{Frame, Queue, Track};
use droidrelay_rtmp::flv::{Metadata, VideoCodec};

use crate::element::link::SessionEvent;

/// During its first seconds a session asks for a key frame this often: readers attach a
/// moment after the publisher, and none of them should wait for a whole group of pictures.
const EARLY_KEY_INTERVAL: Duration = Duration::from_millis(250);
const EARLY: Duration = Duration::from_secs(2);
/// Without a valve, a session ends after this time without media.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long media waits for the second track's configuration before it goes out alone.
const TRACK_TIMEOUT: Duration = Duration::from_millis(500);

/// A message body: what the format puts in front, or all of it, and the payload without a copy.
#[derive(Default)]
pub struct Body {
    pub prefix: Vec<u8>,
    pub payload: Option<gst::MappedBuffer<gst::buffer::Readable>>,
}

impl Body {
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.prefix, self.payload.as_deref().unwrap_or_default()]
    }
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
}

pub struct MediaPublisher {
    inner: Mutex<Inner>,
    /// Wakes the session's task: media, a wish, or the end.
    pub changed: Notify,
}

struct Inner {
    running: bool,
    /// The session's task is to end once nothing is wanted.
    ended: bool,
    valves: [ValveState; 2],
    audio_expected: bool,
    headers: Headers,
    /// Counts changes of the headers: a session that began with others is replaced.
    headers_version: u64,
    queue: Queue<Body>,
    opening_deadline: Option<Instant>,
    last_media: Option<Instant>,
    published_at: Option<Instant>,
    last_key_request: Option<Instant>,
    publish: PublishState,
    stats: Stats,
}

impl MediaPublisher {
    pub fn new() -> Self {
        MediaPublisher {
            inner: Mutex::new(Inner {
                running: false,
                ended: false,
                valves: [ValveState::Unknown; 2],
                audio_expected: false,
                headers: Headers::default(),
                headers_version: 0,
                queue: Queue::new(0),
                opening_deadline: None,
                last_media: None,
                published_at: None,
                last_key_request: None,
                publish: PublishState::default(),
                stats: Stats::default(),
            }),
            changed: Notify::new(),
        }
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
        inner.queue.clear();
        inner.opening_deadline = None;
        inner.last_media = None;
        if !running {
            // Time begins anew: a session that overlooks the pause must not go on, and a valve
            // that is still there says so again.
            inner.valves = [ValveState::Unknown; 2];
            inner.headers_version += 1;
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Tells whether the element has a pad for audio: sessions wait a moment for its headers.
    pub fn expect_audio(&self, expected: bool) {
        let mut inner = self.inner.lock();
        inner.audio_expected = expected;
        if !expected {
            inner.headers.audio = None;
            inner.valves[Track::Audio as usize] = ValveState::Unknown;
        }
    }

    /// A valve upstream of `track` has spoken.
    pub fn valve(&self, track: Track, session: SessionEvent) {
        let mut inner = self.inner.lock();
        let valve = &mut inner.valves[track as usize];
        let before = std::mem::replace(valve, valve.after(session));
        let begins = *valve != before;
        // Being sticky, it may come once more.
        if let (true, SessionEvent::Begins(_, history)) = (begins, session) {
            inner.queue.expect_history(history.nseconds() as i64);
        }
        if !inner.is_wanted() {
            inner.queue.clear();
            inner.opening_deadline = None;
        }
        drop(inner);
        self.changed.notify_one();
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
        inner.running
            && matches!(
                inner.valves[track as usize],
                ValveState::Open(_) | ValveState::Unknown
            )
    }

    /// The stream of `track` ended.
    pub fn end_of_stream(&self, track: Track) {
        let mut inner = self.inner.lock();
        if inner.valves[track as usize] == ValveState::Unknown {
            inner.last_media = None;
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Changes what servers must know ahead of the media; a running session starts anew where
    /// that differs from what it has told.
    pub fn update_headers(&self, update: impl FnOnce(&mut Headers)) {
        let mut inner = self.inner.lock();
        let before = inner.headers.clone();
        update(&mut inner.headers);
        if inner.headers != before {
            inner.headers_version += 1;
            if inner.headers.video.is_some() {
                inner.queue.has_video = true;
            }
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Takes a frame; true where the encoder must be asked for a key frame.
    pub fn push(&self, frame: Frame<Body>) -> bool {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if !inner.running {
            return false;
        }
        inner.last_media = Some(now);
        inner.opening_deadline.get_or_insert(now + TRACK_TIMEOUT);
        let before = |at: Option<Instant>| at.map(|at| now.duration_since(at));
        let is_early = before(inner.published_at).is_some_and(|since| since < EARLY);
        let is_due = before(inner.last_key_request).is_none_or(|since| since >= EARLY_KEY_INTERVAL);
        // A key frame is the one that was asked for.
        let is_key = frame.key && frame.track == Track::Video;
        let needs_key = (inner.queue.push(frame) || is_early) && !is_key && is_due;
        if needs_key {
            inner.last_key_request = Some(now);
        }
        drop(inner);
        self.changed.notify_one();
        needs_key
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

    /// The headers with which a session can begin now, and their version; None while the
    /// first frame is missing, or another track's headers that may still come.
    pub fn opening(&self) -> Option<(Headers, u64)> {
        let inner = self.inner.lock();
        if inner.queue.is_empty() {
            return None;
        }
        let complete = inner.headers.video.is_some()
            && (!inner.audio_expected || inner.headers.metadata.audio_codec.is_some());
        let waited = inner
            .opening_deadline
            .is_some_and(|at| at <= Instant::now());
        (complete || waited).then(|| (inner.headers.clone(), inner.headers_version))
    }

    /// When [`MediaPublisher::opening`] stops waiting for the other track.
    pub fn opening_deadline(&self) -> Option<Instant> {
        self.inner.lock().opening_deadline
    }

    /// Whether the server must be told to expect Enhanced RTMP.
    pub fn is_hevc(&self) -> bool {
        self.inner.lock().headers.metadata.video_codec == Some(VideoCodec::Hevc)
    }

    pub fn headers_version(&self) -> u64 {
        self.inner.lock().headers_version
    }

    /// Looks at the media that waits, or changes it.
    pub fn queue<T>(&self, work: impl FnOnce(&mut Queue<Body>) -> T) -> T {
        work(&mut self.inner.lock().queue)
    }

    /// A new session begins: at a key frame, without what is older.
    pub fn restart_queue(&self) {
        let mut inner = self.inner.lock();
        inner.queue.restart();
        inner.published_at = None;
        inner.last_key_request = None;
    }

    /// The server has accepted the session, or it ended.
    pub fn set_published(&self, published: bool) {
        self.inner.lock().published_at = published.then(Instant::now);
    }

    /// Stores the state; false where nothing changed.
    pub fn set_publish_state(&self, publish: &PublishState) -> bool {
        let mut inner = self.inner.lock();
        if inner.publish == *publish {
            return false;
        }
        inner.publish = publish.clone();
        true
    }

    pub fn publish_state(&self) -> PublishState {
        self.inner.lock().publish.clone()
    }

    pub fn count(&self, update: impl FnOnce(&mut Stats)) {
        update(&mut self.inner.lock().stats);
    }

    /// Figures, dropped frames, and nanoseconds of media that wait.
    pub fn stats(&self) -> (Stats, u64, i64) {
        let inner = self.inner.lock();
        (
            inner.stats.clone(),
            inner.queue.dropped,
            inner.queue.waiting(),
        )
    }
}

impl Inner {
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
mod tests {
    use super::*;

    fn frame(time: i64, key: bool) -> Frame<Body> {
        Frame {
            track: Track::Video,
            time,
            key,
            body: Body::default(),
        }
    }

    fn running() -> MediaPublisher {
        let publisher = MediaPublisher::new();
        publisher.queue(|queue| queue.max_latency = 1_000_000_000);
        publisher.set_running(true);
        publisher
    }

    #[test]
    fn a_valve_that_is_gone_leaves_no_deaf_sink() {
        type Leave = fn(&MediaPublisher);
        let ways: [Leave; 3] = [
            |publisher| publisher.valve(Track::Video, SessionEvent::Released(3)),
            |publisher| publisher.unlinked(Track::Video),
            |publisher| {
                publisher.set_running(false);
                publisher.set_running(true);
            },
        ];
        for leave in ways {
            for last in [
                SessionEvent::Unwanted(3),
                SessionEvent::Wanted(3),
                SessionEvent::Begins(3, gst::ClockTime::ZERO),
            ] {
                let publisher = running();
                publisher.valve(Track::Video, last);
                leave(&publisher);
                assert!(!publisher.is_wanted(), "{last:?}");
                assert!(publisher.accepts(Track::Video), "{last:?}");
                publisher.push(frame(0, true));
                assert!(publisher.is_wanted(), "{last:?}");
            }
        }
    }

    #[test]
    fn without_a_valve_media_is_the_wish() {
        let publisher = running();
        assert!(!publisher.is_wanted());
        assert!(publisher.accepts(Track::Video));
        publisher.push(frame(0, true));
        assert!(publisher.is_wanted());
        assert!(publisher.idle_deadline().is_some());
        publisher.end_of_stream(Track::Video);
        assert!(!publisher.is_wanted());
    }

    #[test]
    fn with_a_valve_only_media_of_the_wanted_session_counts() {
        let publisher = running();
        publisher.valve(Track::Video, SessionEvent::Wanted(1));
        assert!(publisher.is_wanted());
        assert!(!publisher.accepts(Track::Video));
        publisher.valve(Track::Video, SessionEvent::Begins(1, gst::ClockTime::ZERO));
        assert!(publisher.accepts(Track::Video));
        publisher.push(frame(0, true));
        publisher.valve(Track::Video, SessionEvent::Unwanted(1));
        assert!(!publisher.is_wanted());
        assert!(publisher.queue(|queue| queue.is_empty()));
    }

    #[test]
    fn announcements_that_the_stream_overtook_change_nothing() {
        let publisher = running();
        publisher.valve(Track::Video, SessionEvent::Begins(5, gst::ClockTime::ZERO));
        publisher.valve(Track::Video, SessionEvent::Wanted(5));
        assert!(publisher.accepts(Track::Video));
        publisher.valve(Track::Video, SessionEvent::Unwanted(5));
        publisher.valve(Track::Video, SessionEvent::Begins(5, gst::ClockTime::ZERO));
        publisher.valve(Track::Video, SessionEvent::Wanted(5));
        assert!(!publisher.is_wanted());
        publisher.valve(Track::Video, SessionEvent::Begins(7, gst::ClockTime::ZERO));
        publisher.valve(Track::Video, SessionEvent::Wanted(6));
        publisher.valve(Track::Video, SessionEvent::Unwanted(6));
        publisher.valve(Track::Video, SessionEvent::Wanted(7));
        assert!(publisher.accepts(Track::Video));
    }

    #[test]
    fn an_early_session_asks_for_key_frames_but_not_with_every_frame() {
        let publisher = running();
        assert!(!publisher.push(frame(0, true)));
        assert!(!publisher.push(frame(1, false)));
        publisher.set_published(true);
        assert!(publisher.push(frame(2, false)));
        assert!(!publisher.push(frame(3, false)));
    }

    #[test]
    fn a_session_opens_when_the_headers_of_all_tracks_are_known() {
        let publisher = running();
        publisher.expect_audio(true);
        publisher.push(frame(0, true));
        publisher.update_headers(|headers| headers.video = Some(vec![1]));
        assert!(publisher.opening().is_none());
        publisher.update_headers(|headers| {
            headers.metadata.audio_codec = Some(droidrelay_rtmp::flv::AudioCodec::Mp3);
        });
        let (headers, version) = publisher.opening().unwrap();
        assert_eq!(headers.video, Some(vec![1]));
        assert_eq!(version, publisher.headers_version());
    }

    #[test]
    fn a_session_does_not_outlive_a_pause_that_it_has_not_seen() {
        let publisher = running();
        let version = publisher.headers_version();
        publisher.set_running(false);
        publisher.set_running(true);
        publisher.push(frame(0, true));
        assert!(publisher.is_wanted());
        assert_ne!(publisher.headers_version(), version);
    }

    #[test]
    fn nothing_is_wanted_or_taken_before_the_element_runs() {
        let publisher = MediaPublisher::new();
        publisher.valve(Track::Video, SessionEvent::Wanted(1));
        publisher.push(frame(0, true));
        assert!(!publisher.is_wanted());
        assert!(publisher.queue(|queue| queue.is_empty()));
    }
}
