// SPDX-License-Identifier: MPL-2.0

//! The time: monotonic for what ends, on the wall for what is told to others.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, de::Error};
use tokio::time::Instant;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since this process's [`Clock`] was made.
    pub monotonic: Duration,
    /// Since 1970.
    pub wall: Duration,
}

impl Now {
    /// Milliseconds since 1970 at the monotonic time `at`.
    pub fn wall_millis(&self, at: Duration) -> u64 {
        let ahead = at.saturating_sub(self.monotonic);
        millis(self.wall + ahead)
    }

    /// The monotonic time at so many milliseconds since 1970.
    pub fn monotonic_of(&self, wall_millis: u64) -> Duration {
        let ahead = Duration::from_millis(wall_millis).saturating_sub(self.wall);
        self.monotonic + ahead
    }
}

/// Both clocks of this process.
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Clock(Instant::now())
    }
}

impl Clock {
    pub fn now(&self) -> Now {
        Now {
            monotonic: self.0.elapsed(),
            wall: since_1970(),
        }
    }

    /// When it is `monotonic` in [`Now`].
    pub fn instant(&self, monotonic: Duration) -> Instant {
        self.0 + monotonic
    }
}

/// The wall clock; one that stands before 1970 is as good as one that stands there.
pub fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// In whole milliseconds, as they are written to the broker.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whole seconds within bounds, as a configuration names them.
pub fn seconds<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    if !(MIN..=MAX).contains(&seconds) {
        return Err(D::Error::custom(format!(
            "{seconds} is out of range: give whole seconds from {MIN} to {MAX}"
        )));
    }
    Ok(Duration::from_secs(seconds))
}

/// RFC 3339 in UTC, to the second.
pub fn utc(since_1970: Duration) -> String {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since_1970).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_date_says_them() {
        // By `date -u -d @N +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_593_600, "2026-11-25T08:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), text);
        }
    }
}
