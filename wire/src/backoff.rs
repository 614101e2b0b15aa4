// SPDX-License-Identifier: MPL-2.0

//! Exponential back-off with jitter; pure: the random number is an argument.

use std::time::Duration;

/// Doubles from `min` to `max`; each wait is drawn from the upper half of its step, so that
/// a fleet that lost its server does not come back in one beat.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Backoff {
            min,
            max,
            next: min,
        }
    }

    /// The next wait; `random` is uniform in 0.0..1.0.
    pub fn next(&mut self, random: f64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// Makes the next wait the shortest again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// A random number in 0.0..1.0, good for jitter and nothing else.
pub fn jitter() -> f64 {
    fastrand::f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
        let mut waits = [0; 4].map(|_| backoff.next(1.0).as_millis());
        assert_eq!(waits, [250, 500, 1000, 1000]);
        backoff.reset();
        waits = [0; 4].map(|_| backoff.next(0.0).as_millis());
        assert_eq!(waits, [125, 250, 500, 500]);
    }

    #[test]
    fn jitter_stays_in_its_range_and_varies() {
        let draws: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        assert!(draws.iter().any(|draw| *draw != draws[0]));
    }
}
