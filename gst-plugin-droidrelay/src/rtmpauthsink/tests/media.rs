// SPDX-License-Identifier: MPL-2.0

//! What becomes of the media.

use super::*;

#[test]
fn a_session_begins_with_the_largest_bitrate_and_gives_the_encoder_its_own_back() {
    let server = Server::start(Access::Everybody);
    let line = line(&server, "adaptive-bitrate=true max-bitrate=700");
    let encoders = line.pipeline.iterate_all_by_element_factory_name("x264enc");
    let encoder = encoders.into_iter().flatten().next().unwrap();
    let bitrate = || encoder.property::<u32>("bitrate");
    line.wait(State::Publishing);
    let set = poll(DEADLINE, || (bitrate() == 700).then_some(()));
    assert!(set.is_some(), "{}", bitrate());
    let stats = line.sink.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("target-bitrate"), Ok(700_000));
    line.pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(bitrate(), 2048);
}

fn sessions(server: &Server) -> usize {
    let seen = server.seen().all().into_iter();
    seen.filter(|seen| matches!(seen, Seen::Publish(_))).count()
}

#[test]
fn a_source_that_is_not_live_loses_nothing_up_to_its_end() {
    let server = Server::start(Access::Everybody);
    for (encoder, frames) in [
        ("tune=zerolatency", 300),
        ("rc-lookahead=40 bframes=2", 150),
    ] {
        let mark = server.seen().mark();
        let line = Line::of(&format!(
            "videotestsrc num-buffers={frames} ! video/x-raw,width=64,height=48,framerate=30/1 \
             ! x264enc {encoder} ! rtmpauthsink name=sink sync=false location={}",
            server.url()
        ));
        line.play_to_the_end();
        let ended = |seen: &Seen| *seen == Seen::Ended;
        server.seen().wait(mark, "the end", ended).unwrap();
        let times = times(&server, mark, TagKind::Video);
        assert_eq!(times.len(), frames, "{encoder}");
        assert!(times.is_sorted());
        assert_eq!(
            (line.count("dropped"), line.count("dropped-publishing")),
            (0, 0)
        );
    }
}

#[test]
fn a_source_that_is_not_live_keeps_to_the_clock() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc num-buffers=31 ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    let began = Instant::now();
    line.play_to_the_end();
    assert!(began.elapsed() >= Duration::from_millis(950));
    let ended = |seen: &Seen| *seen == Seen::Ended;
    server.seen().wait(0, "the end", ended).unwrap();
    assert_eq!(times(&server, 0, TagKind::Video).len(), 31);
}

#[test]
fn buffers_that_lack_times_are_published() {
    for (has_dts, what) in [(true, "DTS and no PTS"), (false, "no time at all")] {
        let server = Server::start(Access::Everybody);
        let line = Line::of(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
             ! x264enc tune=zerolatency key-int-max=10 option-string=repeat-headers=1 \
             ! video/x-h264,stream-format=byte-stream ! rtmpauthsink name=sink location={}",
            server.url()
        ));
        let pad = line.sink.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let buffer = info.buffer_mut().unwrap().make_mut();
            buffer.set_pts(None);
            if !has_dts {
                buffer.set_dts(None);
            }
            gst::PadProbeReturn::Ok
        });
        line.play();
        let enough = poll(DEADLINE, || {
            Some(times(&server, 0, TagKind::Video)).filter(|times| times.len() >= 30)
        });
        let enough = enough.unwrap_or_else(|| panic!("{what}: {}", line.error()));
        assert!(enough.is_sorted(), "{what}: {enough:?}");
        assert!(enough[29] - enough[0] >= 500, "{what}: {enough:?}");
    }
}

#[test]
fn a_seek_back_is_a_new_session() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency key-int-max=30 ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    line.play();
    for session in 1..=3 {
        let mark = server.seen().mark();
        let enough = poll(DEADLINE, || {
            let times = times(&server, mark, TagKind::Video);
            (times.len() >= 20 && sessions(&server) == session).then_some(())
        });
        assert!(enough.is_some(), "session {session}: {}", line.error());
        line.pipeline
            .seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO)
            .unwrap();
    }
    // In each of them, time goes forward.
    let mut last = 0;
    for seen in server.seen().all() {
        match seen {
            Seen::Publish(_) => last = 0,
            Seen::Frame(_, time) => {
                assert!(time >= last, "{time} behind {last}");
                last = time;
            }
            _ => {}
        }
    }
}

#[test]
fn sound_beside_an_encoder_with_look_ahead_is_one_session_of_both_sorted_by_time() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc rc-lookahead=40 bframes=0 key-int-max=30 ! queue max-size-time=0 ! sink. \
         audiotestsrc is-live=true samplesperbuffer=1024 ! audio/x-raw,rate=48000,channels=1 \
         ! voaacenc ! queue max-size-time=0 ! sink.audio \
         rtmpauthsink name=sink location={}",
        server.url()
    ));
    line.play();
    let enough = poll(DEADLINE, || {
        let [video, audio] = [TagKind::Video, TagKind::Audio].map(|kind| times(&server, 0, kind));
        (video.len() >= 60 && audio.len() >= 80).then_some((video, audio))
    });
    let (video, audio) = enough.unwrap_or_else(|| panic!("{}", line.error()));
    assert_eq!(sessions(&server), 1);
    assert_eq!(line.count("dropped-publishing"), 0);
    // No picture is missing, and no sound but what the first picture came after.
    let seconds = f64::from(video[video.len() - 1] - video[0]) / 1000.0;
    assert!(
        (video.len() as f64 - 1.0 - 30.0 * seconds).abs() < 2.0,
        "{video:?}"
    );
    let seconds = f64::from(audio[audio.len() - 1] - audio[0]) / 1000.0;
    let expected = 48_000.0 / 1024.0 * seconds;
    assert!(
        (audio.len() as f64 - 1.0 - expected).abs() < 3.0,
        "{audio:?}"
    );
    assert!(audio[0] < video[0] + 100, "{} and {}", audio[0], video[0]);
    let all = server.seen().all().into_iter();
    let all: Vec<u32> = all
        .filter_map(|seen| match seen {
            Seen::Frame(_, time) => Some(time),
            _ => None,
        })
        .collect();
    assert!(all.is_sorted(), "{all:?}");
}

#[test]
fn media_that_is_lost_while_publishing_is_said_once() {
    let server = Server::start(Access::Everybody);
    server.fail(Some((Step::Media, Fault::Stall)));
    let line = Line::of(&format!(
        "videotestsrc is-live=true pattern=snow \
         ! video/x-raw,format=I420,width=640,height=480,framerate=30/1 \
         ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=60000 \
         ! rtmpauthsink name=sink timeout=60 max-latency=100000000 location={}",
        server.url()
    ));
    line.play();
    let bus = line.pipeline.bus().unwrap();
    let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
    let warning = bus.timed_pop_filtered(deadline, &[gst::MessageType::Warning]);
    let warning = warning.expect("nothing is said");
    let gst::MessageView::Warning(warning) = warning.view() else {
        unreachable!()
    };
    assert!(warning.error().matches(gst::ResourceError::Write));
    let lost = line.count("dropped-publishing");
    assert!(lost > 0);
    let more = poll(DEADLINE, || {
        (line.count("dropped-publishing") > lost + 10).then_some(())
    });
    assert!(more.is_some());
    assert!(bus.pop_filtered(&[gst::MessageType::Warning]).is_none());
}
