// SPDX-License-Identifier: MPL-2.0

//! Media that waits for the socket: sorted by time, bounded in time and bytes, dropped up to a key
//! frame; pure.

use std::collections::VecDeque;

pub use super::lane::{Frame, Track};
use super::lane::{Lane, Queued};

/// A track whose time goes back further than this begins anew; less is an encoder's reordering.
const JUMP: i64 = 500_000_000;
/// When one track has begun anew, the other one may go on with its old time for so long.
const GRACE: i64 = 2_000_000_000;
/// Most bytes that wait, whatever the times say.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What comes next.
#[derive(Debug)]
pub enum Next<B> {
    Frame(Frame<B>),
    /// Media of another session: the time has begun anew, or other headers are needed.
    Renew,
    /// Nothing, or it waits for the other track.
    Nothing,
}

/// The frames of both tracks, beginning with a key frame where there is video.
#[derive(Debug)]
pub struct Queue<B> {
    lanes: [Lane<B>; 2],
    /// Counts sessions' worth of media; frames of an older epoch go first.
    epoch: u64,
    /// The track and the time with which the current one has begun, unless that was a jump of time.
    epoch_start: Option<(Track, i64)>,
    /// What the session is of, once it has begun.
    open: Option<u64>,
    /// Whether the session has sent a frame.
    flowing: bool,
    /// No frame of the video but a key frame may come next.
    needs_key: bool,
    /// Video of the epoch before goes on without a gap.
    old_runs: bool,
    /// Without video, any frame may be the first.
    pub has_video: bool,
    /// The tracks come by themselves, and are sorted here.
    pub sorted: bool,
    /// Time of the frame that the current run begins with: audio from before it has no use.
    start: Option<i64>,
    /// Nanoseconds of media that may wait.
    pub max_latency: i64,
    /// Media from before the opening comes first: how much, and until which time.
    history: i64,
    history_end: Option<i64>,
    numbers: u64,
    /// The server has accepted the session.
    accepted: bool,
    /// Frames dropped since the beginning.
    pub dropped: u64,
    /// Those of them that were dropped while the session flowed.
    pub lost: u64,
}

impl<B: Clone> Queue<B> {
    /// `max_latency` in nanoseconds of media.
    pub fn new(max_latency: i64) -> Self {
        Queue {
            lanes: [Lane::default(), Lane::default()],
            epoch: 0,
            epoch_start: None,
            open: None,
            flowing: false,
            needs_key: true,
            old_runs: false,
            has_video: false,
            sorted: false,
            start: None,
            max_latency,
            history: 0,
            history_end: None,
            numbers: 0,
            accepted: false,
            dropped: 0,
            lost: 0,
        }
    }

    /// Takes a frame, or drops it; true where a key frame is needed to go on. A `lossless` one has
    /// waited until there was room, and is not dropped for want of it.
    pub fn push(&mut self, frame: Frame<B>, lossless: bool) -> bool {
        let (track, time) = (frame.track, frame.time);
        let is_video = track == Track::Video;
        let epoch = self.epoch_of(&frame);
        let other = self.lanes[track.other() as usize].newest;
        let lane = &mut self.lanes[track as usize];
        lane.ended = false;
        // Reordered frames may lack a time of decoding.
        let newest = lane.newest.filter(|(of, _)| *of == epoch);
        lane.newest = Some((epoch, newest.map_or(time, |(_, newest)| newest.max(time))));
        if let Some((other_epoch, other)) = other
            && other_epoch == epoch
        {
            lane.skew.arrived(time, other.saturating_sub(time));
        }
        let runs = epoch == self.epoch || !is_video || self.old_runs;
        if !runs || self.open.is_some_and(|open| epoch < open) {
            self.count_dropped(1);
            return false;
        }
        if epoch == self.epoch {
            if !is_video && self.start.is_some_and(|start| time < start) {
                return false;
            }
            if is_video && self.needs_key {
                // As long as it could not be sent soon, another start would be dropped too.
                let is_blocked = self.waiting() > self.limit() / 2;
                if is_blocked || !frame.key {
                    self.count_dropped(1);
                    return !is_blocked;
                }
                self.begin_run(time);
            }
        }
        if self.history > 0 {
            let end = time.saturating_add(self.history);
            self.history_end.get_or_insert(end);
        }
        self.numbers += 1;
        self.lanes[track as usize].push(Queued {
            frame,
            epoch,
            number: self.numbers,
        });
        if self.holds_audio() {
            self.prune_audio();
        }
        if self.has_room(lossless) {
            return false;
        }
        // What is too old goes, up to the newest place from which decoding can start.
        if self.keep_from_last_key() && self.has_room(false) {
            return false;
        }
        self.drop_due();
        self.has_video && self.waiting() <= self.limit() / 2
    }

    /// What is to be sent next. Sorted by time as far as the tracks' skew is known.
    pub fn pop(&mut self) -> Next<B> {
        let Some(track) = self.first() else {
            return Next::Nothing;
        };
        let lane = &mut self.lanes[track as usize];
        if self.open < lane.front().map(|queued| queued.epoch) {
            return Next::Renew;
        }
        self.flowing = true;
        let frame = lane.pop(self.accepted);
        self.forget_old();
        frame.map_or(Next::Nothing, Next::Frame)
    }

    /// What has left without having been accepted, and is too old to be sent again, is not kept: an
    /// encoder may wait for its buffers.
    fn forget_old(&mut self) {
        let limit = self.limit();
        let is_old = |lane: &Lane<B>| {
            let oldest = lane.unaccepted.front();
            let age = oldest.map(|queued| lane.newest_time().saturating_sub(queued.frame.time));
            !lane.patient && age.is_some_and(|age| age > limit)
        };
        if self.lanes.iter().any(is_old) {
            self.lanes.iter_mut().for_each(Lane::accept);
        }
    }

    /// The server has accepted the session: what has left the queue is its own.
    pub fn accepted(&mut self) {
        self.accepted = true;
        self.lanes.iter_mut().for_each(Lane::accept);
    }

    /// Whether a session can begin: with a key frame, or with audio where there is no video.
    pub fn can_open(&self) -> bool {
        self.first().is_some_and(|track| {
            let front = self.lanes[track as usize].front();
            front.is_some_and(|queued| queued.epoch == self.epoch)
        })
    }

    /// Whether what comes belongs to the session that has begun.
    pub fn is_open(&self) -> bool {
        self.open == Some(self.epoch)
    }

    /// The session has begun, with the headers of what waits.
    pub fn open(&mut self) {
        for lane in &mut self.lanes {
            lane.renewed = false;
        }
        self.open = Some(self.epoch);
    }

    /// Video does not come: what there is of audio is all.
    pub fn go_without_video(&mut self) {
        if self.has_video && self.lane(Track::Video).frames.is_empty() {
            self.has_video = false;
        }
    }

    /// Whether frames of `track` have come, or none will.
    pub fn has_come(&self, track: Track) -> bool {
        let lane = self.lane(track);
        lane.ended || lane.newest.is_some_and(|(epoch, _)| epoch == self.epoch)
    }

    /// Nanoseconds of media that wait, here and on the way. What waits for the other track does not.
    pub fn waiting(&self) -> i64 {
        let lanes = Track::ALL.map(|track| {
            let oldest = self.oldest(track);
            oldest.map_or(0, |oldest| self.due(track).saturating_sub(oldest).max(0))
        });
        lanes[0].max(lanes[1])
    }

    /// Nanoseconds of media that wait here.
    pub fn queued(&self) -> i64 {
        let lanes = Track::ALL.map(|track| {
            let front = self.lane(track).front();
            front.map_or(0, |queued| {
                self.due(track).saturating_sub(queued.frame.time).max(0)
            })
        });
        lanes[0].max(lanes[1])
    }

    /// How far behind its track's newest media a frame of `time` is that leaves now.
    pub fn behind(&self, track: Track, time: i64) -> i64 {
        self.due(track).saturating_sub(time).max(0)
    }

    /// Whether a frame of `track` that can wait must wait.
    pub fn is_full(&self, track: Track) -> bool {
        let bytes = self.lanes.iter().map(|lane| lane.bytes).sum::<usize>();
        let front = self.lane(track).front();
        let all = front.map_or(0, |queued| {
            let newest = self.lane(track).newest_time();
            newest.saturating_sub(queued.frame.time)
        });
        let limit = self.limit();
        bytes >= MAX_BYTES || self.waiting() >= limit || (self.follows(track) && all >= limit)
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.frames.is_empty())
    }

    /// Whether nothing of `track` waits, or may have to be sent once more.
    pub fn is_drained(&self, track: Track) -> bool {
        // Audio whose key frame does not come goes nowhere.
        let is_held = track == Track::Audio && self.holds_audio();
        let lane = self.lane(track);
        is_held || (lane.frames.is_empty() && lane.unaccepted.is_empty())
    }

    /// What has left the queue waits on its way from these times on.
    pub fn set_ahead(&mut self, ahead: [Option<i64>; 2]) {
        for (lane, ahead) in self.lanes.iter_mut().zip(ahead) {
            lane.ahead = ahead;
        }
    }

    /// Whether media of `track` can wait, and is not to be dropped for want of room.
    pub fn set_patient(&mut self, track: Track, patient: bool) {
        self.lanes[track as usize].patient = patient;
    }

    pub fn is_patient(&self, track: Track) -> bool {
        self.lane(track).patient
    }

    /// How much later than it is meant the media of `track` comes, as the elements upstream say.
    pub fn set_latency(&mut self, track: Track, nanoseconds: i64) {
        self.lanes[track as usize].skew.latency = nanoseconds;
    }

    pub fn latency(&self, track: Track) -> i64 {
        self.lane(track).skew.latency
    }

    /// What comes next begins with this many nanoseconds of media from before now: they may wait
    /// until they are sent, on top of the latency.
    pub fn expect_history(&mut self, nanoseconds: i64) {
        self.history = nanoseconds;
        self.history_end = None;
    }

    /// Drops all; the next frame must be a key frame.
    pub fn clear(&mut self) {
        self.lanes.iter_mut().for_each(Lane::accept);
        self.retain(|_| false);
        self.needs_key = true;
        self.old_runs = false;
        self.start = None;
    }

    /// Drops all; what comes is of another session, with another time.
    pub fn reset(&mut self) {
        self.clear();
        for lane in &mut self.lanes {
            *lane = Lane::default();
        }
        self.epoch += 1;
        self.epoch_start = None;
    }

    /// No frame of `track` comes any more: nothing waits for it, and what it has goes.
    pub fn end(&mut self, track: Track) {
        self.lanes[track as usize].ended = true;
    }

    pub fn has_ended(&self, track: Track) -> bool {
        self.lane(track).ended
    }

    /// Drops what waits of `track`; its time begins anew where `anew`.
    pub fn flush(&mut self, track: Track, anew: bool) {
        self.lanes[track as usize].flushed |= anew;
        // Nobody wants it.
        self.lanes[track as usize].accept();
        self.lanes[track as usize].retain(|_| false);
        if track == Track::Video {
            self.needs_key = true;
            self.old_runs = false;
        }
    }

    /// What comes next of `track` needs other headers.
    pub fn renew(&mut self, track: Track) {
        self.lanes[track as usize].accept();
        if self.is_open() {
            self.lanes[track as usize].renewed = true;
        } else {
            // Of the headers that were never told.
            let epoch = self.epoch;
            let dropped = self.lanes[track as usize].retain(|queued| queued.epoch < epoch);
            self.count_dropped(dropped);
            self.needs_key |= track == Track::Video;
        }
    }

    /// Makes the queue begin where a new session can: at its newest key frame, or, where `all` is
    /// to be sent or media from before the opening waits, at its oldest. What the last session has
    /// had without having been accepted waits again.
    pub fn restart(&mut self, all: bool) {
        self.accepted = false;
        self.open = None;
        self.flowing = false;
        self.set_ahead([None; 2]);
        let epoch = self.epoch;
        for lane in &mut self.lanes {
            lane.take_back(epoch);
        }
        let all = all || self.in_history();
        self.retain(|queued| queued.epoch == epoch);
        self.old_runs = false;
        if self.needs_key && self.has_video {
            return;
        }
        let kept = if all {
            self.keep_from(|frames, starts| frames.iter().position(starts))
        } else {
            self.keep_from_last_key()
        };
        if !kept {
            self.drop_due();
        }
    }

    /// Whether media from before the opening waits.
    pub fn in_history(&self) -> bool {
        let oldest = Track::ALL.map(|track| self.oldest(track));
        let oldest = oldest.into_iter().flatten().min();
        oldest
            .zip(self.history_end)
            .is_some_and(|(oldest, end)| oldest < end)
    }

    fn lane(&self, track: Track) -> &Lane<B> {
        &self.lanes[track as usize]
    }

    /// Time of the oldest frame of `track` here and on the way.
    fn oldest(&self, track: Track) -> Option<i64> {
        let lane = self.lane(track);
        let front = lane.front().map(|queued| queued.frame.time);
        lane.ahead.into_iter().chain(front).min()
    }

    fn limit(&self) -> i64 {
        let history = if self.in_history() { self.history } else { 0 };
        self.max_latency.saturating_add(history)
    }

    fn has_room(&self, lossless: bool) -> bool {
        let bytes = self.lanes.iter().map(|lane| lane.bytes).sum::<usize>();
        // One frame more than was waited for.
        bytes <= MAX_BYTES * if lossless { 2 } else { 1 }
            && (lossless || self.waiting() <= self.limit())
    }

    /// Audio waits for the key frame that is its beginning.
    fn holds_audio(&self) -> bool {
        self.has_video && self.needs_key
    }

    /// The track that is next to be sent, where that is known.
    fn first(&self) -> Option<Track> {
        let front = |track: Track| self.lane(track).front();
        let holds = self.holds_audio();
        let audio = front(Track::Audio).filter(|queued| !holds || queued.epoch < self.epoch);
        let (track, queued) = match (front(Track::Video), audio) {
            (Some(video), Some(audio)) => {
                let key = |queued: &Queued<B>| {
                    let within = if self.sorted { queued.frame.time } else { 0 };
                    let number = if self.sorted { 0 } else { queued.number };
                    (queued.epoch, within, number)
                };
                // A beginning is the key frame.
                let is_first = !self.flowing || key(video) <= key(audio);
                return Some(if is_first { Track::Video } else { Track::Audio });
            }
            (Some(video), None) => (Track::Video, video),
            (None, Some(audio)) => (Track::Audio, audio),
            (None, None) => return None,
        };
        let is_beginning = !self.flowing && (track == Track::Video || !self.has_video);
        let lane = self.lane(track);
        let is_past = lane.newest.is_some_and(|(epoch, _)| epoch > queued.epoch);
        let is_due = queued.frame.time <= self.due(track);
        (is_beginning || is_past || is_due).then_some(track)
    }

    /// Up to which time media of `track` may be sent: up to where the other track is, as long as
    /// that is not later than it usually is.
    fn due(&self, track: Track) -> i64 {
        let (lane, other) = (self.lane(track), self.lane(track.other()));
        let newest = lane.newest_time();
        if track == Track::Audio && self.holds_audio() {
            // It waits for a key frame, not for the socket.
            return i64::MIN;
        }
        let Some((epoch, time)) = other.newest.filter(|_| self.sorted) else {
            return newest;
        };
        if lane.ended || other.ended || lane.newest.is_none_or(|(own, _)| own != epoch) {
            return newest;
        }
        if self.follows(track) {
            return newest.min(time);
        }
        let patience = other.skew.patience(&lane.skew);
        newest.min(time.max(newest.saturating_sub(patience)))
    }

    /// Whether media of `track` would run ahead of live media.
    fn follows(&self, track: Track) -> bool {
        let other = self.lane(track.other());
        let is_live = !other.patient && !other.ended && other.newest.is_some();
        self.sorted && self.lane(track).patient && is_live
    }

    /// The epoch of a frame; perhaps a new one.
    fn epoch_of(&mut self, frame: &Frame<B>) -> u64 {
        let (track, time) = (frame.track, frame.time);
        let (own, other) = (track as usize, track.other() as usize);
        let lane = &mut self.lanes[own];
        let newest = lane.newest.map(|(_, newest)| newest);
        let jumps = newest.is_some_and(|newest| newest.saturating_sub(time) > JUMP);
        let flushed = std::mem::take(&mut lane.flushed) && newest.is_some();
        if jumps || flushed {
            // The same jump as the other track's.
            if lane.left_at.take().is_some() {
                return self.epoch;
            }
            self.begin_epoch(None);
            self.lanes[other].left_at = self.lanes[other].newest.map(|(_, newest)| newest);
            return self.epoch;
        }
        if let Some(left_at) = lane.left_at {
            if time.saturating_sub(left_at) < GRACE {
                return self.epoch - 1;
            }
            lane.left_at = None;
        } else if lane.renewed {
            self.begin_epoch(Some((track, time)));
            self.take_along(track.other(), time);
        } else if let Some((by, start)) = self.epoch_start
            && by != track
            && time < start
        {
            return self.epoch - 1;
        }
        self.epoch
    }

    fn begin_epoch(&mut self, start: Option<(Track, i64)>) {
        self.epoch += 1;
        self.epoch_start = start;
        self.old_runs = !std::mem::replace(&mut self.needs_key, true);
        self.start = None;
        for lane in &mut self.lanes {
            lane.renewed = false;
            lane.left_at = None;
        }
    }

    /// What there is already of `track` from `time` on belongs to the epoch that has begun with
    /// the other track; of video, from a key frame on.
    fn take_along(&mut self, track: Track, time: i64) {
        let epoch = self.epoch;
        let lane = &mut self.lanes[track as usize];
        let starts = |queued: &Queued<B>| {
            queued.frame.time >= time && (queued.frame.key || track == Track::Audio)
        };
        let Some(start) = lane.frames.iter().position(starts) else {
            return;
        };
        for queued in lane.frames.range_mut(start..) {
            queued.epoch = epoch;
        }
        if let Some(newest) = &mut lane.newest {
            newest.0 = epoch;
        }
        let start = lane.frames[start].frame.time;
        if track == Track::Video {
            self.begin_run(start);
            self.old_runs = false;
        }
    }

    /// A key frame is there to begin with.
    fn begin_run(&mut self, time: i64) {
        self.has_video = true;
        self.needs_key = false;
        self.start = Some(time);
        let epoch = self.epoch;
        self.lanes[Track::Audio as usize]
            .retain(|queued| queued.epoch < epoch || queued.frame.time >= time);
    }

    /// Of the audio that waits for a key frame, what is older than that can be has no use.
    fn prune_audio(&mut self) {
        let [video, audio] = &self.lanes;
        let patience = video.skew.patience(&audio.skew);
        let (oldest, epoch) = (audio.newest_time().saturating_sub(patience), self.epoch);
        let dropped = self.lanes[Track::Audio as usize]
            .retain(|queued| queued.epoch < epoch || queued.frame.time >= oldest);
        self.count_dropped(dropped);
    }

    /// Drops all that waits for the socket, but not what waits for the other track.
    fn drop_due(&mut self) {
        let due = self.due(Track::Audio);
        let holds = self.sorted && self.has_video;
        self.retain(|queued| {
            holds && queued.frame.track == Track::Audio && queued.frame.time > due
        });
        self.needs_key = true;
        self.old_runs = false;
        self.start = None;
    }

    fn keep_from_last_key(&mut self) -> bool {
        self.keep_from(|frames, starts| frames.iter().rposition(starts))
    }

    fn keep_from(
        &mut self,
        find: impl Fn(&VecDeque<Queued<B>>, &dyn Fn(&Queued<B>) -> bool) -> Option<usize>,
    ) -> bool {
        let (epoch, has_video) = (self.epoch, self.has_video);
        let track = if has_video {
            Track::Video
        } else {
            Track::Audio
        };
        let starts = |queued: &Queued<B>| queued.epoch == epoch && (queued.frame.key || !has_video);
        let frames = &self.lane(track).frames;
        let Some((number, time)) = find(frames, &starts)
            .map(|start| &frames[start])
            .map(|start| (start.number, start.frame.time))
        else {
            return false;
        };
        let sorted = self.sorted;
        self.retain(|queued| {
            if queued.frame.track == track || !sorted {
                queued.number >= number
            } else {
                queued.frame.time >= time
            }
        });
        self.start = Some(time);
        self.old_runs = false;
        true
    }

    fn retain(&mut self, keep: impl Fn(&Queued<B>) -> bool) {
        let dropped = self.lanes.iter_mut().map(|lane| lane.retain(&keep)).sum();
        self.count_dropped(dropped);
    }

    fn count_dropped(&mut self, frames: u64) {
        self.dropped += frames;
        if self.flowing {
            self.lost += frames;
        }
    }
}

#[cfg(test)]
mod tests;
