// SPDX-License-Identifier: MPL-2.0

//! How much later than the other track one comes, so that both are sent in the order of their
//! times; pure, in nanoseconds of media.

/// A track that comes later than this is not waited for, unless the elements upstream say so.
const MAX_LEARNED: i64 = 2_000_000_000;
/// Longest latency of an encoder that is believed.
const MAX_LATENCY: i64 = 30_000_000_000;
/// A track may be so much later than usual.
const MARGIN: i64 = 100_000_000;
/// What was seen is forgotten after this time; after half of it at least.
const MEMORY: i64 = 10_000_000_000;

#[derive(Debug, Default)]
pub struct Skew {
    /// As the elements upstream say.
    pub latency: i64,
    /// The latest that a frame came, in this half of the memory and in the one before.
    seen: [i64; 2],
    half_began: Option<i64>,
}

impl Skew {
    /// A frame of `time` came this much later than one of the other track.
    pub fn arrived(&mut self, time: i64, late: i64) {
        let began = *self.half_began.get_or_insert(time);
        let age = time.saturating_sub(began);
        if !(0..MEMORY / 2).contains(&age) {
            self.seen = [0, self.seen[0]];
            self.half_began = Some(time);
        }
        self.seen[0] = self.seen[0].max(late);
    }

    /// For how long the `other` track waits for this one.
    pub fn patience(&self, other: &Skew) -> i64 {
        let learned = self.seen[0].max(self.seen[1]).min(MAX_LEARNED);
        let told = self.latency.saturating_sub(other.latency);
        learned.max(told.min(MAX_LATENCY)).max(0) + MARGIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_track_is_waited_for_as_long_as_it_was_late_or_says_that_it_is() {
        let mut audio = Skew::default();
        let mut video = Skew::default();
        assert_eq!(audio.patience(&video), MARGIN);
        audio.arrived(0, SECOND);
        assert_eq!(audio.patience(&video), SECOND + MARGIN);
        assert_eq!(video.patience(&audio), MARGIN);
        audio.arrived(SECOND, 9 * SECOND);
        assert_eq!(audio.patience(&video), MAX_LEARNED + MARGIN);
        video.latency = 5 * SECOND;
        assert_eq!(video.patience(&audio), 5 * SECOND + MARGIN);
        video.latency = i64::MAX;
        assert_eq!(video.patience(&audio), MAX_LATENCY + MARGIN);
    }

    #[test]
    fn what_was_late_once_is_forgotten() {
        let mut audio = Skew::default();
        audio.arrived(0, SECOND);
        for n in 1..=10 {
            audio.arrived(n * SECOND, 0);
        }
        assert_eq!(audio.patience(&Skew::default()), MARGIN);
    }
}
