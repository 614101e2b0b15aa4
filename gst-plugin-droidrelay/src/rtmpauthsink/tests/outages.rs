// SPDX-License-Identifier: MPL-2.0

//! Whatever goes wrong at whatever step, and how the sink comes back.

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
                gst::MessageView::Progress(progress)
                    if progress.get().0 == gst::ProgressType::Start && attempt(&line) > 1 => {}
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
