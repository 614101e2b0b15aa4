// SPDX-License-Identifier: MPL-2.0

//! Whether media moves where it has to. Pure: `now` is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A place that media has to pass at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// What stands still there, for the log.
    pub what: String,
    /// Grows with each buffer or frame.
    pub count: u64,
    /// Behind it the media is out of our hands: what systemd's watchdog looks at.
    pub last: bool,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    last: bool,
    since: Instant,
}

/// When each place was last passed.
#[derive(Debug, Default)]
pub struct Health(BTreeMap<String, Seen>);

impl Health {
    /// Takes note of all places where media is due; others are forgotten.
    pub fn look(&mut self, passages: Vec<Passage>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for Passage { what, count, last } in passages {
            let since = match before.remove(&what) {
                Some(seen) if seen.count == count => seen.since,
                _ => now,
            };
            self.0.insert(what, Seen { count, last, since });
        }
    }

    /// The place where nothing has passed for `limit`; zero: there is none.
    pub fn stalled(&self, limit: Duration, now: Instant) -> Option<&str> {
        self.0
            .iter()
            .filter(|_| !limit.is_zero())
            .find(|(_, seen)| now.duration_since(seen.since) >= limit)
            .map(|(what, _)| what.as_str())
    }

    /// Whether media has left us within `limit`, wherever it is due.
    pub fn leaves(&self, limit: Duration, now: Instant) -> bool {
        self.0
            .values()
            .filter(|seen| seen.last)
            .all(|seen| now.duration_since(seen.since) < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(what: &str, count: u64, last: bool) -> Passage {
        Passage {
            what: what.into(),
            count,
            last,
        }
    }

    #[test]
    fn a_place_is_stalled_when_its_count_stands_for_the_limit() {
        let (mut health, start) = (Health::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let limit = Duration::from_secs(10);
        health.look(vec![passage("sink", 7, true)], at(0));
        assert_eq!(health.stalled(limit, at(9)), None);
        assert_eq!(health.stalled(limit, at(10)), Some("sink"));
        assert_eq!(health.stalled(Duration::ZERO, at(99)), None);
        assert!(!health.leaves(limit, at(10)));
        health.look(vec![passage("sink", 8, true)], at(10));
        assert_eq!(health.stalled(limit, at(19)), None);
        assert!(health.leaves(limit, at(19)));
    }

    #[test]
    fn a_place_where_nothing_is_due_any_more_is_forgotten() {
        let (mut health, start) = (Health::default(), Instant::now());
        let limit = Duration::from_secs(10);
        health.look(vec![passage("sink", 7, true)], start);
        health.look(Vec::new(), start + limit);
        assert!(health.leaves(limit, start + 2 * limit));
        health.look(vec![passage("sink", 7, true)], start + 3 * limit);
        assert_eq!(health.stalled(limit, start + 3 * limit), None);
    }

    #[test]
    fn only_the_last_place_counts_for_the_watchdog() {
        let (mut health, start) = (Health::default(), Instant::now());
        let limit = Duration::from_secs(1);
        health.look(vec![passage("valve", 7, false)], start);
        assert!(health.leaves(limit, start + limit));
        assert_eq!(health.stalled(limit, start + limit), Some("valve"));
    }
}
