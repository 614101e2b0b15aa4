// SPDX-License-Identifier: MPL-2.0

//! Frames, and those of one track that wait with what is known of its time; pure.

use std::collections::VecDeque;

use super::skew::Skew;

/// Which of the session's two tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Video,
    Audio,
}

impl Track {
    pub const ALL: [Track; 2] = [Track::Video, Track::Audio];

    pub fn other(self) -> Track {
        match self {
            Track::Video => Track::Audio,
            Track::Audio => Track::Video,
        }
    }
}

/// One access unit on its way to the server.
#[derive(Debug, Clone)]
pub struct Frame<B> {
    pub track: Track,
    /// Decoding time as running time, in nanoseconds.
    pub time: i64,
    pub key: bool,
    /// Bytes of it.
    pub size: usize,
    pub body: B,
}

#[derive(Debug, Clone)]
pub struct Queued<B> {
    pub frame: Frame<B>,
    pub epoch: u64,
    /// Frames that came before it.
    pub number: u64,
}

/// One track's frames, and what is known of its time.
#[derive(Debug)]
pub struct Lane<B> {
    pub frames: VecDeque<Queued<B>>,
    /// What has left in a session that the server has not accepted: the next one begins with it.
    pub unaccepted: VecDeque<Queued<B>>,
    /// Of both.
    pub bytes: usize,
    /// Epoch and time of the last frame that came, taken or not.
    pub newest: Option<(u64, i64)>,
    /// From when what has left the queue waits on its way; None where it has arrived.
    pub ahead: Option<i64>,
    pub skew: Skew,
    /// It can wait: it is not of a live source.
    pub patient: bool,
    /// No frame will come.
    pub ended: bool,
    /// The next frame begins a new time.
    pub flushed: bool,
    /// The next frame needs other headers than the session has told.
    pub renewed: bool,
    /// Its last time before the current epoch, where it has not begun that yet.
    pub left_at: Option<i64>,
}

impl<B> Default for Lane<B> {
    fn default() -> Self {
        Lane {
            frames: VecDeque::new(),
            unaccepted: VecDeque::new(),
            bytes: 0,
            newest: None,
            ahead: None,
            skew: Skew::default(),
            patient: false,
            ended: false,
            flushed: false,
            renewed: false,
            left_at: None,
        }
    }
}

impl<B: Clone> Lane<B> {
    pub fn front(&self) -> Option<&Queued<B>> {
        self.frames.front()
    }

    pub fn newest_time(&self) -> i64 {
        self.newest.map_or(0, |(_, time)| time)
    }

    pub fn push(&mut self, queued: Queued<B>) {
        self.bytes += queued.frame.size;
        self.frames.push_back(queued);
    }

    /// The next frame; it is kept unless the session that gets it has been `accepted`.
    pub fn pop(&mut self, accepted: bool) -> Option<Frame<B>> {
        let queued = self.frames.pop_front()?;
        if accepted {
            self.bytes -= queued.frame.size;
        } else {
            self.unaccepted.push_back(queued.clone());
        }
        Some(queued.frame)
    }

    /// What has left is not to come back.
    pub fn accept(&mut self) {
        let gone = self.unaccepted.drain(..);
        self.bytes -= gone.map(|queued| queued.frame.size).sum::<usize>();
    }

    /// What has left of `epoch` in a session that was not accepted waits again.
    pub fn take_back(&mut self, epoch: u64) {
        while let Some(queued) = self.unaccepted.pop_back() {
            if queued.epoch == epoch {
                self.frames.push_front(queued);
            } else {
                self.bytes -= queued.frame.size;
            }
        }
    }

    /// Drops the frames that are not to be kept; how many.
    pub fn retain(&mut self, keep: impl Fn(&Queued<B>) -> bool) -> u64 {
        let before = self.frames.len();
        self.frames.retain(keep);
        let held = self.frames.iter().chain(&self.unaccepted);
        self.bytes = held.map(|queued| queued.frame.size).sum();
        (before - self.frames.len()) as u64
    }
}
