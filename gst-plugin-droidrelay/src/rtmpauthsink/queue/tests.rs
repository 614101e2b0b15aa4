// SPDX-License-Identifier: MPL-2.0

use proptest::prelude::*;

use super::*;

const MS: i64 = 1_000_000;

fn frame(track: Track, time: i64, key: bool) -> Frame<()> {
    Frame {
        track,
        time,
        key,
        size: 1,
        body: (),
    }
}

impl Queue<()> {
    fn video(&mut self, time: i64, key: bool) -> bool {
        self.push(frame(Track::Video, time, key), false)
    }

    fn audio(&mut self, time: i64) -> bool {
        self.push(frame(Track::Audio, time, true), false)
    }

    fn next(&mut self) -> Option<(Track, i64)> {
        match self.pop() {
            Next::Frame(frame) => Some((frame.track, frame.time)),
            Next::Renew | Next::Nothing => None,
        }
    }

    fn all(&mut self) -> Vec<(Track, i64)> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn times(&mut self) -> Vec<i64> {
        self.all().into_iter().map(|(_, time)| time).collect()
    }
}

/// In a session that has begun and is accepted.
fn opened(max_latency: i64) -> Queue<()> {
    let mut queue = Queue::new(max_latency);
    queue.open();
    queue.accepted();
    queue
}

/// With two tracks of their own.
fn sorted(max_latency: i64) -> Queue<()> {
    let mut queue = opened(max_latency);
    queue.sorted = true;
    queue
}

#[test]
fn nothing_goes_before_the_first_key_frame() {
    let mut queue = opened(100);
    assert!(queue.video(0, false));
    assert!(!queue.video(1, true));
    assert!(!queue.video(2, false));
    assert_eq!(queue.times(), [1, 2]);
    assert_eq!((queue.dropped, queue.lost), (1, 0));
}

#[test]
fn too_much_waiting_media_is_dropped_up_to_the_newest_key_frame() {
    let mut queue = opened(10);
    queue.video(0, true);
    queue.video(5, false);
    queue.video(8, true);
    assert!(!queue.video(11, false));
    assert_eq!(queue.times(), [8, 11]);
}

#[test]
fn without_a_newer_key_frame_all_is_dropped_and_one_is_asked_for() {
    let mut queue = opened(10);
    queue.video(0, true);
    assert!(queue.video(11, false));
    assert!(queue.is_empty());
    assert!(queue.video(12, false));
    assert!(!queue.video(13, true));
    assert_eq!(queue.times(), [13]);
    assert_eq!(queue.dropped, 3);
}

#[test]
fn audio_alone_starts_anywhere_but_waits_for_the_key_frame_where_there_is_video() {
    let mut queue = opened(10);
    queue.audio(0);
    assert_eq!(queue.times(), [0]);
    queue.video(1, true);
    queue.clear();
    queue.audio(2);
    assert!(queue.video(3, false));
    queue.video(4, true);
    queue.audio(5);
    assert_eq!(queue.times(), [4, 5]);
}

#[test]
fn what_waits_in_the_socket_counts_and_no_start_is_taken_until_half_of_it_has_gone() {
    let mut queue = opened(10);
    queue.video(0, true);
    queue.next();
    queue.set_ahead([Some(0), None]);
    assert!(!queue.video(5, false));
    assert!(!queue.video(10, false));
    // Too much, and what has left cannot be taken back: a key frame would wait as long.
    assert!(!queue.video(11, false));
    assert!(queue.is_empty());
    assert_eq!(queue.waiting(), 11);
    assert!(!queue.video(12, true));
    queue.set_ahead([Some(9), None]);
    assert!(queue.video(13, false), "now one is asked for");
    assert!(!queue.video(14, true));
    assert_eq!(queue.times(), [14]);
    assert_eq!((queue.dropped, queue.lost), (5, 5));
}

#[test]
fn what_an_old_session_left_on_its_way_is_no_burden_for_the_next() {
    let mut queue = opened(10);
    queue.video(0, true);
    queue.next();
    queue.set_ahead([Some(0), None]);
    queue.video(100, false);
    queue.restart(false);
    queue.open();
    assert!(!queue.video(101, true));
    assert_eq!(queue.times(), [101]);
}

#[test]
fn what_was_before_the_opening_may_wait_until_it_is_sent() {
    let mut queue = opened(10);
    queue.expect_history(100);
    for time in 0..=105 {
        assert!(!queue.video(time, time % 20 == 0));
    }
    queue.restart(false);
    queue.open();
    assert_eq!(queue.waiting(), 105);
    for _ in 0..110 {
        queue.next();
    }
    queue.video(120, true);
    assert!(queue.video(131, false), "live media waits no longer");
}

#[test]
fn a_new_session_begins_with_the_newest_key_frame_unless_all_is_to_be_sent() {
    for (all, expected) in [(false, [4, 5].as_slice()), (true, &[0, 1, 2, 3, 4, 5])] {
        let mut queue = opened(100);
        for time in 0..6 {
            queue.video(time, time % 2 == 0);
        }
        queue.restart(all);
        queue.open();
        queue.accepted();
        assert_eq!(queue.times(), expected);
        queue.video(6, false);
        queue.restart(all);
        assert!(queue.is_empty());
        assert!(queue.video(7, false));
    }
}

#[test]
fn an_encoder_that_is_late_is_no_slow_uplink_and_the_sound_waits_for_it() {
    let mut queue = sorted(1000 * MS);
    queue.set_latency(Track::Video, 3000 * MS);
    queue.has_video = true;
    let mut sent = Vec::new();
    // 15 pictures a second, three seconds late, and sound each 20 ms.
    for now in (0..10_000).step_by(10) {
        if now % 20 == 0 {
            queue.audio(now * MS);
        }
        let picture = now - 3000;
        if picture >= 0 && picture % 60 == 0 {
            queue.video(picture * MS, picture % 600 == 0);
        }
        sent.extend(queue.all());
    }
    assert_eq!((queue.dropped, queue.waiting()), (0, 0));
    assert!(sent.is_sorted_by_key(|(_, time)| *time), "{sent:?}");
    let of = |track| sent.iter().filter(move |(t, _)| *t == track).count();
    assert_eq!(of(Track::Video), 7000_usize.div_ceil(60));
    assert!(of(Track::Audio) >= 345, "{}", of(Track::Audio));
}

#[test]
fn sound_that_is_late_is_waited_for_and_its_end_is_not() {
    let mut queue = sorted(1000 * MS);
    let mut sent = Vec::new();
    for now in (0..8000).step_by(10) {
        if now % 40 == 0 {
            queue.video(now * MS, now % 400 == 0);
        }
        let sound = now - 1100;
        if (0..4000).contains(&sound) && sound % 20 == 0 {
            queue.audio(sound * MS);
        }
        sent.extend(queue.all());
    }
    assert_eq!(queue.dropped, 0);
    let tail = sent.iter().skip_while(|(_, time)| *time < 1300 * MS);
    assert!(tail.is_sorted_by_key(|(_, time)| *time), "{sent:?}");
    let of = |track| sent.iter().filter(move |(t, _)| *t == track).count();
    assert_eq!(of(Track::Audio), 200);
    // The last ones still wait for it.
    assert!(of(Track::Video) >= 200 - 30, "{}", of(Track::Video));
    queue.end(Track::Audio);
    sent.extend(queue.all());
    assert_eq!(sent.iter().filter(|(t, _)| *t == Track::Video).count(), 200);
}

#[test]
fn a_time_that_goes_back_is_another_session_with_what_belongs_to_it() {
    let mut queue = sorted(1000 * MS);
    for time in [5000, 5040] {
        queue.video(time * MS, time == 5000);
        queue.audio(time * MS);
    }
    queue.video(0, true);
    // Still of the old time.
    queue.audio(5080 * MS);
    queue.audio(0);
    queue.video(40 * MS, false);
    queue.audio(40 * MS);
    assert_eq!(
        queue.times(),
        [5000 * MS, 5000 * MS, 5040 * MS, 5040 * MS, 5080 * MS]
    );
    assert!(matches!(queue.pop(), Next::Renew));
    queue.restart(false);
    assert!(queue.can_open());
    queue.open();
    assert_eq!(queue.times(), [0, 0, 40 * MS, 40 * MS]);
    assert_eq!(queue.dropped, 0);
    // Reordered frames without times of decoding are no jump.
    queue.video(140 * MS, false);
    queue.video(80 * MS, false);
    queue.audio(140 * MS);
    assert_eq!(queue.times().len(), 3);
}

#[test]
fn other_headers_are_another_session_that_begins_with_their_first_frame() {
    let mut queue = sorted(1000 * MS);
    queue.video(0, true);
    for time in [0, 20, 40, 60, 80] {
        queue.audio(time * MS);
    }
    queue.renew(Track::Video);
    queue.video(40 * MS, true);
    assert_eq!(queue.times(), [0, 0, 20 * MS]);
    assert!(matches!(queue.pop(), Next::Renew));
    queue.restart(false);
    queue.open();
    assert_eq!(queue.next(), Some((Track::Video, 40 * MS)));
    assert_eq!(queue.next(), Some((Track::Audio, 40 * MS)));
    assert_eq!(queue.dropped, 0);
}

#[test]
fn sound_that_waits_for_the_key_frame_of_its_session_does_not_keep_it_away() {
    let mut queue = sorted(1000 * MS);
    queue.set_latency(Track::Video, 3000 * MS);
    queue.video(0, true);
    queue.renew(Track::Audio);
    for time in (10..900).step_by(20) {
        queue.audio(time * MS);
    }
    assert!(queue.video(20 * MS, false), "one is asked for");
    for time in (900..2500).step_by(20) {
        queue.audio(time * MS);
    }
    queue.video(40 * MS, true);
    assert_eq!(queue.times(), [0]);
    assert!(matches!(queue.pop(), Next::Renew));
    queue.restart(false);
    queue.open();
    assert_eq!(queue.next(), Some((Track::Video, 40 * MS)));
}

#[test]
fn media_that_can_wait_is_not_dropped_and_never_runs_ahead_of_live_media() {
    let mut queue = sorted(10);
    queue.set_patient(Track::Audio, true);
    queue.video(0, true);
    let mut taken = 0;
    while !queue.is_full(Track::Audio) {
        queue.push(frame(Track::Audio, taken, true), true);
        taken += 1;
    }
    assert_eq!(taken, 11);
    assert_eq!(queue.all(), [(Track::Video, 0), (Track::Audio, 0)]);
    queue.video(5, false);
    assert_eq!(queue.all().len(), 6);
    assert_eq!(queue.dropped, 0);
}

#[test]
fn without_times_the_bytes_are_bounded() {
    let mut queue = opened(i64::MAX);
    for n in 0..200 {
        let mut large = frame(Track::Video, 0, n % 10 == 0);
        large.size = 1 << 20;
        queue.push(large, false);
        let held: usize = queue.lanes.iter().map(|lane| lane.bytes).sum();
        assert!(held <= MAX_BYTES);
    }
}

/// What happens to a queue.
#[derive(Debug, Clone)]
enum Step {
    Push(Track, i64, bool, bool),
    Pop,
    Restart(bool),
    Flush(Track, bool),
    Renew(Track),
    End(Track),
    Ahead(Option<i64>),
    Latency(Track, i64),
    History(i64),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let track = || prop_oneof![Just(Track::Video), Just(Track::Audio)];
    let time = || {
        prop_oneof![
            8 => 0..10_000_000_000i64,
            1 => any::<i64>(),
            1 => prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(-1), Just(0)],
        ]
    };
    prop_oneof![
        8 => (track(), time(), any::<bool>(), any::<bool>())
            .prop_map(|(track, time, key, lossless)| Step::Push(track, time, key, lossless)),
        4 => Just(Step::Pop),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => (track(), any::<bool>()).prop_map(|(track, anew)| Step::Flush(track, anew)),
        1 => track().prop_map(Step::Renew),
        1 => track().prop_map(Step::End),
        1 => prop::option::of(time()).prop_map(Step::Ahead),
        1 => (track(), time()).prop_map(|(track, time)| Step::Latency(track, time)),
        1 => time().prop_map(Step::History),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_in_whatever_order_the_first_frame_is_a_key_frame(
        sorted in any::<bool>(),
        latency in prop_oneof![Just(0), Just(1), Just(1_000_000_000), Just(i64::MAX)],
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut queue = Queue::new(latency);
        queue.sorted = sorted;
        let mut began = false;
        for step in steps {
            match step {
                Step::Push(track, time, key, lossless) => {
                    queue.push(frame(track, time, key), lossless);
                }
                Step::Pop => {
                    if queue.open.is_none() && queue.can_open() {
                        queue.open();
                    }
                    match queue.pop() {
                        Next::Frame(frame) => {
                            let key = frame.key || frame.track == Track::Audio;
                            prop_assert!(key || began, "{frame:?}");
                            began |= frame.track == Track::Video;
                        }
                        Next::Renew => {
                            queue.restart(false);
                            began = false;
                        }
                        Next::Nothing => {}
                    }
                }
                Step::Restart(all) => {
                    queue.restart(all);
                    began = false;
                }
                Step::Flush(track, anew) => queue.flush(track, anew),
                Step::Renew(track) => queue.renew(track),
                Step::End(track) => queue.end(track),
                Step::Ahead(time) => queue.set_ahead([time, None]),
                Step::Latency(track, latency) => queue.set_latency(track, latency),
                Step::History(history) => queue.expect_history(history),
                Step::Reset => queue.reset(),
            }
            prop_assert!(queue.waiting() >= 0 && queue.queued() >= 0);
            prop_assert!(queue.lost <= queue.dropped);
        }
    }
}

#[test]
fn what_a_session_had_that_was_not_accepted_comes_again_in_the_next_one() {
    for accepted in [false, true] {
        let mut queue = sorted(1000);
        queue.restart(false);
        queue.open();
        queue.video(0, true);
        queue.audio(1);
        queue.video(2, false);
        queue.audio(3);
        assert_eq!(queue.times(), [0, 1, 2]);
        assert!(!queue.is_drained(Track::Video));
        if accepted {
            queue.accepted();
        }
        assert_eq!(queue.is_drained(Track::Video), accepted);
        queue.video(4, false);
        queue.restart(false);
        queue.open();
        let again: &[i64] = if accepted { &[] } else { &[0, 1, 2, 3] };
        assert_eq!(queue.times(), again);
        assert_eq!(
            queue.lanes.iter().map(|lane| lane.bytes).sum::<usize>(),
            [5, 0][usize::from(accepted)]
        );
    }
}

#[test]
fn nothing_comes_again_of_what_is_not_wanted_any_more() {
    type Leave = fn(&mut Queue<()>);
    let ways: [Leave; 4] = [
        Queue::clear,
        Queue::reset,
        |queue| queue.flush(Track::Video, false),
        |queue| queue.renew(Track::Video),
    ];
    for leave in ways {
        let mut queue = Queue::new(1000);
        queue.open();
        queue.video(0, true);
        assert_eq!(queue.times(), [0]);
        leave(&mut queue);
        queue.restart(true);
        queue.open();
        assert!(queue.times().is_empty());
        assert_eq!(queue.lanes[0].bytes, 0);
    }
}

#[test]
fn live_media_that_is_too_old_to_be_sent_again_is_not_held() {
    for patient in [false, true] {
        let mut queue = Queue::new(10);
        queue.set_patient(Track::Video, patient);
        queue.open();
        for time in 0..=11 {
            queue.video(time, time == 0);
            assert_eq!(queue.times(), [time]);
        }
        let held = queue.lanes[0].unaccepted.len();
        assert_eq!(held, if patient { 12 } else { 0 });
        queue.video(12, false);
        queue.restart(patient);
        queue.open();
        // Without its beginning the rest has no use.
        assert_eq!(queue.times().len(), if patient { 13 } else { 0 });
    }
}
