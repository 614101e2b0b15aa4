// SPDX-License-Identifier: MPL-2.0

//! Both elements in real pipelines, without any server.

use std::{
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use gst::prelude::*;

use crate::common::{DEADLINE, count, end, init, launch, no_error, start, until};

#[test]
fn a_cold_source_is_touched_only_while_the_valve_is_open() {
    let pipeline =
        launch("videotestsrc name=camera is-live=true ! mqttvalve name=valve ! fakesink name=end");
    let (passed, _) = count(&pipeline, "end");
    let camera = pipeline.by_name("camera").unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    assert_eq!(camera.current_state(), gst::State::Null);
    assert!(valve.property::<bool>("drop"));
    for _ in 0..5 {
        let before = passed.load(Ordering::SeqCst);
        valve.set_property("drop", false);
        until("a buffer", || passed.load(Ordering::SeqCst) > before + 3);
        assert_eq!(camera.current_state(), gst::State::Playing);
        valve.set_property("drop", true);
        until("the release of the camera", || {
            camera.current_state() == gst::State::Null
        });
    }
    no_error(&pipeline);
    drop((camera, valve));
    end(pipeline);
}

/// On a busy machine an encoder that comes up lets the queue before it overflow; what the valve
/// says ahead of the first buffer must not go with what the queue drops.
#[test]
fn the_beginning_of_a_session_outlives_a_queue_that_overflows() {
    let pipeline = launch(
        "videotestsrc name=camera is-live=true ! mqttvalve name=valve \
         ! queue max-size-buffers=1 leaky=downstream ! fakesink name=end sync=false",
    );
    let camera = pipeline.by_name("camera").unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    let end_pad = pipeline.by_name("end").unwrap().static_pad("sink").unwrap();
    let (begun, beginnings) = mpsc::channel();
    let held = Arc::new(AtomicBool::new(false));
    let is_held = held.clone();
    end_pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data {
            let is_session = |it: &gst::StructureRef| it.name() == "droidrelay-session";
            if event.type_() == gst::EventType::Segment {
                until("the encoder's coming up", || {
                    !is_held.load(Ordering::SeqCst)
                });
            } else if event.is_serialized() && event.structure().is_some_and(is_session) {
                begun.send(()).unwrap();
            }
        }
        gst::PadProbeReturn::Ok
    });
    start(&pipeline);
    for _ in 0..2 {
        let passed = || {
            let stats = valve.property::<gst::Structure>("stats");
            stats.get::<u64>("passed").unwrap()
        };
        let before = passed();
        held.store(true, Ordering::SeqCst);
        valve.set_property("drop", false);
        until("a queue that overflows", || passed() > before + 5);
        assert!(beginnings.try_recv().is_err());
        held.store(false, Ordering::SeqCst);
        beginnings.recv_timeout(DEADLINE).unwrap();
        valve.set_property("drop", true);
        until("the release of the camera", || {
            camera.current_state() == gst::State::Null
        });
    }
    no_error(&pipeline);
    drop((camera, valve));
    end(pipeline);
}

#[test]
fn the_first_buffer_of_each_opening_is_discont() {
    let pipeline =
        launch("videotestsrc is-live=true ! mqttvalve name=valve standby=warm ! fakesink name=end");
    let (_, buffers) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for n in 0..3 {
        valve.set_property("drop", false);
        let first = buffers.recv_timeout(DEADLINE).unwrap();
        assert!(
            first.flags().contains(gst::BufferFlags::DISCONT),
            "opening {n}"
        );
        valve.set_property("drop", true);
        // What was on its way when the valve closed.
        let stats = || valve.property::<gst::Structure>("stats");
        let dropped = stats().get::<u64>("dropped").unwrap();
        until("a dropped buffer", || {
            stats().get::<u64>("dropped").unwrap() > dropped
        });
        while buffers.try_recv().is_ok() {}
    }
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

#[test]
fn a_closed_valve_holds_back_no_sibling_of_a_tee() {
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! tee name=t \
         ! queue ! mqttvalve name=valve ! x264enc tune=zerolatency \
         ! rtmpauthsink location=rtmp://127.0.0.1:1/live/stream \
         t. ! queue ! fakesink name=recording",
    );
    let (recorded, _) = count(&pipeline, "recording");
    start(&pipeline);
    until("the recording", || recorded.load(Ordering::SeqCst) > 20);
    let valve = pipeline.by_name("valve").unwrap();
    valve.set_property("drop", false);
    let before = recorded.load(Ordering::SeqCst);
    until("more of the recording", || {
        recorded.load(Ordering::SeqCst) > before + 10
    });
    valve.set_property("drop", true);
    let before = recorded.load(Ordering::SeqCst);
    until("still more of the recording", || {
        recorded.load(Ordering::SeqCst) > before + 10
    });
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

#[test]
fn an_eos_ends_the_pipeline_though_its_source_is_stopped() {
    let pipeline = launch("videotestsrc is-live=true ! mqttvalve ! fakesink");
    start(&pipeline);
    assert!(pipeline.send_event(gst::event::Eos::new()));
    let message = pipeline.bus().unwrap().timed_pop_filtered(
        gst::ClockTime::from_seconds(DEADLINE.as_secs()),
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    assert_eq!(message.unwrap().type_(), gst::MessageType::Eos);
    end(pipeline);
}

#[test]
fn a_camera_that_does_not_open_is_named_and_tried_again_without_ending_the_pipeline() {
    let pipeline =
        launch("v4l2src device=/dev/video-that-is-not-there ! mqttvalve name=valve ! fakesink");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    valve.set_property("drop", false);
    let bus = pipeline.bus().unwrap();
    let fault = loop {
        let message = bus
            .timed_pop_filtered(
                gst::ClockTime::from_seconds(DEADLINE.as_secs()),
                &[gst::MessageType::Element, gst::MessageType::Error],
            )
            .expect("the state is told");
        assert_ne!(message.type_(), gst::MessageType::Error, "{message:?}");
        let structure = message.structure().unwrap();
        if structure.get::<&str>("state") == Ok("error") {
            break structure.get::<String>("last-error").unwrap();
        }
    };
    assert!(fault.contains("video-that-is-not-there"), "{fault}");
    drop(valve);
    end(pipeline);
}

#[test]
fn a_server_that_is_not_there_is_no_error_and_blocks_nobody() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! x264enc tune=zerolatency ! tee name=t \
         ! queue ! rtmpauthsink name=sink location=rtmp://127.0.0.1:{port}/live/stream \
         t. ! queue ! fakesink name=recording"
    ));
    let (recorded, _) = count(&pipeline, "recording");
    let sink = pipeline.by_name("sink").unwrap();
    start(&pipeline);
    until("a second try", || {
        let stats = sink.property::<gst::Structure>("stats");
        stats.get::<u32>("attempt").unwrap() >= 2
    });
    let before = recorded.load(Ordering::SeqCst);
    until("the recording to go on", || {
        recorded.load(Ordering::SeqCst) > before + 10
    });
    let stats = sink.property::<gst::Structure>("stats");
    let error = stats.get::<String>("last-error").unwrap();
    assert!(error.contains("refused"), "{error}");
    no_error(&pipeline);
    drop(sink);
    end(pipeline);
}

/// One that was set in READY, after a location without TLS was checked.
#[cfg(feature = "tls")]
#[test]
fn a_location_with_tls_is_never_published_to_without() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! x264enc tune=zerolatency \
         ! rtmpauthsink name=sink location=rtmp://127.0.0.1:1/live/stream",
    );
    pipeline.set_state(gst::State::Ready).unwrap();
    pipeline
        .by_name("sink")
        .unwrap()
        .set_property("location", format!("rtmps://127.0.0.1:{port}/live/stream"));
    start(&pipeline);
    let mut connection = None;
    until("a connection", || {
        connection = server.accept().ok();
        connection.is_some()
    });
    let (mut connection, _) = connection.unwrap();
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut first = [0];
    std::io::Read::read_exact(&mut connection, &mut first).unwrap();
    // TLS: a record with a handshake. RTMP begins with its version, 3.
    assert_eq!(first, [22]);
    end(pipeline);
}

#[test]
fn bad_settings_fail_at_ready_with_the_value_and_the_remedy() {
    for (description, reason) in [
        (
            "videotestsrc ! mqttvalve broker=http://h ! fakesink",
            "http",
        ),
        ("videotestsrc ! mqttvalve topic=a/# ! fakesink", "a/#"),
        (
            "videotestsrc ! mqttvalve topic=a/b state-topic=a/b ! fakesink",
            "state-topic is \"a/b\", and so is topic",
        ),
        ("videotestsrc ! mqttvalve topic=$SYS/b ! fakesink", "$SYS/b"),
        ("videotestsrc ! x264enc ! rtmpauthsink", "location"),
        (
            "videotestsrc ! x264enc ! rtmpauthsink location=rtmp://h/",
            "app/stream",
        ),
        (
            "videotestsrc ! x264enc ! rtmpauthsink location=rtmp://h/a/b password-file=/nonexistent",
            "/nonexistent",
        ),
    ] {
        let pipeline = launch(description);
        assert!(
            pipeline.set_state(gst::State::Ready).is_err(),
            "{description}"
        );
        let message = pipeline
            .bus()
            .unwrap()
            .pop_filtered(&[gst::MessageType::Error])
            .unwrap();
        let gst::MessageView::Error(error) = message.view() else {
            unreachable!()
        };
        let text = error.error().to_string();
        assert!(text.contains(reason), "{text}");
        end(pipeline);
    }
}

#[test]
fn passwords_cannot_be_read_back_and_urls_read_back_without_them() {
    let pipeline = launch(
        "videotestsrc ! mqttvalve name=valve broker=mqtt://robot:canary-1@h password=canary-2 ! x264enc ! \
         rtmpauthsink name=sink location=rtmp://pub:canary-3@h/live/stream?pass=canary-4 password=canary-5",
    );
    for name in ["valve", "sink"] {
        let element = pipeline.by_name(name).unwrap();
        for property in element.list_properties() {
            if property.flags().contains(glib::ParamFlags::READABLE) {
                let value = format!("{:?}", element.property_value(property.name()));
                assert!(
                    !value.contains("canary"),
                    "{name}.{}: {value}",
                    property.name()
                );
            }
        }
    }
    end(pipeline);
}

#[test]
fn a_text_that_is_not_utf_8_ends_nothing() {
    let pipeline = launch("videotestsrc ! mqttvalve name=valve ! x264enc ! rtmpauthsink name=sink");
    let not_utf_8 = |text: &std::ffi::CStr| {
        let mut value = glib::Value::from_type(glib::Type::STRING);
        // SAFETY: the value is a string's.
        unsafe {
            let value = glib::translate::ToGlibPtrMut::to_glib_none_mut(&mut value).0;
            glib::gobject_ffi::g_value_set_string(value, text.as_ptr());
        }
        value
    };
    for (name, property) in [
        ("valve", "username"),
        ("valve", "password"),
        ("sink", "user"),
    ] {
        let element = pipeline.by_name(name).unwrap();
        element.set_property_from_value(property, &not_utf_8(c"a\xffb"));
    }
    let sink = pipeline.by_name("sink").unwrap();
    assert_eq!(sink.property::<String>("user"), "a\u{fffd}b");
    let valve = pipeline.by_name("valve").unwrap();
    let opened: bool = valve.emit_by_name("start", &[&not_utf_8(c"\xff"), &0u32]);
    assert!(opened);

    // A file's name may be any.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(std::ffi::OsStr::from_bytes(b"a\xffb"));
    std::fs::write(&file, "hunter2").unwrap();
    let path = std::ffi::CString::new(file.as_os_str().as_bytes()).unwrap();
    sink.set_property_from_value("password-file", &not_utf_8(&path));
    sink.set_property("location", "rtmp://127.0.0.1:1/live/stream");
    assert!(sink.set_state(gst::State::Ready).is_ok());
    drop((valve, sink));
    end(pipeline);
}

#[test]
fn muxed_flv_and_byte_stream_link_by_themselves() {
    for line in [
        "videotestsrc num-buffers=5 ! x264enc ! rtmpauthsink location=rtmp://127.0.0.1:1/a/b",
        "videotestsrc num-buffers=5 ! x264enc ! video/x-h264,stream-format=byte-stream ! rtmpauthsink location=rtmp://127.0.0.1:1/a/b",
        "videotestsrc num-buffers=5 ! x264enc ! flvmux streamable=true ! rtmpauthsink location=rtmp://127.0.0.1:1/a/b",
        "videotestsrc num-buffers=5 ! x264enc ! h264parse ! rtmpauthsink location=rtmp://127.0.0.1:1/a/b",
    ] {
        let pipeline = launch(line);
        start(&pipeline);
        let message = pipeline.bus().unwrap().timed_pop_filtered(
            gst::ClockTime::from_seconds(DEADLINE.as_secs()),
            &[gst::MessageType::Eos, gst::MessageType::Error],
        );
        assert_eq!(message.unwrap().type_(), gst::MessageType::Eos, "{line}");
        end(pipeline);
    }
}

#[test]
fn leases_go_on_in_a_new_pipeline_and_the_state_says_so_without_a_broker() {
    let line = "videotestsrc is-live=true ! mqttvalve name=valve ! fakesink name=end";
    let pipeline = launch(line);
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    valve.emit_by_name::<bool>("start", &[&"phone-7", &60u32]);
    valve.emit_by_name::<bool>("start", &[&"motion", &0u32]);
    let leases = valve.property_value("leases");
    drop(valve);
    end(pipeline);

    let pipeline = launch(line);
    let (passed, _) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    valve.set_property_from_value("leases", &leases);
    start(&pipeline);
    until("a buffer", || passed.load(Ordering::SeqCst) > 0);
    let state = || valve.property::<String>("state");
    until("live", || state().contains(r#""state":"live""#));
    assert!(
        state().contains(r#""viewers":["motion","phone-7"]"#),
        "{}",
        state()
    );
    valve.emit_by_name::<bool>("stop", &[&"motion"]);
    assert!(!valve.property::<bool>("drop"), "phone-7 still looks");
    assert!(!state().contains(r#""lease_until":null"#), "{}", state());
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

#[test]
fn a_camera_that_fails_in_a_session_is_live_again_when_it_is_back() {
    let pipeline =
        launch("videotestsrc name=camera is-live=true ! mqttvalve name=valve ! fakesink name=end");
    let (_, buffers) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    let camera = pipeline.by_name("camera").unwrap();
    start(&pipeline);
    valve.set_property("drop", false);
    let says = |word: &str| valve.property::<String>("state").contains(word);
    until("live", || says(r#""state":"live""#));
    gst::element_error!(camera, gst::ResourceError::Read, ["unplugged"]);
    until("the fault", || says("last_error\":\"camera: "));
    until("live again", || says(r#""state":"live""#));
    let mut beginnings = 0;
    until("a new beginning", || {
        let discont = |buffer: &gst::Buffer| buffer.flags().contains(gst::BufferFlags::DISCONT);
        beginnings += buffers.try_iter().filter(discont).count();
        beginnings >= 2
    });
    no_error(&pipeline);
    drop((valve, camera));
    end(pipeline);
}

/// On a busy machine frames flow before the valve has asked the sink what it does about them.
#[test]
fn a_stream_is_not_live_before_the_sink_has_taken_it() {
    let pipeline =
        launch("videotestsrc is-live=true ! mqttvalve name=valve standby=warm ! fakesink name=end");
    let (passed, _) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    let end_pad = pipeline.by_name("end").unwrap().static_pad("sink").unwrap();
    // As a sink that begins to connect when it is wanted.
    end_pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |pad, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data
            && let Some(session) = event.structure()
            && session.name() == "droidrelay-session"
            && session.get("wanted") == Ok(true)
            && !event.is_serialized()
        {
            let connecting = gst::Structure::builder("droidrelay-publish")
                .field("state", "connecting")
                .field("attempt", 0u32)
                .build();
            pad.push_event(gst::event::CustomUpstream::new(connecting));
        }
        gst::PadProbeReturn::Ok
    });
    let (state, states) = mpsc::channel();
    let held = Arc::new(AtomicBool::new(true));
    let is_held = held.clone();
    let bus = pipeline.bus().unwrap();
    bus.set_sync_handler(move |_, message| {
        if let Some(structure) = message.structure()
            && structure.name() == "mqttvalve-state"
        {
            state
                .send(structure.get::<String>("state").unwrap())
                .unwrap();
            until("the end of the pause", || !is_held.load(Ordering::SeqCst));
        }
        gst::BusSyncReply::Pass
    });
    start(&pipeline);
    // It tells of a command that it does not obey, and is held there.
    let refused = valve.emit_by_name::<bool>("start", &[&Some("\n"), &0u32]);
    assert!(!refused);
    assert_eq!(states.recv_timeout(DEADLINE).unwrap(), "idle");
    valve.set_property("drop", false);
    until("frames", || passed.load(Ordering::SeqCst) > 3);
    held.store(false, Ordering::SeqCst);
    assert_eq!(states.recv_timeout(DEADLINE).unwrap(), "starting");
    no_error(&pipeline);
    bus.unset_sync_handler();
    drop((valve, end_pad, bus));
    end(pipeline);
}

/// As a launch file writes a variable that is not set.
#[test]
fn an_empty_text_is_the_same_as_none_for_every_property() {
    init();
    for name in ["mqttvalve", "rtmpauthsink"] {
        let (element, fresh) = (
            gst::ElementFactory::make(name).build().unwrap(),
            gst::ElementFactory::make(name).build().unwrap(),
        );
        let texts = element.list_properties().into_iter().filter(|spec| {
            spec.value_type() == glib::Type::STRING
                && spec.flags().contains(glib::ParamFlags::WRITABLE)
                && !matches!(spec.name(), "name")
        });
        for spec in texts {
            let property = spec.name();
            element.set_property(property, "");
            if spec.flags().contains(glib::ParamFlags::READABLE) {
                let text = |element: &gst::Element| element.property::<Option<String>>(property);
                assert_eq!(text(&element), text(&fresh), "{name} {property}");
            }
        }
    }
    // An empty user or password in a property does not hide the one in the URL, and an empty
    // client id is no fault: the valve comes up.
    let pipeline = launch(
        "fakesrc is-live=true ! mqttvalve broker=mqtt://127.0.0.1:1 client-id=\"\" username=\"\" \
         password=\"\" password-file=\"\" ca-file=\"\" topic=\"\" ! fakesink",
    );
    start(&pipeline);
    no_error(&pipeline);
    end(pipeline);
}
