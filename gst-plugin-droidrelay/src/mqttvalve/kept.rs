// SPDX-License-Identifier: MPL-2.0

//! What a closed valve keeps of the stream, to send it first at the next opening.

use std::collections::VecDeque;

use gst::ClockTime;

/// Most bytes that are kept, whatever the times say.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    #[default]
    Nothing,
    /// The newest frame of raw video.
    Newest,
    /// As `Newest`, and this much of encoded media.
    Last(ClockTime),
}

/// Buffers in groups that each begin where decoding can.
#[derive(Debug, Default)]
pub struct Kept {
    pub keep: Keep,
    groups: VecDeque<Vec<gst::Buffer>>,
    bytes: usize,
    newest: Option<ClockTime>,
    /// When a shorter group was asked for last.
    asked: Option<ClockTime>,
}

impl Kept {
    /// Keeps a buffer, and as few of those before it as make up `span` from a key frame on; a
    /// span of zero keeps the newest group. True where a new key frame is needed for that.
    pub fn add(&mut self, buffer: gst::Buffer, span: ClockTime) -> bool {
        // One picture more is no burden for its pool, many are.
        let buffer = if span > ClockTime::ZERO {
            own(buffer)
        } else {
            buffer
        };
        let time = buffer.dts_or_pts();
        let key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        if !key && self.groups.is_empty() {
            return self.ask(time, span);
        }
        self.newest = time.or(self.newest);
        self.bytes += held(&buffer);
        if key {
            self.groups.push_back(Vec::new());
        }
        if let Some(group) = self.groups.back_mut() {
            group.push(buffer);
        }
        while self.groups.len() > 1 && (self.spans_from(1, span) || self.bytes > MAX_BYTES) {
            self.drop_oldest();
        }
        if self.bytes > MAX_BYTES {
            self.drop_oldest();
        }
        let long = span > ClockTime::ZERO && self.spans_from(self.groups.len().max(1) - 1, span);
        long && self.ask(time, span)
    }

    /// Takes all that is kept, oldest first, and how long it lasts.
    pub fn take(&mut self) -> (Vec<gst::Buffer>, ClockTime) {
        let kept = self.clear();
        let oldest = kept.start_of(0);
        let duration = kept
            .newest
            .zip(oldest)
            .and_then(|(newest, oldest)| newest.checked_sub(oldest))
            .unwrap_or_default();
        (kept.groups.into_iter().flatten().collect(), duration)
    }

    /// Forgets what is kept, and gives it.
    pub fn clear(&mut self) -> Kept {
        let empty = Kept {
            keep: self.keep,
            ..Kept::default()
        };
        std::mem::replace(self, empty)
    }

    /// Whether group `n` alone with what follows it lasts `span`.
    fn spans_from(&self, n: usize, span: ClockTime) -> bool {
        match (self.newest, self.start_of(n)) {
            (Some(newest), Some(start)) => newest.checked_sub(start) >= Some(span),
            // Without times there is nothing to measure: the newest group will do.
            _ => true,
        }
    }

    fn start_of(&self, n: usize) -> Option<ClockTime> {
        self.groups.get(n)?.first()?.dts_or_pts()
    }

    fn drop_oldest(&mut self) {
        let group = self.groups.pop_front().unwrap_or_default();
        self.bytes -= group.iter().map(|buffer| held(buffer)).sum::<usize>();
    }

    /// Whether to ask for a key frame at `time`: not more often than once a span.
    fn ask(&mut self, time: Option<ClockTime>, span: ClockTime) -> bool {
        let ask = match (self.asked, time) {
            (Some(asked), Some(time)) => time.checked_sub(asked) >= Some(span),
            (Some(_), None) => false,
            (None, _) => true,
        };
        if ask {
            self.asked = time.or(Some(ClockTime::ZERO));
        }
        ask
    }
}

/// Bytes that the buffer keeps allocated, which may be many more than its media.
fn held(buffer: &gst::BufferRef) -> usize {
    let memories = buffer.iter_memories();
    memories
        .map(|memory| memory.parent().map_or(memory, |whole| whole).maxsize())
        .sum()
}

/// The buffer, or a copy where it would keep a pool from its buffer or much more memory alive than
/// it has media.
fn own(buffer: gst::Buffer) -> gst::Buffer {
    // SAFETY: the buffer is alive, and its pool is set before others see it.
    let is_pooled = unsafe { !(*buffer.as_ptr()).pool.is_null() };
    if !is_pooled && held(&buffer) <= 2 * buffer.size() {
        return buffer;
    }
    // What cannot be read is kept as it is.
    buffer.copy_deep().unwrap_or(buffer)
}

#[cfg(test)]
mod tests {
    use gst::prelude::*;

    use super::*;

    const SPAN: ClockTime = ClockTime::from_seconds(3);

    fn buffer(seconds: u64, key: bool) -> gst::Buffer {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::with_size(1000).unwrap();
        let writable = buffer.get_mut().unwrap();
        writable.set_pts(ClockTime::from_seconds(seconds));
        if !key {
            writable.set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        buffer
    }

    fn seconds(kept: &mut Kept) -> Vec<u64> {
        let (buffers, _) = kept.take();
        buffers
            .iter()
            .map(|buffer| buffer.pts().unwrap().seconds())
            .collect()
    }

    #[test]
    fn at_least_the_span_is_kept_from_a_key_frame_on() {
        let mut kept = Kept::default();
        for time in 0..=20 {
            kept.add(buffer(time, time % 2 == 0), SPAN);
        }
        let (buffers, duration) = kept.take();
        assert_eq!(buffers[0].pts().unwrap().seconds(), 16);
        assert_eq!(duration, ClockTime::from_seconds(4));
        assert_eq!(kept.take().0.len(), 0);
    }

    #[test]
    fn without_a_span_the_newest_frame_is_kept() {
        let mut kept = Kept::default();
        for time in 0..5 {
            assert!(!kept.add(buffer(time, true), ClockTime::ZERO));
        }
        assert_eq!(seconds(&mut kept), [4]);
    }

    #[test]
    fn nothing_is_kept_before_the_first_key_frame_and_one_is_asked_for_now_and_then() {
        let mut kept = Kept::default();
        let asked: Vec<bool> = (0..7)
            .map(|time| kept.add(buffer(time, false), SPAN))
            .collect();
        assert_eq!(asked, [true, false, false, true, false, false, true]);
        assert!(seconds(&mut kept).is_empty());
    }

    #[test]
    fn a_group_that_grows_too_long_asks_for_a_new_one() {
        let mut kept = Kept::default();
        assert!(!kept.add(buffer(0, true), SPAN));
        assert!(!kept.add(buffer(2, false), SPAN));
        assert!(kept.add(buffer(3, false), SPAN));
        assert!(!kept.add(buffer(4, false), SPAN));
        assert!(!kept.add(buffer(5, true), SPAN));
        assert!(!kept.add(buffer(7, false), SPAN));
        assert_eq!(seconds(&mut kept), [0, 2, 3, 4, 5, 7]);
    }

    #[test]
    fn memory_is_bounded_also_without_times_and_key_frames() {
        let mut kept = Kept::default();
        let mut large = gst::Buffer::with_size(MAX_BYTES / 4).unwrap();
        kept.add(large.clone(), SPAN);
        large.make_mut().set_flags(gst::BufferFlags::DELTA_UNIT);
        for _ in 0..20 {
            kept.add(large.clone(), SPAN);
            assert!(kept.bytes <= MAX_BYTES);
        }
    }

    #[test]
    fn buffers_of_a_pool_go_back_to_it_and_memory_that_is_mostly_unused_is_not_kept() {
        gst::init().unwrap();
        let pool = gst::BufferPool::new();
        let mut config = pool.config();
        config.set_params(None, 1 << 20, 2, 2);
        pool.set_config(config).unwrap();
        pool.set_active(true).unwrap();
        let params =
            gst::BufferPoolAcquireParams::with_flags(gst::BufferPoolAcquireFlags::DONTWAIT);
        let mut kept = Kept::default();
        for n in 0..100 {
            let mut buffer = pool.acquire_buffer(Some(&params)).unwrap();
            let writable = buffer.get_mut().unwrap();
            writable.set_size(1000);
            writable.set_pts(ClockTime::from_mseconds(10 * n));
            kept.add(buffer, SPAN);
            // As an encoder makes them without a pool.
            let mut buffer = gst::Buffer::with_size(1 << 20).unwrap();
            let writable = buffer.get_mut().unwrap();
            writable.set_size(1000);
            writable.set_pts(ClockTime::from_mseconds(10 * n));
            let part = buffer
                .copy_region(gst::BufferCopyFlags::all(), 0..500)
                .unwrap();
            kept.add(buffer, SPAN);
            kept.add(part, SPAN);
        }
        let (buffers, _) = kept.take();
        assert_eq!(buffers.len(), 300);
        let all: usize = buffers.iter().map(|buffer| held(buffer)).sum();
        assert!(all <= 300 * 2000, "{all} bytes are held");
        pool.set_active(false).unwrap();
    }
}
