//! Frames on their way: handed to the socket, not yet acknowledged by the server's kernel. Tells
//! how long media waits there, in media time; pure.

use std::{collections::VecDeque, time::Duration};

/// The line's own delay is the shortest of this time; of half of it at least.
const MEMORY: Duration = Duration::from_secs(6);

#[derive(Debug)]
struct Sent {
    time: i64,
    /// Time of the newest media when this was handed over.
    handed: i64,
    /// Bytes written up to its end; None while some of it is not.
    end: Option<u64>,
}

/// Times are of media, in nanoseconds.
#[derive(Debug, Default)]
pub struct Uplink {
    frames: VecDeque<Sent>,
    /// Shortest time on the way: ever, since the last change of halves, and in the half before.
    shortest: Option<i64>,
    halves: [Option<i64>; 2],
    half_began: Duration,
}

fn shorter(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.into_iter().chain(b).min()
}

impl Uplink {
    /// A frame of `time` leaves the queue while media of `newest` comes.
    pub fn handed(&mut self, time: i64, newest: i64) {
        self.frames.push_back(Sent {
            time,
            handed: newest,
            end: None,
        });
    }

    /// All that was handed over is written, `offset` bytes since the beginning.
    pub fn written(&mut self, offset: u64) {
        for frame in self.frames.iter_mut().rev() {
            if frame.end.is_some() {
                break;
            }
            frame.end = Some(offset);
        }
    }

    /// The server's kernel has so many bytes, now that media of `newest` comes.
    pub fn acknowledged(&mut self, offset: u64, newest: i64, now: Duration) {
        if now >= self.half_began + MEMORY / 2 && self.halves[0].is_some() {
            self.halves = [None, self.halves[0]];
            self.half_began = now;
        }
        while let Some(frame) = self.frames.front() {
            if frame.end.is_none_or(|end| end > offset) {
                break;
            }
            let took = Some((newest - frame.handed).max(0));
            self.shortest = shorter(self.shortest, took);
            self.halves[0] = shorter(self.halves[0], took);
            self.frames.pop_front();
        }
    }

    /// From when media waits, as this session has seen the line at its best: the time of the
    /// oldest frame on the way, later by what the line takes by itself.
    pub fn waits_from(&self) -> Option<i64> {
        Some(self.frames.front()?.time + self.shortest?)
    }

    /// How long media waits, beyond the line's own delay in the last seconds; `queued` is the
    /// time of the oldest frame that has not been handed over.
    pub fn wait(&self, queued: Option<i64>, newest: i64) -> Duration {
        let oldest = self.frames.front().map(|frame| frame.time).or(queued);
        let own = shorter(self.halves[0], self.halves[1]);
        let wait = match (oldest, own) {
            (Some(oldest), Some(own)) => newest - oldest - own,
            // Before anything has arrived the line's own delay is not known.
            _ => 0,
        };
        Duration::from_nanos(wait.try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn ms(wait: Duration) -> u128 {
        wait.as_millis()
    }

    /// Frames of 100 bytes, 10 ms apart, each acknowledged `delay` frames later.
    fn steady(uplink: &mut Uplink, frames: std::ops::Range<i64>, delay: i64) -> Vec<u128> {
        let mut waits = Vec::new();
        for n in frames {
            let newest = n * 10 * MS;
            uplink.handed(newest, newest);
            uplink.written(100 * (n + 1) as u64);
            let arrived = 100 * (n + 1 - delay).max(0) as u64;
            let now = Duration::from_millis(10 * n as u64);
            uplink.acknowledged(arrived, newest, now);
            waits.push(ms(uplink.wait(None, newest)));
        }
        waits
    }

    #[test]
    fn a_long_line_by_itself_is_no_wait() {
        let mut uplink = Uplink::default();
        let waits = steady(&mut uplink, 0..100, 30);
        assert_eq!(waits.iter().max(), Some(&0));
        assert_eq!(uplink.waits_from(), Some((990 - 290 + 300) * MS));
    }

    #[test]
    fn what_is_not_acknowledged_waits_longer_and_longer() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..100, 2);
        // Frames 98 and 99 are on the way, which takes 20 ms.
        assert_eq!(ms(uplink.wait(None, 2000 * MS)), 2000 - 980 - 20);
        assert_eq!(uplink.waits_from(), Some(1000 * MS));
        uplink.acknowledged(10_000, 2000 * MS, Duration::from_secs(2));
        assert_eq!(uplink.waits_from(), None);
        assert_eq!(ms(uplink.wait(Some(1500 * MS), 2000 * MS)), 480);
    }

    #[test]
    fn a_line_that_has_become_longer_is_known_after_six_seconds() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..500, 1);
        let waits = steady(&mut uplink, 500..1200, 40);
        assert_eq!(waits[100], 380);
        assert_eq!(waits[599], 0, "{waits:?}");
        // For the limit of what may wait, the session's best counts.
        assert_eq!(uplink.waits_from(), Some((11_990 - 390 + 10) * MS));
    }

    #[test]
    fn a_frame_that_is_half_written_has_not_arrived() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..10, 1);
        uplink.handed(100 * MS, 100 * MS);
        uplink.acknowledged(u64::MAX, 500 * MS, Duration::from_millis(500));
        assert_eq!(ms(uplink.wait(None, 500 * MS)), 390);
        uplink.written(5000);
        uplink.acknowledged(5000, 500 * MS, Duration::from_millis(500));
        assert_eq!(uplink.waits_from(), None);
    }
}
