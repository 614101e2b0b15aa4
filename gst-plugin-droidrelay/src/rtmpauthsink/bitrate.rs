// SPDX-License-Identifier: MPL-2.0

//! The encoder's bitrate for what the uplink carries: down within a second of a bottleneck, up
//! by small steps. Pure: the time is an argument.

use std::{collections::VecDeque, time::Duration};

/// Samples are this far apart, and kept for [`SLOW`].
const SAMPLE: Duration = Duration::from_millis(25);
/// Media that waits this long, and longer and longer, for this time: a bottleneck.
const QUICK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(400));
/// Media that waits this long for this time, growing or not.
const SLOW: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Nothing acknowledged for this long is a pause of the line and says nothing of its rate.
const PAUSE: Duration = Duration::from_millis(300);
/// Shortest time over which the line's rate is measured.
const MEASURE: Duration = Duration::from_millis(200);
/// Part of the line's rate that is used: the rest drains what waits.
const USED: f64 = 0.8;
/// What a queue that does not go away costs.
const LESS: f64 = 0.85;
/// A queue that goes away has become shorter by this in half of [`SLOW`].
const FALLING: f64 = 0.9;
/// A step up, and the time between two.
const MORE: f64 = 1.08;
const STEP: Duration = Duration::from_secs(1);
/// Part of the measured limit that is used again without a probe.
const SAFE: f64 = 0.9;
/// A line that carries so much more than its limit was has become another one.
const BETTER: f64 = 1.3;
/// After a cut, the sink probes for more bandwidth after this time, doubled with each probe
/// that fails.
const PROBE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

/// What was seen of the line at one time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    /// How long media waits, beyond the time that the line needs by itself.
    wait: Duration,
    /// Bytes that the server has acknowledged.
    acknowledged: u64,
}

/// The bounds of a session's bitrate, and where it begins, in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
    pub start: u64,
}

/// One session's bitrate, in bits per second.
#[derive(Debug)]
pub struct BitrateControl {
    min: f64,
    max: f64,
    target: f64,
    /// What the line carried when it was overloaded.
    limit: Option<f64>,
    probe_after: Duration,
    probe_at: Duration,
    changed_at: Duration,
    cut_at: Option<Duration>,
    /// Since the last cut, oldest first.
    samples: VecDeque<Sample>,
}

impl BitrateControl {
    /// All times are of one clock that begins at zero.
    pub fn new(range: Range) -> Self {
        let (min, max) = (range.min as f64, range.max.max(range.min) as f64);
        BitrateControl {
            min,
            max,
            target: (range.start as f64).clamp(min, max),
            limit: None,
            probe_after: PROBE.0,
            probe_at: Duration::ZERO,
            changed_at: Duration::ZERO,
            cut_at: None,
            samples: VecDeque::new(),
        }
    }

    pub fn target(&self) -> u64 {
        self.target as u64
    }

    /// Takes what is seen of the line, as often as one likes; true where the target changed.
    /// `others`: bits per second of what shares the line with the video.
    pub fn update(
        &mut self,
        now: Duration,
        wait: Duration,
        acknowledged: u64,
        others: u64,
    ) -> bool {
        if self
            .samples
            .back()
            .is_some_and(|last| now < last.at + SAMPLE)
        {
            return false;
        }
        self.samples.push_back(Sample {
            at: now,
            wait,
            acknowledged,
        });
        while self
            .samples
            .get(1)
            .is_some_and(|next| next.at + SLOW.1 <= now)
        {
            self.samples.pop_front();
        }
        let before = self.target;
        let others = others as f64;
        // Of a line that is busy; in a pause nothing is known but when it goes on.
        let rate = self
            .least_wait(now, QUICK.1, Duration::ZERO)
            .filter(|wait| *wait > SLOW.0 / 2)
            .and_then(|_| self.rate(now, QUICK.1))
            .map(|rate| (rate - others).max(0.0));
        // What was made before the last cut says nothing of it.
        let is_news = self.cut_at.is_none_or(|at| at + wait < now);
        if let Some(rate) = rate.filter(|rate| rate * USED > self.target * MORE) {
            // It stood still and was not narrow.
            self.limit = Some(rate);
            self.set(rate * USED, now);
        } else if is_news && self.grows(now, QUICK) {
            if let Some(rate) = rate.filter(|rate| rate * USED < self.target) {
                self.cut(rate * USED, rate, now);
            }
        } else if is_news && self.stays(now, SLOW) {
            self.cut(self.target * LESS, self.target, now);
        } else if self.is_clear(now, others) {
            self.raise(now);
        }
        self.target != before
    }

    /// Shortest wait between `from` and `to` before now; None where that is not all known.
    fn least_wait(&self, now: Duration, from: Duration, to: Duration) -> Option<Duration> {
        let from = now.checked_sub(from)?;
        self.samples
            .front()
            .filter(|first| first.at <= from + SAMPLE)?;
        let times = from..=now - to;
        let seen = self
            .samples
            .iter()
            .filter(|sample| times.contains(&sample.at));
        seen.map(|sample| sample.wait).min()
    }

    /// Media waits longer than this for this time, and longer than in that time before.
    fn grows(&self, now: Duration, (wait, over): (Duration, Duration)) -> bool {
        let lately = self.least_wait(now, over, Duration::ZERO);
        let before = self.least_wait(now, 2 * over, over);
        lately
            .zip(before)
            .is_some_and(|(lately, before)| lately > wait && lately > before)
    }

    /// Media waits longer than this for this time, and that does not go away.
    fn stays(&self, now: Duration, (wait, over): (Duration, Duration)) -> bool {
        let lately = self.least_wait(now, over / 2, Duration::ZERO);
        let before = self.least_wait(now, over, over / 2);
        lately.zip(before).is_some_and(|(lately, before)| {
            lately > wait && before > wait && lately > before.mul_f64(FALLING)
        })
    }

    /// Nothing has waited for long, and the target is really used.
    fn is_clear(&self, now: Duration, others: f64) -> bool {
        self.least_wait(now, STEP, Duration::ZERO)
            .is_some_and(|wait| wait < SLOW.0 / 2)
            && self
                .rate(now, STEP)
                .is_some_and(|rate| rate - others > self.target / 2.0)
    }

    /// Bits per second that the server acknowledged in this time, without pauses of the line.
    fn rate(&self, now: Duration, over: Duration) -> Option<f64> {
        let mut begin: Option<Sample> = None;
        let mut end: Option<Sample> = None;
        for (before, sample) in self.samples.iter().zip(self.samples.iter().skip(1)) {
            if sample.acknowledged == before.acknowledged || sample.at + over < now {
                continue;
            }
            if end.is_none_or(|end| sample.at > end.at + PAUSE) {
                begin = Some(*sample);
            }
            end = Some(*sample);
        }
        let (begin, end) = begin.zip(end)?;
        let time = end.at - begin.at;
        let bytes = end.acknowledged - begin.acknowledged;
        (time >= MEASURE).then(|| bytes as f64 * 8.0 / time.as_secs_f64())
    }

    fn cut(&mut self, target: f64, limit: f64, now: Duration) {
        if self.is_beyond_limit() {
            self.probe_after = (self.probe_after * 2).min(PROBE.1);
        }
        self.limit = Some(limit);
        self.probe_at = now + self.probe_after;
        self.cut_at = Some(now);
        self.set(target, now);
        self.samples.clear();
    }

    fn raise(&mut self, now: Duration) {
        if self.limit.is_some_and(|limit| self.target > limit * BETTER) {
            self.limit = None;
            self.probe_after = PROBE.0;
        }
        let step = if self.is_beyond_limit() { SLOW.1 } else { STEP };
        let most = match self.limit {
            Some(limit) if now < self.probe_at => self.max.min(limit * SAFE),
            _ => self.max,
        };
        if self.target < most && now >= self.changed_at + step {
            self.set((self.target * MORE).min(most), now);
        }
    }

    /// Whether the target is more than what is known to be well.
    fn is_beyond_limit(&self) -> bool {
        self.limit.is_some_and(|limit| self.target > limit * SAFE)
    }

    fn set(&mut self, target: f64, now: Duration) {
        self.target = target.clamp(self.min, self.max);
        self.changed_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: f64 = 1.0 / 30.0;
    const TICK: f64 = 0.005;
    const MAX_LATENCY: f64 = 1.0;
    const RANGE: Range = Range {
        min: 100_000,
        max: 2_000_000,
        start: 2_000_000,
    };

    /// An encoder with a key frame each second, and a line that carries its frames one after
    /// another, bounded as the sink's queue is.
    struct Line {
        control: BitrateControl,
        now: f64,
        /// Bits per second.
        rate: f64,
        /// Seconds to the server and back.
        delay: f64,
        /// Of a key frame, in mean frames.
        key_size: f64,
        /// Others' bits per second.
        others: u64,
        frames: u64,
        newest: f64,
        /// When it was made, and the bytes of it that have not been carried.
        waiting: VecDeque<(f64, f64)>,
        /// When they come, for which frames, and how many bytes they acknowledge.
        answers: VecDeque<(f64, Option<f64>, u64)>,
        outstanding: VecDeque<f64>,
        carried: f64,
        acknowledged: u64,
        arrivals: VecDeque<(f64, f64)>,
    }

    /// What was seen at one tick.
    struct Seen {
        at: f64,
        target: f64,
        age: f64,
    }

    impl Line {
        fn new(rate: f64) -> Self {
            Line {
                control: BitrateControl::new(RANGE),
                now: 0.0,
                rate,
                delay: 0.02,
                key_size: 5.0,
                others: 0,
                frames: 0,
                newest: -1.0,
                waiting: VecDeque::new(),
                answers: VecDeque::new(),
                outstanding: VecDeque::new(),
                carried: 0.0,
                acknowledged: 0,
                arrivals: VecDeque::new(),
            }
        }

        fn encode(&mut self) {
            self.newest = self.now;
            let share = match self.frames % 30 {
                0 => self.key_size,
                _ => (30.0 - self.key_size) / 29.0,
            };
            let noise = 0.8 + 0.04 * (self.frames * 7919 % 11) as f64;
            self.frames += 1;
            let bits = self.control.target() as f64 * share * noise + self.others as f64;
            self.waiting.push_back((self.now, bits / 8.0 * FRAME));
            self.outstanding.push_back(self.now);
            if self.age() > MAX_LATENCY {
                while self.waiting.len() > 1 {
                    self.waiting.pop_back();
                    self.outstanding.pop_back();
                }
            }
        }

        fn age(&self) -> f64 {
            self.outstanding
                .front()
                .map_or(0.0, |made| self.newest - made)
        }

        fn tick(&mut self) -> Seen {
            self.now += TICK;
            if self.now >= self.newest + FRAME {
                self.encode();
            }
            let mut room = self.rate / 8.0 * TICK;
            let arrival = self.now + self.delay;
            while let Some((made, bytes)) = self.waiting.front_mut() {
                let some = bytes.min(room);
                *bytes -= some;
                room -= some;
                self.carried += some;
                if *bytes > 0.0 {
                    break;
                }
                let answer = (arrival, Some(*made), self.carried as u64);
                self.answers.push_back(answer);
                self.waiting.pop_front();
            }
            self.answers.push_back((arrival, None, self.carried as u64));
            while let Some((at, made, bytes)) = self.answers.front().copied() {
                if at > self.now {
                    break;
                }
                self.answers.pop_front();
                self.acknowledged = bytes;
                if let Some(made) = made {
                    self.outstanding.pop_front();
                    self.arrivals.push_back((self.now, self.newest - made));
                }
            }
            while self
                .arrivals
                .front()
                .is_some_and(|(at, _)| at + 6.0 < self.now)
            {
                self.arrivals.pop_front();
            }
            let took = self.arrivals.iter().map(|(_, took)| *took);
            let age = self.age();
            let wait = took
                .reduce(f64::min)
                .map_or(0.0, |own| (age - own).max(0.0));
            self.control.update(
                Duration::from_secs_f64(self.now),
                Duration::from_secs_f64(wait),
                self.acknowledged,
                self.others,
            );
            Seen {
                at: self.now,
                target: self.control.target() as f64,
                age,
            }
        }

        fn run(&mut self, seconds: f64) -> Vec<Seen> {
            (0..(seconds / TICK) as u64).map(|_| self.tick()).collect()
        }
    }

    fn targets(seen: &[Seen]) -> (f64, f64) {
        let targets = seen.iter().map(|seen| seen.target);
        (
            targets.clone().fold(f64::MAX, f64::min),
            targets.fold(0.0, f64::max),
        )
    }

    #[test]
    fn a_line_that_is_wide_enough_is_left_alone() {
        let seen = Line::new(2_600_000.0).run(60.0);
        assert_eq!(targets(&seen), (2e6, 2e6));
    }

    #[test]
    fn a_bottleneck_is_answered_within_a_second_and_at_once_by_enough() {
        for narrow in [200e3, 400e3, 800e3, 1200e3] {
            let mut line = Line::new(3e6);
            line.run(10.3);
            line.rate = narrow;
            let seen = line.run(10.0);
            let fell = seen.iter().find(|seen| seen.target < narrow).unwrap();
            assert!(fell.at < 11.3, "{narrow}: {}", fell.at);
            let (least, _) = targets(&seen);
            assert!(least > narrow * 0.6, "{narrow}: {least}");
            // Drained, and nothing waits any more.
            let waits = seen[1200..].iter().map(|seen| seen.age).fold(0.0, f64::max);
            assert!(waits < 0.35, "{narrow}: {waits}");
        }
    }

    #[test]
    fn a_narrow_line_is_used_without_swinging() {
        let mut line = Line::new(400e3);
        line.run(20.0);
        let seen = line.run(120.0);
        let (least, most) = targets(&seen);
        assert!(least > 300e3 && most < 520e3, "{least} {most}");
        let changes = seen
            .windows(2)
            .filter(|pair| pair[0].target != pair[1].target);
        assert!(changes.count() < 50);
        let late = seen.iter().filter(|seen| seen.age > 0.4).count();
        assert!(late < seen.len() / 50, "{late} of {}", seen.len());
    }

    #[test]
    fn a_line_that_is_wide_again_is_used_by_steps() {
        let mut line = Line::new(400e3);
        line.run(60.0);
        line.rate = 3e6;
        let seen = line.run(60.0);
        let back = seen.iter().find(|seen| seen.target == 2e6).unwrap();
        assert!(back.at < 110.0, "{}", back.at);
        for pair in seen.windows(2) {
            assert!(pair[1].target <= pair[0].target * MORE + 2.0);
        }
    }

    #[test]
    fn a_longer_line_and_an_outage_say_little_of_the_rate() {
        let mut line = Line::new(3e6);
        line.run(10.0);
        line.delay = 0.6;
        let (least, _) = targets(&line.run(30.0));
        assert!(least > 0.8e6, "{least}");
        let mut line = Line::new(3e6);
        line.run(10.0);
        line.rate = 0.0;
        line.run(4.0);
        line.rate = 3e6;
        let (least, _) = targets(&line.run(10.0));
        assert!(least > 1.2e6, "{least}");
    }

    #[test]
    fn what_shares_the_line_is_left_its_part() {
        let mut line = Line::new(3e6);
        line.others = 128_000;
        line.run(10.0);
        line.rate = 400e3;
        line.run(10.0);
        let seen = line.run(60.0);
        let (least, most) = targets(&seen);
        assert!(least > 180e3 && most < 360e3, "{least} {most}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_the_line_does_the_bounds_hold_and_it_is_used_in_the_end(
            changes in prop::collection::vec((50e3..5e6, 0.0..0.4, 0.5..20.0), 1..8),
            key_size in 1.0..8.0,
        ) {
            let mut line = Line::new(3e6);
            line.key_size = key_size;
            for (rate, delay, seconds) in changes {
                (line.rate, line.delay) = (rate, delay);
                let (least, most) = targets(&line.run(seconds));
                prop_assert!(least >= RANGE.min as f64 && most <= RANGE.max as f64);
            }
            line.rate = 3e6;
            line.run(90.0);
            prop_assert_eq!(line.control.target(), RANGE.max);
        }

        #[test]
        fn whatever_is_seen_nothing_panics(
            seen in prop::collection::vec((0u64..2000, 0u64..5000, 0u64..100_000, 0u64..1_000_000), 0..400),
        ) {
            let mut control = BitrateControl::new(RANGE);
            let (mut now, mut acknowledged) = (0, 0);
            for (later, wait, bytes, others) in seen {
                now += later;
                acknowledged += bytes;
                control.update(
                    Duration::from_millis(now),
                    Duration::from_millis(wait),
                    acknowledged,
                    others,
                );
                prop_assert!((RANGE.min..=RANGE.max).contains(&control.target()));
            }
        }
    }
}
