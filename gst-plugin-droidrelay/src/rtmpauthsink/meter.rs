// SPDX-License-Identifier: MPL-2.0

//! What a session sends per second, told so seldom that its reader may put it on a broker.
//! Pure: the time is an argument, and without bytes nothing happens.

use std::time::Duration;

/// Shortest time that is measured over.
const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Meter {
    since: Duration,
    bytes: u64,
    told: u64,
}

impl Meter {
    /// Begins at `now`; all times are of one clock.
    pub fn new(now: Duration) -> Self {
        Meter {
            since: now,
            ..Meter::default()
        }
    }

    /// Counts bytes that have been sent; returns bits per second where that is news: not more
    /// often than every five seconds, and changed by a tenth.
    pub fn sent(&mut self, bytes: usize, now: Duration) -> Option<u64> {
        self.bytes += bytes as u64;
        let over = now.saturating_sub(self.since);
        if over < INTERVAL {
            return None;
        }
        let bitrate = (self.bytes as f64 * 8.0 / over.as_secs_f64()) as u64;
        self.since = now;
        self.bytes = 0;
        if bitrate.abs_diff(self.told) * 10 < self.told.max(1) {
            return None;
        }
        self.told = bitrate;
        Some(bitrate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kilobytes` a second, in ten writes a second, from second `from` on.
    fn send(meter: &mut Meter, kilobytes: usize, from: u64, seconds: u64) -> Vec<u64> {
        (1..=seconds * 10)
            .filter_map(|n| {
                let now = Duration::from_secs(from) + Duration::from_millis(100 * n);
                meter.sent(kilobytes * 100, now)
            })
            .collect()
    }

    #[test]
    fn a_steady_rate_is_told_once_and_a_change_when_it_is_measured() {
        let mut meter = Meter::new(Duration::from_secs(100));
        assert!(send(&mut meter, 100, 100, 4).is_empty());
        assert_eq!(send(&mut meter, 100, 104, 26), [800_000]);
        assert!(send(&mut meter, 105, 130, 10).is_empty());
        assert_eq!(send(&mut meter, 50, 140, 30), [400_000]);
    }

    #[test]
    fn a_slow_drift_is_told_when_it_has_come_far() {
        let mut meter = Meter::new(Duration::ZERO);
        let told: Vec<u64> = (0..40)
            .flat_map(|n| send(&mut meter, 100 + n as usize, 5 * n, 5))
            .collect();
        assert_eq!(told, [800_000, 880_000, 968_000, 1_072_000]);
    }

    #[test]
    fn what_comes_after_silence_is_spread_over_it() {
        let mut meter = Meter::new(Duration::ZERO);
        assert_eq!(
            meter.sent(1_000_000, Duration::from_secs(80)),
            Some(100_000)
        );
    }
}
