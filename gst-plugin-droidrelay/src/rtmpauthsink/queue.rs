// SPDX-License-Identifier: MPL-2.0

//! Media that waits for the socket: bounded in time, dropped up to a key frame; pure.

use std::collections::VecDeque;

/// Which of the session's two tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Video,
    Audio,
}

/// One access unit on its way to the server.
#[derive(Debug)]
pub struct Frame<B> {
    pub track: Track,
    /// Decoding time as running time, in nanoseconds.
    pub time: i64,
    pub key: bool,
    pub body: B,
}

/// Frames in decoding order, beginning with a key frame where there is video.
#[derive(Debug)]
pub struct Queue<B> {
    frames: VecDeque<Frame<B>>,
    /// Nothing but a key frame may come next.
    needs_key: bool,
    /// Without video, any frame may be the first.
    pub has_video: bool,
    /// Nanoseconds of media that may wait.
    pub max_latency: i64,
    /// Media from before the opening comes first: how much, and until which time.
    history: i64,
    history_end: Option<i64>,
    /// From when what has left the queue waits on its way; None where it has arrived.
    pub ahead: Option<i64>,
    /// Time of the last frame that came, taken or not.
    pub newest: i64,
    /// Frames dropped since the beginning.
    pub dropped: u64,
}

impl<B> Queue<B> {
    /// `max_latency` in nanoseconds of media.
    pub fn new(max_latency: i64) -> Self {
        Queue {
            frames: VecDeque::new(),
            needs_key: true,
            has_video: false,
            max_latency,
            history: 0,
            history_end: None,
            ahead: None,
            newest: 0,
            dropped: 0,
        }
    }

    /// Takes a frame, or drops it; true where a key frame is needed to go on.
    pub fn push(&mut self, frame: Frame<B>) -> bool {
        self.has_video |= frame.track == Track::Video;
        self.newest = frame.time;
        if self.needs_key {
            // As long as it could not be sent soon, another start would be dropped too.
            let is_blocked = self.waiting() > self.limit() / 2;
            if is_blocked || !self.may_start(&frame) {
                self.dropped += 1;
                return frame.track == Track::Video && !is_blocked;
            }
        }
        self.needs_key = false;
        if self.history > 0 {
            self.history_end.get_or_insert(frame.time + self.history);
        }
        self.frames.push_back(frame);
        if self.waiting() <= self.limit() {
            return false;
        }
        // What is too old goes, up to the newest place from which decoding can start.
        if self.keep_from_last_key() && self.waiting() <= self.limit() {
            return false;
        }
        self.clear();
        self.has_video && self.waiting() <= self.limit() / 2
    }

    /// The oldest frame.
    pub fn pop(&mut self) -> Option<Frame<B>> {
        self.frames.pop_front()
    }

    /// Nanoseconds of media that wait, here and on the way.
    pub fn waiting(&self) -> i64 {
        let oldest = self.ahead.into_iter().chain(self.oldest()).min();
        oldest.map_or(0, |oldest| (self.newest - oldest).max(0))
    }

    /// Time of the oldest frame.
    pub fn oldest(&self) -> Option<i64> {
        self.frames.front().map(|frame| frame.time)
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What comes next begins with this many nanoseconds of media from before now: they may wait
    /// until they are sent, on top of the latency.
    pub fn expect_history(&mut self, nanoseconds: i64) {
        self.history = nanoseconds;
        self.history_end = None;
    }

    /// Drops all; the next frame must be a key frame.
    pub fn clear(&mut self) {
        self.dropped += self.frames.len() as u64;
        self.frames.clear();
        self.needs_key = true;
    }

    /// Makes the queue begin where a new session can: at its newest key frame, or at the oldest
    /// of what is to be told from before the opening.
    pub fn restart(&mut self) {
        self.ahead = None;
        let kept = if self.in_history() {
            let start = self.frames.iter().position(|frame| self.may_start(frame));
            self.keep_from(start)
        } else {
            self.keep_from_last_key()
        };
        if !kept {
            self.clear();
        }
    }

    /// Whether media from before the opening waits.
    pub fn in_history(&self) -> bool {
        let oldest = self.ahead.into_iter().chain(self.oldest()).min();
        oldest
            .zip(self.history_end)
            .is_some_and(|(oldest, end)| oldest < end)
    }

    fn limit(&self) -> i64 {
        let history = if self.in_history() { self.history } else { 0 };
        self.max_latency.saturating_add(history)
    }

    fn may_start(&self, frame: &Frame<B>) -> bool {
        match frame.track {
            Track::Video => frame.key,
            Track::Audio => !self.has_video,
        }
    }

    fn keep_from_last_key(&mut self) -> bool {
        let start = self.frames.iter().rposition(|frame| self.may_start(frame));
        self.keep_from(start)
    }

    fn keep_from(&mut self, start: Option<usize>) -> bool {
        if let Some(start) = start {
            self.frames.drain(..start);
            self.dropped += start as u64;
        }
        start.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video(time: i64, key: bool) -> Frame<()> {
        Frame {
            track: Track::Video,
            time,
            key,
            body: (),
        }
    }

    fn audio(time: i64) -> Frame<()> {
        Frame {
            track: Track::Audio,
            time,
            key: true,
            body: (),
        }
    }

    fn times(queue: &mut Queue<()>) -> Vec<i64> {
        std::iter::from_fn(|| queue.pop().map(|frame| frame.time)).collect()
    }

    #[test]
    fn nothing_goes_before_the_first_key_frame() {
        let mut queue = Queue::new(100);
        assert!(queue.push(video(0, false)));
        assert!(!queue.push(video(1, true)));
        assert!(!queue.push(video(2, false)));
        assert_eq!(times(&mut queue), [1, 2]);
        assert_eq!(queue.dropped, 1);
    }

    #[test]
    fn too_much_waiting_media_is_dropped_up_to_the_newest_key_frame() {
        let mut queue = Queue::new(10);
        queue.push(video(0, true));
        queue.push(video(5, false));
        queue.push(video(8, true));
        assert!(!queue.push(video(11, false)));
        assert_eq!(times(&mut queue), [8, 11]);
    }

    #[test]
    fn without_a_newer_key_frame_all_is_dropped_and_one_is_asked_for() {
        let mut queue = Queue::new(10);
        queue.push(video(0, true));
        assert!(queue.push(video(11, false)));
        assert!(queue.is_empty());
        assert!(queue.push(video(12, false)));
        assert!(!queue.push(video(13, true)));
        assert_eq!(times(&mut queue), [13]);
        assert_eq!(queue.dropped, 3);
    }

    #[test]
    fn audio_alone_starts_anywhere_but_waits_for_the_key_frame_where_there_is_video() {
        let mut queue = Queue::new(10);
        queue.push(audio(0));
        assert_eq!(times(&mut queue), [0]);
        queue.push(video(1, true));
        queue.clear();
        queue.push(audio(2));
        assert!(queue.push(video(3, false)));
        queue.push(video(4, true));
        queue.push(audio(5));
        assert_eq!(times(&mut queue), [4, 5]);
    }

    #[test]
    fn what_waits_in_the_socket_counts_and_no_start_is_taken_until_half_of_it_has_gone() {
        let mut queue = Queue::new(10);
        queue.push(video(0, true));
        queue.pop();
        queue.ahead = Some(0);
        assert!(!queue.push(video(5, false)));
        assert!(!queue.push(video(10, false)));
        // Too much, and what has left cannot be taken back: a key frame would wait as long.
        assert!(!queue.push(video(11, false)));
        assert!(queue.is_empty());
        assert_eq!(queue.waiting(), 11);
        assert!(!queue.push(video(12, true)));
        queue.ahead = Some(9);
        assert!(queue.push(video(13, false)), "now one is asked for");
        assert!(!queue.push(video(14, true)));
        assert_eq!(times(&mut queue), [14]);
        assert_eq!(queue.dropped, 5);
    }

    #[test]
    fn what_an_old_session_left_on_its_way_is_no_burden_for_the_next() {
        let mut queue = Queue::new(10);
        queue.push(video(0, true));
        queue.pop();
        queue.ahead = Some(0);
        queue.push(video(100, false));
        queue.restart();
        assert!(!queue.push(video(101, true)));
        assert_eq!(times(&mut queue), [101]);
    }

    #[test]
    fn what_was_before_the_opening_may_wait_until_it_is_sent() {
        let mut queue = Queue::new(10);
        queue.expect_history(100);
        for time in 0..=105 {
            assert!(!queue.push(video(time, time % 20 == 0)));
        }
        queue.restart();
        assert_eq!(queue.waiting(), 105);
        for _ in 0..110 {
            queue.pop();
        }
        queue.push(video(120, true));
        assert!(queue.push(video(131, false)), "live media waits no longer");
    }

    #[test]
    fn a_new_session_begins_with_the_newest_key_frame() {
        let mut queue = Queue::new(100);
        for time in 0..6 {
            queue.push(video(time, time % 2 == 0));
        }
        queue.restart();
        assert_eq!(times(&mut queue), [4, 5]);
        queue.push(video(6, false));
        queue.restart();
        assert!(queue.is_empty());
        assert!(queue.push(video(7, false)));
    }
}
