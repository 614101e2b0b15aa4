// SPDX-License-Identifier: MPL-2.0

//! What follows on a failure of the pipeline: the same one again after a back-off, then a new one,
//! then the end of the process, for systemd to start it anew. Pure: random numbers are arguments.

use std::time::Duration;

use droidrelay_wire::{Backoff, words::fault::Place};

/// Every so many failures in a row the pipeline is built anew.
const REBUILD_AFTER: u32 = 3;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

pub struct Recovery {
    /// Give up after this many failures in a row; 0 = never.
    give_up_after: u32,
    /// In a row.
    pub failures: u32,
    backoff: Backoff,
    /// An element is of no more use: the next start needs a new pipeline.
    pub is_broken: bool,
    /// Why the pipeline does not play, and what of it has failed.
    pub reason: Option<(Place, String)>,
}

impl Recovery {
    pub fn new(give_up_after: u32) -> Self {
        Recovery {
            give_up_after,
            failures: 0,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            is_broken: false,
            reason: None,
        }
    }

    /// One more failure: how long to wait before the next start; None: give up.
    pub fn fail(&mut self, at: Place, reason: &str, random: f64) -> Option<Duration> {
        self.failures += 1;
        self.reason = Some((at, reason.to_owned()));
        let gives_up = self.give_up_after > 0 && self.failures >= self.give_up_after;
        (!gives_up).then(|| self.backoff.next(random))
    }

    /// A wait for a pipeline that ended too soon, but has not failed.
    pub fn pause(&mut self, random: f64) -> Duration {
        self.backoff.next(random)
    }

    /// Whether the next start needs a new pipeline.
    pub fn needs_rebuild(&self) -> bool {
        self.is_broken || self.failures > 0 && self.failures.is_multiple_of(REBUILD_AFTER)
    }

    /// Earlier failures do not count any more.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_lead_to_a_new_pipeline_and_to_the_end() {
        let mut recovery = Recovery::new(4);
        assert!(!recovery.needs_rebuild());
        let mut waits = Vec::new();
        let mut rebuilds = Vec::new();
        while let Some(wait) = recovery.fail(Place::Source, "no camera", 1.0) {
            waits.push(wait.as_millis());
            rebuilds.push(recovery.needs_rebuild());
        }
        assert_eq!(waits, [500, 1000, 2000]);
        assert_eq!(rebuilds, [false, false, true]);
        assert_eq!(
            recovery.reason,
            Some((Place::Source, "no camera".to_owned()))
        );
        recovery.reset();
        assert!(recovery.fail(Place::Source, "no camera", 1.0).is_some());
        recovery.is_broken = true;
        assert!(recovery.needs_rebuild());
        recovery.is_broken = false;
        assert!(!recovery.needs_rebuild());
    }

    #[test]
    fn without_a_limit_it_never_gives_up() {
        let mut recovery = Recovery::new(0);
        assert!((0..100).all(|_| recovery.fail(Place::Source, "no camera", 0.0).is_some()));
    }
}
