// SPDX-License-Identifier: MPL-2.0

//! Frames on their way: handed to the socket, not yet acknowledged by the server's kernel. Tells
//! how long media waits there; pure. Times of media are in nanoseconds, `now` is of one clock
//! that begins at zero.

use std::{collections::VecDeque, time::Duration};

use super::queue::Track;

/// The line's own delay is the shortest of this time; of half of it at least.
const MEMORY: Duration = Duration::from_secs(6);

#[derive(Debug)]
struct Sent {
    track: Track,
    time: i64,
    /// How long it had waited before.
    behind: Duration,
    handed: Duration,
    /// Bytes written up to its end; None while some of it is not.
    end: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Uplink {
    frames: VecDeque<Sent>,
    /// Shortest time on the way: ever, since the last change of halves, and in the half before.
    shortest: Option<Duration>,
    halves: [Option<Duration>; 2],
    half_began: Duration,
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

impl Uplink {
    /// A frame of `time` leaves the queue, `behind` the newest media of its track that could.
    pub fn handed(&mut self, track: Track, time: i64, behind: Duration, now: Duration) {
        self.frames.push_back(Sent {
            track,
            time,
            behind,
            handed: now,
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

    /// The server's kernel has so many bytes.
    pub fn acknowledged(&mut self, offset: u64, now: Duration) {
        if now >= self.half_began + MEMORY / 2 && self.halves[0].is_some() {
            self.halves = [None, self.halves[0]];
            self.half_began = now;
        }
        while let Some(frame) = self.frames.front() {
            if frame.end.is_none_or(|end| end > offset) {
                break;
            }
            let took = Some(now.saturating_sub(frame.handed));
            self.shortest = shorter(self.shortest, took);
            self.halves[0] = shorter(self.halves[0], took);
            self.frames.pop_front();
        }
    }

    /// From which media time on media of each track waits, as this session has seen the line at
    /// its best: the time of the oldest frame on the way, later by what the line takes by itself.
    pub fn waits_from(&self) -> [Option<i64>; 2] {
        let own = self.shortest.map(|own| i64::try_from(own.as_nanos()));
        let Some(Ok(own)) = own else {
            return [None; 2];
        };
        Track::ALL.map(|track| {
            let mut of_track = self.frames.iter().filter(|frame| frame.track == track);
            Some(of_track.next()?.time.saturating_add(own))
        })
    }

    /// How long media waits, beyond the line's own delay in the last seconds; `queued` is how
    /// much media has not been handed over.
    pub fn wait(&self, queued: Duration, now: Duration) -> Duration {
        // Before anything has arrived the line's own delay is not known.
        let Some(own) = shorter(self.halves[0], self.halves[1]) else {
            return Duration::ZERO;
        };
        self.frames.front().map_or(queued, |oldest| {
            (oldest.behind + now.saturating_sub(oldest.handed)).saturating_sub(own)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Frames of 100 bytes, 10 ms apart, each acknowledged `delay` frames later; how long media
    /// waits, in milliseconds.
    fn steady(uplink: &mut Uplink, frames: std::ops::Range<u64>, delay: u64) -> Vec<u128> {
        let mut waits = Vec::new();
        for n in frames {
            let (newest, now) = (n as i64 * 10 * MS, at(10 * n));
            uplink.acknowledged(100 * n.saturating_sub(delay - 1), now);
            uplink.handed(Track::Video, newest, Duration::ZERO, now);
            uplink.written(100 * (n + 1));
            waits.push(uplink.wait(Duration::ZERO, now).as_millis());
        }
        waits
    }

    #[test]
    fn a_long_line_by_itself_is_no_wait() {
        let mut uplink = Uplink::default();
        let waits = steady(&mut uplink, 0..100, 30);
        assert_eq!(waits.iter().max(), Some(&0));
        assert_eq!(uplink.waits_from(), [Some((990 - 290 + 300) * MS), None]);
    }

    #[test]
    fn what_is_not_acknowledged_waits_longer_and_longer() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..100, 2);
        // Frames 98 and 99 are on the way, which takes 20 ms.
        let now = at(2000);
        assert_eq!(uplink.wait(Duration::ZERO, now), at(2000 - 980 - 20));
        assert_eq!(uplink.waits_from(), [Some(1000 * MS), None]);
        uplink.acknowledged(10_000, now);
        assert_eq!(uplink.waits_from(), [None; 2]);
        assert_eq!(uplink.wait(at(500), now), at(500));
        // It goes on to wait where it is handed over.
        uplink.handed(Track::Video, 1500 * MS, at(500), now);
        assert_eq!(uplink.wait(Duration::ZERO, at(2050)), at(500 + 50 - 20));
    }

    #[test]
    fn a_line_that_has_become_longer_is_known_after_six_seconds() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..500, 1);
        let waits = steady(&mut uplink, 500..1300, 40);
        assert_eq!(waits[100], 380);
        assert_eq!(waits[700], 0, "{waits:?}");
        // For the limit of what may wait, the session's best counts.
        assert_eq!(uplink.waits_from(), [Some((12_990 - 390 + 10) * MS), None]);
    }

    #[test]
    fn a_frame_that_is_half_written_has_not_arrived() {
        let mut uplink = Uplink::default();
        steady(&mut uplink, 0..10, 1);
        uplink.handed(Track::Video, 100 * MS, Duration::ZERO, at(100));
        uplink.acknowledged(u64::MAX, at(500));
        assert_eq!(uplink.wait(Duration::ZERO, at(500)), at(390));
        uplink.written(5000);
        uplink.acknowledged(5000, at(500));
        assert_eq!(uplink.waits_from(), [None; 2]);
    }
}
