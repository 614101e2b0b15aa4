// SPDX-License-Identifier: MPL-2.0

//! Whatever goes wrong at whatever step, and how the sink comes back; servers that differ from most.

use super::*;

#[test]
fn a_refusal_is_an_error_of_the_pipeline_with_fail_fast_alone() {
    let server = Server::start(Access::Nobody("[ authmod=other ] : ?reason=needauth"));
    for (more, is_error) in [("", false), ("fail-fast=true", true)] {
        let line = line(&server, &format!("credential-mode=rtmp password=x {more}"));
        line.wait(State::Refused);
        let bus = line.pipeline.bus().unwrap();
        // The refusal's own message comes ahead of the error.
        let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
        let wanted = [gst::MessageType::Error, gst::MessageType::Progress];
        let mut error = None;
        while let Some(message) = bus.timed_pop_filtered(deadline, &wanted) {
            match message.view() {
                gst::MessageView::Error(found) => error = Some(found.error()),
                // The next try begins: nothing more is said of the last one.
                // By its field: `Progress::get` of these bindings gives back neither of its texts.
                gst::MessageView::Progress(progress)
                    if progress.structure().unwrap().get("type")
                        == Ok(gst::ProgressType::Start)
                        && attempt(&line) > 1 => {}
                _ => continue,
            }
            break;
        }
        assert_eq!(error.is_some(), is_error, "{more}: {error:?}");
        if let Some(error) = error {
            assert!(error.matches(gst::ResourceError::NotAuthorized), "{error}");
        }
    }
}

/// Whatever goes wrong wherever: the state says why, the pipeline goes on, ends at once if it is
/// told to, and publishes again when it is over.
fn is_outlived(step: Step, fault: Fault) {
    const END: Duration = Duration::from_millis(500);
    let server = Server::start(Access::Everybody);
    let what = format!("{fault:?} at {step:?}");
    let started = || Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
    server.fail(Some((step, fault)));
    let line = started();
    let failed = |mark| {
        let failed = |seen: &Seen| *seen == Seen::Failed;
        server.seen().wait(mark, &what, failed).unwrap();
    };
    failed(0);
    let said = poll(DEADLINE, || {
        Some(line.error()).filter(|error| !error.is_empty())
    });
    let said = said.unwrap_or_else(|| panic!("{what}: nothing is said"));
    let named = match fault {
        Fault::Drop => ["closed", "lost"].iter().any(|word| said.contains(word)),
        Fault::Stall | Fault::Trickle => said.contains("silent") || said.contains("answered"),
        Fault::Garbage => !said.is_empty(),
    };
    assert!(named, "{what}: {said}");
    let bus = line.pipeline.bus().unwrap();
    // The server has got media, or the next try is under way: either way it is not left.
    server.fail(None);
    line.wait(State::Publishing);
    let mark = server.seen().mark();
    let video = server
        .seen()
        .wait(mark, "media", |seen| *seen == Seen::Video);
    assert!(video.is_ok(), "{what}");
    let error = bus.pop_filtered(&[gst::MessageType::Error]);
    assert!(error.is_none(), "{what}: {error:?}");
    drop(line);

    server.fail(Some((step, fault)));
    let mark = server.seen().mark();
    let line = started();
    failed(mark);
    let begin = Instant::now();
    line.pipeline.set_state(gst::State::Null).unwrap();
    assert!(begin.elapsed() < END, "{what}: {:?}", begin.elapsed());
}

#[test]
fn connections_that_close_are_outlived_at_each_step() {
    for step in Step::ALL {
        is_outlived(step, Fault::Drop);
    }
}

/// Not behind the last step: what a silent server's kernel still takes is on its way.
#[test]
fn a_server_that_falls_silent_is_outlived_at_each_step() {
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Media) {
        is_outlived(step, Fault::Stall);
    }
}

#[test]
fn a_server_that_trickles_is_outlived_at_each_step() {
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Media) {
        is_outlived(step, Fault::Trickle);
    }
}

#[test]
fn nonsense_is_outlived_at_each_step() {
    for step in Step::ALL {
        is_outlived(step, Fault::Garbage);
    }
}

#[test]
fn an_outage_after_frames_begins_with_the_shortest_wait() {
    // Media that makes a session stable, and some more.
    const FRAMES: usize = 60;
    let server = Server::start(Access::Everybody);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    let video = |seen: &Seen| *seen == Seen::Video;
    for _ in 0..3 {
        wait_count(&server, server.seen().mark(), FRAMES, video);
        told(&line);
        let mark = server.seen().mark();
        server.fail(Some((Step::Media, Fault::Drop)));
        let failed = |seen: &Seen| *seen == Seen::Failed;
        server.seen().wait(mark, "the outage", failed).unwrap();
        server.fail(None);
        let next_try = poll(DEADLINE, || {
            let backoff = told(&line).into_iter().find(|told| told.0 == "backoff");
            backoff.map(|(_, _, next_try)| next_try)
        });
        assert!(next_try.is_some_and(|wait| wait <= 0.25), "{next_try:?}");
        line.wait(State::Publishing);
    }
}

#[test]
fn a_start_brings_the_next_try_at_once_and_the_wait_is_told_as_it_is() {
    let port = droidrelay_testkit::process::free_port().unwrap();
    let line = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! mqttvalve name=valve drop=false standby=warm ! x264enc tune=zerolatency \
         ! rtmpauthsink name=sink location=rtmp://127.0.0.1:{port}/live/stream"
    ));
    line.play();
    let bus = line.pipeline.bus().unwrap();
    // Told ahead of each wait.
    let wait = poll(DEADLINE, || {
        let message = bus.timed_pop_filtered(
            gst::ClockTime::from_mseconds(100),
            &[gst::MessageType::Element],
        )?;
        let said = message.structure()?;
        let wait = said.get::<f64>("next-try").ok()?;
        (said.name() == "rtmpauthsink-state" && wait > 3.0).then_some(wait)
    });
    let (wait, began) = (wait.unwrap(), Instant::now());
    let tries = attempt(&line);
    let valve = line.pipeline.by_name("valve").unwrap();
    valve.emit_by_name::<bool>("start", &[&Some("phone"), &0u32 as &dyn ToValue]);
    let next = poll(DEADLINE, || (attempt(&line) > tries).then_some(()));
    assert!(next.is_some());
    assert!(began.elapsed().as_secs_f64() < wait / 2.0);
}

/// Whoever is told of one sink's state, and does not return, harms nobody else.
#[test]
fn a_handler_that_does_not_return_holds_up_no_other_session() {
    let server = Server::start(Access::Everybody);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (entered, inside) = std::sync::mpsc::channel();
    let held = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    held.sink.connect_notify(Some("state"), move |_, _| {
        let _ = entered.send(());
        let _ = released.lock().unwrap().recv();
    });
    held.play();
    inside.recv_timeout(DEADLINE).unwrap();
    let other = line(&server, "");
    other.wait(State::Publishing);
    let mark = server.seen().mark();
    let media = |seen: &Seen| *seen == Seen::Video;
    server.seen().wait(mark, "media", media).unwrap();
    drop(release);
    drop(held);
}

#[test]
fn media_starts_at_two_seconds_unless_start_offset_says_otherwise() {
    let server = Server::start(Access::Everybody);
    for (more, expected) in [("", 2000), ("start-offset=false", 0)] {
        let mark = server.seen().mark();
        let _line = line(&server, more);
        let first = |seen: &Seen| matches!(seen, Seen::FirstFrame(_));
        server.seen().wait(mark, "a frame", first).unwrap();
        let seen = server.seen().since(mark);
        assert!(seen.contains(&Seen::FirstFrame(expected)), "{seen:?}");
    }
}

/// Waits for a second session; gives the mark ahead of it.
fn begin_anew(line: &Line, server: &Server) -> usize {
    let mark = server.seen().mark();
    line.play_anew();
    // Video of the session before may still be on its way.
    let again = server.seen().wait(mark, "a second session", publish);
    again.unwrap();
    mark
}

#[test]
fn a_server_that_takes_no_pipelined_commands_is_published_to_at_once_and_remembered() {
    for quirk in [
        Quirk::EatsWithC2,
        Quirk::ClosesOnHaste(Step::Connect),
        Quirk::ClosesOnHaste(Step::CreateStream),
        Quirk::ClosesOnHaste(Step::Publish),
        Quirk::LosesHaste(Step::Connect),
        Quirk::LosesHaste(Step::CreateStream),
        Quirk::CountsFrom(5),
    ] {
        let server = Server::quirky(quirk.clone());
        let line = Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
        let video = |seen: &Seen| *seen == Seen::Video;
        server.seen().wait(0, "video", video).unwrap();
        line.wait(State::Publishing);
        let states: Vec<_> = told(&line).into_iter().map(|told| told.0).collect();
        assert!(
            !states
                .iter()
                .any(|state| state == "backoff" || state == "refused"),
            "{quirk:?}: {states:?}"
        );
        assert!(server.seen().all().contains(&Seen::Hasty), "{quirk:?}");

        let mark = begin_anew(&line, &server);
        let seen = server.seen().since(mark);
        assert!(!seen.contains(&Seen::Hasty), "{quirk:?}: {seen:?}");
        assert_eq!(connects(&server, mark), 1, "{quirk:?}");
    }
}

#[test]
fn a_server_that_refuses_in_every_manner_is_asked_once_for_each_try_and_is_not_slower_afterwards() {
    let server = Server::start(Access::Everybody);
    server.fail(Some((Step::Publish, Fault::Drop)));
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    let failed = |seen: &Seen| *seen == Seen::Failed;
    wait_count(&server, 0, 3, failed);
    server.fail(None);
    line.wait(State::Publishing);
    // The first try in two ways, each other one in one.
    let refused = told(&line).into_iter().filter(|told| told.0 == "refused");
    let failures = server.seen().times(0, failed).len();
    assert_eq!(refused.count(), failures - 1);

    let mark = server.seen().mark();
    server.set_quirk(Some(Quirk::LosesHaste(Step::Publish)));
    line.play_anew();
    let hasty = |seen: &Seen| *seen == Seen::Hasty;
    server.seen().wait(mark, "pipelined again", hasty).unwrap();
}

/// Some servers answer late, so that passwords are not tried out: asked in another manner they do
/// the same, and a wait that is too short never learns of it.
#[test]
fn a_server_that_takes_its_time_to_refuse_is_heard_and_asked_once_a_try() {
    let server = Server::quirky(Quirk::DeniesAfter(Duration::from_secs(3)));
    let line = Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
    line.wait(State::Refused);
    assert_eq!(server.seen().times(0, publish).len(), 1);
    let error = line.error();
    assert!(error.contains("refuses the credentials"), "{error}");
    let states: Vec<_> = told(&line).into_iter().map(|told| told.0).collect();
    assert!(!states.iter().any(|state| state == "backoff"), "{states:?}");
}

/// What a server gets ahead of its acceptance, and does not accept, the next connection begins with:
/// neither the first group of pictures nor the end of a stream is lost.
#[test]
fn no_frame_is_lost_to_a_connection_that_was_not_accepted() {
    const FRAMES: usize = 60;
    for quirk in [
        Quirk::EatsWithC2,
        Quirk::ClosesOnHaste(Step::Connect),
        Quirk::ClosesOnHaste(Step::Publish),
    ] {
        for source in ["", "is-live=true"] {
            let server = Server::quirky(quirk.clone());
            let line = Line::of(&format!(
                "videotestsrc num-buffers={FRAMES} {source} \
                 ! video/x-raw,width=64,height=48,framerate=30/1 \
                 ! x264enc tune=zerolatency key-int-max=1000 \
                 ! rtmpauthsink name=sink timeout=1 max-latency=3000000000 location={}",
                server.url()
            ));
            line.play_to_the_end();
            let ended = |seen: &Seen| *seen == Seen::Ended;
            server.seen().wait(0, "the end", ended).unwrap();
            let times = times(&server, 0, TagKind::Video);
            assert!(times.is_sorted(), "{quirk:?} {source}: {times:?}");
            assert_eq!(times.len(), FRAMES, "{quirk:?} {source}");
            assert_eq!(line.count("dropped"), 0, "{quirk:?} {source}");
        }
    }
}

#[test]
fn h265_is_published_to_a_server_that_does_not_know_its_announcement() {
    for quirk in [Quirk::ClosesOnFourCcList, Quirk::IgnoresFourCcList] {
        let server = Server::quirky(quirk.clone());
        let sink = format!("rtmpauthsink location={} timeout=1", server.url());
        let line = Line::encoded_by("x265enc tune=zerolatency", &sink);
        let video = |seen: &Seen| *seen == Seen::Video;
        server.seen().wait(0, "video", video).unwrap();
        line.wait(State::Publishing);
        let mark = begin_anew(&line, &server);
        assert_eq!(connects(&server, mark), 1, "{quirk:?}");
    }
}

#[test]
fn sessions_that_end_as_soon_as_they_are_accepted_are_a_refusal_after_three() {
    let server = Server::quirky(Quirk::ClosesOncePublished);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    assert_eq!(server.seen().times(0, publish).len(), 3);
    let error = line.error();
    assert!(
        error.contains("3 times in a row") && error.contains("stream key"),
        "{error}"
    );
    server.set_quirk(None);
    line.wait(State::Publishing);

    let server = Server::quirky(Quirk::ClosesAndFails);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    wait_count(&server, 0, 4, publish);
    let told = told(&line);
    assert!(!told.iter().any(|told| told.0 == "refused"), "{told:?}");
}

#[test]
fn a_rejected_connection_is_not_always_the_password() {
    let server = Server::quirky(Quirk::HasNoSuchApplication);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    let error = line.error();
    assert!(
        error.contains("application (live)") && error.contains("No such scope"),
        "{error}"
    );
    assert!(!error.contains("refuses the credentials"), "{error}");
}

#[test]
fn a_redirect_is_followed_once() {
    let other = Server::start(Access::Everybody);
    let url = other.url().replace("/live/stream", "/other");
    let server = Server::quirky(Quirk::Redirects(url));
    let line = Line::start(&format!("rtmpauthsink location={}?x=1", server.url()));
    let video = |seen: &Seen| *seen == Seen::Video;
    other.seen().wait(0, "video", video).unwrap();
    line.wait(State::Publishing);
    let seen = other.seen().all();
    assert!(seen.contains(&Seen::Connect("other".into())), "{seen:?}");
    assert!(
        seen.contains(&Seen::Publish("stream?x=1".into())),
        "{seen:?}"
    );
    assert_eq!(connects(&server, 0), 1);
    drop(line);

    other.set_quirk(Some(Quirk::Redirects(server.url())));
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    assert!(line.error().contains("redirects again"), "{}", line.error());
}

#[test]
fn a_server_that_needs_no_offset_gets_none_once_it_is_known() {
    for (version, expected) in [
        (Some("FMS/3,0,1,123"), 0),
        (Some("LNX 9,0,124,2"), 2000),
        (None, 2000),
    ] {
        let server = Server::start(Access::Everybody);
        server.call_itself(version);
        let line = line(&server, "");
        line.wait(State::Publishing);
        line.pipeline.set_state(gst::State::Ready).unwrap();
        let mark = server.seen().mark();
        line.play();
        let first = |seen: &Seen| matches!(seen, Seen::FirstFrame(_));
        let (_, first) = server.seen().wait(mark, "a frame", first).unwrap();
        assert_eq!(first, Seen::FirstFrame(expected), "{version:?}");
    }
}
