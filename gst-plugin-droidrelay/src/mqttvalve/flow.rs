// SPDX-License-Identifier: MPL-2.0

//! The data path: pads, the one atomic word that lets buffers through, and what a closed valve
//! keeps for the next opening.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use gst::prelude::*;
use parking_lot::Mutex;

use super::kept::{Keep, Kept};
use crate::element::{keyunit, link};

/// Values of the word. Commands set `CLOSED` and `OPENING`, in the gate's order; the streaming
/// thread makes `OPEN` of `OPENING` and `KEY_UNIT`; who wants a key frame makes `KEY_UNIT` of
/// `OPEN`.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Media {
    /// Raw or intra-only video: any frame may be the first; the encoder is downstream.
    Raw,
    /// Delta-coded: a key frame must be the first; the encoder is upstream.
    Coded,
    /// Audio and others: nothing to ask for.
    Other,
}

impl Media {
    fn of(caps: &gst::CapsRef) -> Self {
        match caps.structure(0).map(|structure| structure.name().as_str()) {
            Some("video/x-raw" | "image/jpeg" | "image/png" | "video/x-bayer") => Media::Raw,
            Some(name) if name.starts_with("video/") => Media::Coded,
            _ => Media::Other,
        }
    }
}

/// What the data path has to do with the rest of the valve.
pub trait Host {
    /// The first buffer since the opening is about to pass; gives the opening's number.
    fn begins(&self) -> u64;
    /// No session can begin before a key frame comes.
    fn want_keyframe(&self);
}

pub struct Flow {
    pub sinkpad: gst::Pad,
    pub srcpad: gst::Pad,
    word: AtomicU32,
    /// A [`Media`].
    media: AtomicU8,
    passed: AtomicU64,
    dropped: AtomicU64,
    key_units: AtomicU32,
    /// The elements behind the valve cannot take anything now.
    held_back: AtomicBool,
    kept: Mutex<Kept>,
}

impl Flow {
    pub fn new(sinkpad: gst::Pad, srcpad: gst::Pad) -> Self {
        Flow {
            sinkpad,
            srcpad,
            word: AtomicU32::new(word::CLOSED),
            media: AtomicU8::new(Media::Other as u8),
            passed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            key_units: AtomicU32::new(0),
            held_back: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    /// Whether buffers simply go through.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) == word::OPEN
    }

    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) == word::CLOSED
    }

    /// Opens a new session, or closes. Called under the gate's lock, to follow its order.
    pub fn set(&self, open: bool) {
        let word = if open { word::OPENING } else { word::CLOSED };
        self.word.store(word, Ordering::Release);
    }

    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub fn is_raw(&self) -> bool {
        self.media.load(Ordering::Relaxed) == Media::Raw as u8
    }

    fn is_coded(&self) -> bool {
        self.media.load(Ordering::Relaxed) == Media::Coded as u8
    }

    /// What a closed valve keeps from now on.
    pub fn set_keep(&self, keep: Keep) {
        let mut kept = self.kept.lock();
        if kept.keep != keep {
            kept.keep = keep;
            let forgotten = kept.clear();
            drop(kept);
            drop(forgotten);
        }
    }

    /// Forgets what is kept.
    pub fn forget(&self) {
        let forgotten = self.kept.lock().clear();
        drop(forgotten);
    }

    /// Another kind of media comes. False where it cannot be kept as it should be.
    pub fn set_caps(&self, caps: &gst::CapsRef) -> bool {
        self.media.store(Media::of(caps) as u8, Ordering::Relaxed);
        self.forget();
        let keep = self.kept.lock().keep;
        !(self.is_raw() && matches!(keep, Keep::Last(_)))
    }

    /// In the open valve's chain without a guard: must not panic.
    #[inline]
    pub fn pass(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
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
    pub fn chain(
        &self,
        host: &impl Host,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        match self.word.load(Ordering::Acquire) {
            word::OPENING if !self.held_back.load(Ordering::Acquire) => {
                return self.begin(host, Some(buffer));
            }
            word::CLOSED | word::OPENING => {
                self.count_dropped();
                self.keep(buffer);
                return Ok(gst::FlowSuccess::Ok);
            }
            word::KEY_UNIT => {
                self.exchange(word::KEY_UNIT, word::OPEN);
                if self.is_raw() {
                    self.push_key_unit();
                }
            }
            _ => {}
        }
        self.pass(buffer)
    }

    /// Keeps of a closed stream what the next opening begins with.
    fn keep(&self, buffer: gst::Buffer) {
        let mut kept = self.kept.lock();
        let span = match (kept.keep, self.is_raw()) {
            (Keep::Newest | Keep::Last(_), true) => gst::ClockTime::ZERO,
            (Keep::Last(span), false) => span,
            (Keep::Nothing, _) | (Keep::Newest, false) => return,
        };
        let key_unit_needed = kept.add(buffer, span);
        drop(kept);
        if key_unit_needed {
            self.ask_upstream();
        }
    }

    /// Begins a session with what is kept and `buffer`; not before a key frame where the stream
    /// needs one. In the stream lock.
    fn begin(
        &self,
        host: &impl Host,
        buffer: Option<gst::Buffer>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (mut buffers, mut history) = self.kept.lock().take();
        if self.is_raw() && buffer.is_some() {
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
        if self.is_coded() && first.flags().contains(gst::BufferFlags::DELTA_UNIT) {
            self.count_dropped();
            host.want_keyframe();
            return Ok(gst::FlowSuccess::Ok);
        }
        if !self.exchange(word::OPENING, word::OPEN) {
            self.count_dropped();
            return Ok(gst::FlowSuccess::Ok);
        }
        first.make_mut().set_flags(gst::BufferFlags::DISCONT);
        let begins = link::SessionEvent::Begins(host.begins(), history);
        // Elements that do not know the event ignore it.
        let _ = self.srcpad.push_event(begins.event());
        if self.is_raw() {
            self.push_key_unit();
        }
        for buffer in buffers {
            if self.word.load(Ordering::Relaxed) == word::CLOSED {
                self.count_dropped();
            } else {
                self.pass(buffer)?;
            }
        }
        Ok(gst::FlowSuccess::Ok)
    }

    /// What is kept goes out at the opening, without waiting for the next buffer.
    pub fn begin_with_kept(&self, host: &impl Host) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.word.load(Ordering::Acquire) == word::OPENING {
            let _streaming = self.sinkpad.stream_lock();
            if self.word.load(Ordering::Acquire) == word::OPENING {
                return self.begin(host, None);
            }
        }
        Ok(gst::FlowSuccess::Ok)
    }

    /// Lets `work` change what is behind the valve, if it is closed: nothing comes from it
    /// meanwhile.
    pub fn while_closed(&self, work: impl FnOnce()) {
        self.held_back.store(true, Ordering::Release);
        // Who has not seen this is through when the lock is free.
        drop(self.sinkpad.stream_lock());
        if self.is_closed() {
            work();
        }
        self.held_back.store(false, Ordering::Release);
    }

    /// Sends the sticky events once more, for elements that have lost them.
    pub fn repeat_events(&self) {
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

    /// Asks the encoder, wherever it is, for a key frame.
    pub fn ask_for_key_unit(&self) {
        if self.is_raw() {
            // The streaming thread sends it, in its place among the buffers.
            self.exchange(word::OPEN, word::KEY_UNIT);
        } else if self.is_coded() {
            self.ask_upstream();
        }
    }

    fn ask_upstream(&self) {
        let count = self.key_units.fetch_add(1, Ordering::Relaxed);
        // Where nobody upstream makes key frames on request, the next one comes by itself.
        let _ = self.sinkpad.push_event(keyunit::upstream(count));
    }

    fn push_key_unit(&self) {
        keyunit::by_own_means(&self.srcpad);
        let count = self.key_units.fetch_add(1, Ordering::Relaxed);
        let _ = self.srcpad.push_event(keyunit::downstream(count));
    }

    fn count_dropped(&self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        self.dropped.store(dropped + 1, Ordering::Relaxed);
    }

    /// Changes the word unless a command has changed it already.
    fn exchange(&self, from: u32, to: u32) -> bool {
        self.word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}
