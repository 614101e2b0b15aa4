// SPDX-License-Identifier: MPL-2.0

use super::*;

fn frame(time: i64, key: bool) -> Frame<Body> {
    Frame {
        track: Track::Video,
        time,
        key,
        size: 0,
        body: Body::default(),
    }
}

fn running() -> MediaPublisher {
    let publisher = MediaPublisher::new();
    publisher.queue(|queue| queue.max_latency = 1_000_000_000);
    publisher.expect(Track::Video, true);
    publisher.set_running(true);
    publisher
}

fn push(publisher: &MediaPublisher, time: i64, key: bool) -> bool {
    publisher.push(frame(time, key), Room::Lossy).needs_key
}

fn set_video(headers: &mut Headers) {
    headers.metadata.video_codec = Some(VideoCodec::H264);
    headers.video = Some(vec![1]);
}

#[test]
fn a_valve_that_is_gone_leaves_no_deaf_sink() {
    type Leave = fn(&MediaPublisher);
    let ways: [Leave; 3] = [
        |publisher| publisher.valve(Track::Video, SessionEvent::Released(3)),
        |publisher| publisher.unlinked(Track::Video),
        |publisher| {
            publisher.set_running(false);
            publisher.set_running(true);
        },
    ];
    for leave in ways {
        for last in [
            SessionEvent::Unwanted(3),
            SessionEvent::Wanted(3),
            SessionEvent::Begins(3, gst::ClockTime::ZERO),
        ] {
            let publisher = running();
            publisher.valve(Track::Video, last);
            leave(&publisher);
            assert!(!publisher.is_wanted(), "{last:?}");
            assert!(publisher.accepts(Track::Video), "{last:?}");
            push(&publisher, 0, true);
            assert!(publisher.is_wanted(), "{last:?}");
        }
    }
}

#[test]
fn without_a_valve_media_is_the_wish() {
    let publisher = running();
    assert!(!publisher.is_wanted());
    assert!(publisher.accepts(Track::Video));
    push(&publisher, 0, true);
    assert!(publisher.is_wanted());
    assert!(publisher.idle_deadline().is_some());
    publisher.drain(Track::Video, Duration::ZERO, Duration::ZERO);
    assert!(!publisher.is_wanted());
}

#[test]
fn with_a_valve_only_media_of_the_wanted_session_counts() {
    let publisher = running();
    publisher.valve(Track::Video, SessionEvent::Wanted(1));
    assert!(publisher.is_wanted());
    assert!(!publisher.accepts(Track::Video));
    publisher.valve(Track::Video, SessionEvent::Begins(1, gst::ClockTime::ZERO));
    assert!(publisher.accepts(Track::Video));
    push(&publisher, 0, true);
    publisher.valve(Track::Video, SessionEvent::Unwanted(1));
    assert!(!publisher.is_wanted());
    assert!(publisher.queue(|queue| queue.is_empty()));
}

#[test]
fn announcements_that_the_stream_overtook_change_nothing() {
    let publisher = running();
    publisher.valve(Track::Video, SessionEvent::Begins(5, gst::ClockTime::ZERO));
    publisher.valve(Track::Video, SessionEvent::Wanted(5));
    assert!(publisher.accepts(Track::Video));
    publisher.valve(Track::Video, SessionEvent::Unwanted(5));
    publisher.valve(Track::Video, SessionEvent::Begins(5, gst::ClockTime::ZERO));
    publisher.valve(Track::Video, SessionEvent::Wanted(5));
    assert!(!publisher.is_wanted());
    publisher.valve(Track::Video, SessionEvent::Begins(7, gst::ClockTime::ZERO));
    publisher.valve(Track::Video, SessionEvent::Wanted(6));
    publisher.valve(Track::Video, SessionEvent::Unwanted(6));
    publisher.valve(Track::Video, SessionEvent::Wanted(7));
    assert!(publisher.accepts(Track::Video));
}

#[test]
fn an_early_session_asks_for_key_frames_but_not_with_every_frame() {
    let publisher = running();
    assert!(!push(&publisher, 0, true));
    assert!(!push(&publisher, 1, false));
    publisher.set_published(true);
    assert!(push(&publisher, 2, false));
    assert!(!push(&publisher, 3, false));
}

fn audio(time: i64) -> Frame<Body> {
    Frame {
        track: Track::Audio,
        ..frame(time, true)
    }
}

#[test]
fn a_session_opens_when_the_headers_and_a_frame_of_all_tracks_are_there() {
    let publisher = running();
    publisher.expect(Track::Audio, true);
    push(&publisher, 0, true);
    publisher.update_headers(Track::Video, set_video);
    push(&publisher, 0, true);
    assert!(publisher.open().is_none());
    publisher.update_headers(Track::Audio, |headers| {
        headers.metadata.audio_codec = Some(droidrelay_rtmp::flv::AudioCodec::Mp3);
    });
    assert!(publisher.open().is_none());
    publisher.push(audio(0), Room::Lossy);
    assert_eq!(publisher.open().unwrap().video, Some(vec![1]));
}

#[test]
fn a_session_waits_for_an_encoder_as_long_as_that_says_it_is_late() {
    let publisher = running();
    publisher.expect(Track::Audio, true);
    publisher.set_upstream(Track::Video, true, Duration::from_secs(3));
    assert_eq!(publisher.opening_deadline(), None);
    let began = Instant::now();
    publisher.push(audio(0), Room::Lossy);
    assert_eq!(publisher.waits_for_other(Track::Audio), Some(Track::Video));
    let deadline = publisher.opening_deadline().unwrap();
    assert!(deadline >= began + Duration::from_secs(3) + TRACK_TIMEOUT);
    push(&publisher, 0, true);
    assert!(publisher.opening_deadline().unwrap() < deadline);
    assert_eq!(publisher.waits_for_other(Track::Audio), None);
}

#[test]
fn a_session_waits_longer_for_a_track_whose_valve_is_open() {
    let publisher = running();
    publisher.expect(Track::Audio, true);
    for track in Track::ALL {
        publisher.valve(track, SessionEvent::Wanted(1));
    }
    publisher.valve(Track::Video, SessionEvent::Begins(1, gst::ClockTime::ZERO));
    let began = Instant::now();
    push(&publisher, 0, true);
    let deadline = publisher.opening_deadline().unwrap();
    assert!(deadline >= began + WANTED_TRACK_TIMEOUT);
    publisher.valve(Track::Audio, SessionEvent::Unwanted(1));
    assert!(publisher.opening_deadline().unwrap() < deadline);
}

#[test]
fn a_session_does_not_outlive_a_pause_that_it_has_not_seen() {
    let publisher = running();
    push(&publisher, 0, true);
    publisher.update_headers(Track::Video, set_video);
    publisher.open().unwrap();
    publisher.set_running(false);
    publisher.set_running(true);
    push(&publisher, 0, true);
    assert!(publisher.is_wanted());
    assert!(matches!(publisher.next().0, Next::Renew));
}

#[test]
fn a_thread_that_waits_for_room_goes_on_when_there_is_some_or_it_is_told_to() {
    let publisher = running();
    publisher.queue(|queue| queue.max_latency = 10);
    publisher.set_upstream(Track::Video, false, Duration::ZERO);
    publisher.update_headers(Track::Video, set_video);
    for time in [0, 10] {
        assert_eq!(publisher.wait_for_room(Track::Video), Room::Lossless);
        publisher.push(frame(time, time == 0), Room::Lossless);
    }
    publisher.open().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| publisher.wait_for_room(Track::Video));
        publisher.next();
        assert_eq!(waits.join().unwrap(), Room::Lossless);
        publisher.push(frame(20, false), Room::Lossless);
        let waits = scope.spawn(|| publisher.wait_for_room(Track::Video));
        publisher.interrupt(Track::Video, true);
        assert_eq!(waits.join().unwrap(), Room::Interrupted);
        publisher.interrupt(Track::Video, false);
        let waits = scope.spawn(|| publisher.wait_for_room(Track::Video));
        publisher.set_publish_state(&PublishState {
            state: PublishPhase::Backoff,
            ..PublishState::default()
        });
        assert_eq!(waits.join().unwrap(), Room::Lossy);
    });
    assert_eq!(publisher.stats().dropped, 0);
}

#[test]
fn the_end_waits_for_what_is_on_its_way_and_only_for_so_long() {
    let publisher = running();
    publisher.update_headers(Track::Video, set_video);
    push(&publisher, 0, true);
    publisher.open().unwrap();
    let long = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let drains = scope.spawn(|| publisher.drain(Track::Video, long, long));
        assert!(matches!(publisher.next().0, Next::Frame(_)));
        assert!(publisher.is_wanted());
        publisher.set_in_flight(false);
        while !drains.is_finished() {
            publisher.set_in_flight(false);
            std::thread::yield_now();
        }
    });
    assert!(!publisher.is_wanted());
    push(&publisher, 1, true);
    assert!(publisher.is_wanted());
    publisher.drain(Track::Video, Duration::from_millis(1), long);
    assert!(!publisher.is_wanted());
}

#[test]
fn media_that_is_lost_is_known_once_a_session() {
    let publisher = running();
    publisher.queue(|queue| queue.max_latency = 10);
    publisher.update_headers(Track::Video, set_video);
    for begin in [0, 1000] {
        publisher.restart_queue();
        push(&publisher, begin, true);
        publisher.open().unwrap();
        publisher.next();
        publisher.set_published(true);
        let late = |time| publisher.push(frame(begin + time, true), Room::Lossy);
        let known = [0, 20, 40].map(|time| late(time).first_loss);
        assert_eq!(known.iter().filter(|known| **known).count(), 1, "{known:?}");
        publisher.queue(Queue::clear);
    }
    assert!(publisher.stats().lost >= 2);
}

#[test]
fn nothing_is_wanted_or_taken_before_the_element_runs() {
    let publisher = MediaPublisher::new();
    publisher.valve(Track::Video, SessionEvent::Wanted(1));
    push(&publisher, 0, true);
    assert!(!publisher.is_wanted());
    assert!(publisher.queue(|queue| queue.is_empty()));
}
