// SPDX-License-Identifier: MPL-2.0

//! What a closed valve keeps running, keeps, and holds back; an open one whose encoder falls silent
//! without an error, as hardware encoders do.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use gst::prelude::*;

use crate::common::{DEADLINE, count, end, is_key, launch, no_error, start, until};

/// Encoded live video with a key frame every ten frames (1/3 s) into a hot valve.
const HOT: &str = "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=30/1 \
     ! x264enc tune=zerolatency key-int-max=10 ! identity name=encoded \
     ! mqttvalve name=valve standby=hot preroll-time=1 ! fakesink name=end";

#[test]
fn a_hot_valve_begins_with_what_was_before_the_opening() {
    let pipeline = launch(HOT);
    let (encoded, _) = count(&pipeline, "encoded");
    let (_, buffers) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for round in 0..3 {
        let before = encoded.load(Ordering::SeqCst);
        until("more than the history", || {
            encoded.load(Ordering::SeqCst) > before + 60
        });
        while buffers.try_recv().is_ok() {}
        let opened_at = pipeline.current_running_time().unwrap();
        valve.set_property("drop", false);
        let first = buffers.recv_timeout(DEADLINE).unwrap();
        assert!(is_key(&first), "round {round}");
        assert!(first.flags().contains(gst::BufferFlags::DISCONT));
        let segment_start = gst::ClockTime::from_seconds(1000 * 3600);
        let time = |buffer: &gst::Buffer| {
            let pts = buffer.pts().unwrap();
            // x264enc moves its time stamps by 1000 h, and the segment with them.
            pts.checked_sub(segment_start).unwrap_or(pts)
        };
        let history = opened_at.saturating_sub(time(&first)).mseconds();
        // The second that is kept, up to one group more, and a buffer or two of tolerance.
        assert!(
            (900..1900).contains(&history),
            "{history} ms in round {round}"
        );
        // Nothing is missing up to the live ones.
        let mut last = time(&first);
        while last < opened_at + gst::ClockTime::from_mseconds(200) {
            let next = time(&buffers.recv_timeout(DEADLINE).unwrap());
            assert!((next - last).mseconds() <= 34, "{last} {next}");
            last = next;
        }
        valve.set_property("drop", true);
    }
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

#[test]
fn history_comes_faster_than_real_time() {
    let pipeline = launch(HOT);
    let (encoded, _) = count(&pipeline, "encoded");
    let (passed, _) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    until("more than the history", || {
        encoded.load(Ordering::SeqCst) > 60
    });
    let live = encoded.load(Ordering::SeqCst);
    valve.set_property("drop", false);
    until("the history", || passed.load(Ordering::SeqCst) >= 30);
    let meanwhile = encoded.load(Ordering::SeqCst) - live;
    assert!(meanwhile < 15, "{meanwhile} live frames while 30 were sent");
    drop(valve);
    end(pipeline);
}

#[test]
fn a_hot_valve_in_front_of_the_encoder_says_so_and_is_warm() {
    let pipeline =
        launch("videotestsrc is-live=true ! mqttvalve name=valve standby=hot ! fakesink name=end");
    let (_, buffers) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    let warning = pipeline
        .bus()
        .unwrap()
        .timed_pop_filtered(
            gst::ClockTime::from_seconds(DEADLINE.as_secs()),
            &[gst::MessageType::Warning],
        )
        .unwrap();
    let gst::MessageView::Warning(warning) = warning.view() else {
        unreachable!()
    };
    let text = warning.error().to_string();
    assert!(text.contains("behind the encoder"), "{text}");
    until("dropped frames", || {
        let stats = valve.property::<gst::Structure>("stats");
        stats.get::<u64>("dropped").unwrap() > 5
    });
    let opened_at = pipeline.current_running_time().unwrap();
    valve.set_property("drop", false);
    let first = buffers.recv_timeout(DEADLINE).unwrap();
    let age = opened_at.saturating_sub(first.pts().unwrap());
    assert!(age < gst::ClockTime::from_mseconds(500), "{age}");
    drop(valve);
    end(pipeline);
}

/// A camera that fails ends its stream too: that comes while the valve stops it already.
#[test]
fn the_end_of_stream_of_a_camera_that_fails_ends_nothing() {
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=30/1 \
         ! identity name=camera error-after=5 ! identity name=near \
         ! mqttvalve name=valve drop=false ! fakesink name=end async=false",
    );
    let camera = pipeline.by_name("camera").unwrap();
    let (ends, ended) = std::sync::mpsc::channel();
    let came = Arc::new(AtomicU64::new(0));
    // The valve stops the nearest element first: held up there, it cannot be done before the
    // stream has ended.
    let bus = pipeline.bus().unwrap();
    let (seen, weak) = (came.clone(), camera.downgrade());
    let stops = AtomicU64::new(0);
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::StateChanged(change) = message.view()
            && change.old() == gst::State::Playing
            && message.src().is_some_and(|src| src.name() == "near")
            && weak
                .upgrade()
                .is_some_and(|camera| camera.is_locked_state())
        {
            let stop = stops.fetch_add(1, Ordering::SeqCst);
            until("the camera's end of stream", || {
                seen.load(Ordering::SeqCst) > stop
            });
        }
        gst::BusSyncReply::Pass
    });
    let weak = camera.downgrade();
    let is_eos = |info: &gst::PadProbeInfo| {
        info.event()
            .is_some_and(|event| event.type_() == gst::EventType::Eos)
    };
    camera
        .static_pad("src")
        .unwrap()
        .add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if is_eos(info) {
                until("the valve stops the camera", || {
                    weak.upgrade().is_none_or(|camera| camera.is_locked_state())
                });
                came.fetch_add(1, Ordering::SeqCst);
                let _ = ends.send(());
            }
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    let (passed, _) = count(&pipeline, "end");
    start(&pipeline);
    for _ in 0..2 {
        ended.recv_timeout(DEADLINE).unwrap();
    }
    let before = passed.load(Ordering::SeqCst);
    until("pictures after the failures", || {
        passed.load(Ordering::SeqCst) > before
    });
    let mut states = Vec::new();
    // An error, and with the next picture all is well again.
    while !states.ends_with(&["live".to_owned(), "error".into(), "live".into()]) {
        let message = bus
            .timed_pop_filtered(
                gst::ClockTime::from_seconds(DEADLINE.as_secs()),
                &[gst::MessageType::Element, gst::MessageType::Eos],
            )
            .unwrap_or_else(|| panic!("{states:?}"));
        assert_ne!(message.type_(), gst::MessageType::Eos, "{states:?}");
        let state = message.structure().unwrap().get("state").unwrap();
        if states.last() != Some(&state) {
            states.push(state);
        }
    }
    bus.unset_sync_handler();
    drop((bus, camera));
    end(pipeline);
}

#[test]
fn sinks_that_preroll_hold_back_nobody_behind_a_closed_valve() {
    for standby in ["cold", "warm"] {
        let pipeline = launch(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! tee name=t \
             ! queue ! mqttvalve standby={standby} ! videoconvert ! fakesink \
             t. ! queue ! fakesink name=sibling sync=true \
             videotestsrc is-live=true ! fakesink name=stranger sync=true"
        ));
        let (sibling, _) = count(&pipeline, "sibling");
        let (stranger, _) = count(&pipeline, "stranger");
        start(&pipeline);
        until("both to play", || {
            sibling.load(Ordering::SeqCst) > 10 && stranger.load(Ordering::SeqCst) > 10
        });
        assert_eq!(pipeline.current_state(), gst::State::Playing);
        no_error(&pipeline);
        end(pipeline);
    }
}

#[test]
fn a_pipeline_that_is_dropped_while_it_plays_hangs_nobody() {
    let (done, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pipeline = launch("videotestsrc is-live=true ! mqttvalve name=valve ! fakesink");
        let valve = pipeline.by_name("valve").unwrap();
        start(&pipeline);
        let bus = pipeline.bus().unwrap();
        // The pipeline's reference and ours: no job of the valve runs any more.
        until("the valve to rest", || {
            while bus.pop().is_some() {}
            valve.ref_count() == 2
        });
        drop(valve);
        drop(pipeline);
        done.send(()).unwrap();
    });
    dropped.recv_timeout(DEADLINE).unwrap();
}

/// Counts how often `name` is brought to READY.
fn resets(pipeline: &gst::Pipeline, name: &str) -> u64 {
    let bus = pipeline.bus().unwrap();
    std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::StateChanged]))
        .filter(|message| message.src().is_some_and(|src| src.name() == name))
        .filter(|message| match message.view() {
            gst::MessageView::StateChanged(change) => {
                (change.old(), change.current()) == (gst::State::Paused, gst::State::Ready)
            }
            _ => false,
        })
        .count() as u64
}

#[test]
fn an_encoder_for_the_sink_gives_back_what_a_session_needed() {
    for standby in ["cold", "warm"] {
        let pipeline = launch(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=64 \
             ! mqttvalve name=valve standby={standby} ! queue ! x264enc name=encoder tune=zerolatency \
             ! identity name=encoded ! rtmpauthsink location=rtmp://127.0.0.1:1/live/stream"
        ));
        let (encoded, buffers) = count(&pipeline, "encoded");
        let valve = pipeline.by_name("valve").unwrap();
        start(&pipeline);
        for round in 1..=3 {
            let before = encoded.load(Ordering::SeqCst);
            valve.set_property("drop", false);
            until("encoded frames", || {
                encoded.load(Ordering::SeqCst) > before + 5
            });
            let first = buffers.try_iter().next().unwrap();
            assert!(is_key(&first), "{standby}, round {round}");
            valve.set_property("drop", true);
            let mut reset = 0;
            until("the encoder's reset", || {
                reset += resets(&pipeline, "encoder");
                reset > 0
            });
            while buffers.try_recv().is_ok() {}
        }
        no_error(&pipeline);
        drop(valve);
        end(pipeline);
    }
}

#[test]
fn openings_while_the_encoder_is_reset_lose_nothing() {
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=100/1 \
         ! mqttvalve name=valve standby=warm ! queue ! x264enc name=encoder tune=zerolatency \
         ! identity name=encoded ! rtmpauthsink location=rtmp://127.0.0.1:1/live/stream",
    );
    let (encoded, _) = count(&pipeline, "encoded");
    let valve = pipeline.by_name("valve").unwrap();
    let opener = valve.clone();
    // As the encoder comes down, in the thread that brings it down.
    let bus = pipeline.bus().unwrap();
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::StateChanged(change) = message.view()
            && change.current() == gst::State::Ready
            && change.old() == gst::State::Paused
            && message.src().is_some_and(|src| src.name() == "encoder")
        {
            opener.set_property("drop", false);
        }
        gst::BusSyncReply::Pass
    });
    start(&pipeline);
    for _ in 0..3 {
        valve.set_property("drop", false);
        let before = encoded.load(Ordering::SeqCst);
        until("encoded frames", || {
            encoded.load(Ordering::SeqCst) > before + 5
        });
        valve.set_property("drop", true);
        // Opened again by the reset alone.
        until("the opening", || !valve.property::<bool>("drop"));
        let before = encoded.load(Ordering::SeqCst);
        until("frames after the reset", || {
            encoded.load(Ordering::SeqCst) > before + 5
        });
    }
    bus.unset_sync_handler();
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

/// A recorder beside the stream, tied up with what leads on to the sink.
#[test]
fn a_recording_in_a_bin_before_the_sink_is_left_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 \
         ! mqttvalve name=valve ! x264enc name=encoder tune=zerolatency ! h264parse name=parser \
         rtmpauthsink name=sink location=rtmp://127.0.0.1:1/live/stream",
    );
    let inside = format!(
        "mp4mux name=mux ! filesink async=false location={} \
         tee name=t ! queue ! identity t. ! queue ! identity name=recorded ! mux.video_0",
        file.path().display()
    );
    let bin = gst::parse::bin_from_description(&inside, true).unwrap();
    bin.set_property("name", "recorder");
    pipeline.add(&bin).unwrap();
    let element = |name| pipeline.by_name(name).unwrap();
    gst::Element::link_many([&element("parser"), bin.upcast_ref(), &element("sink")]).unwrap();
    let (recorded, _) = count(&pipeline, "recorded");
    let valve = element("valve");
    start(&pipeline);
    for _ in 0..2 {
        let before = recorded.load(Ordering::SeqCst);
        valve.set_property("drop", false);
        until("recorded frames", || {
            recorded.load(Ordering::SeqCst) > before + 5
        });
        valve.set_property("drop", true);
        // What would be reset is so 1 s after the end; no sign tells that it is not.
        std::thread::sleep(std::time::Duration::from_millis(1200));
    }
    assert_eq!(resets(&pipeline, "recorder"), 0);
    no_error(&pipeline);
    drop((valve, bin));
    end(pipeline);
}

#[test]
fn an_encoder_for_a_file_is_left_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 \
         ! mqttvalve name=valve ! x264enc name=encoder tune=zerolatency ! tee name=t \
         ! queue ! rtmpauthsink location=rtmp://127.0.0.1:1/live/stream \
         t. ! queue ! identity name=encoded ! filesink async=false location={}",
        file.path().display()
    ));
    let (encoded, _) = count(&pipeline, "encoded");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for _ in 0..2 {
        let before = encoded.load(Ordering::SeqCst);
        valve.set_property("drop", false);
        until("encoded frames", || {
            encoded.load(Ordering::SeqCst) > before + 5
        });
        valve.set_property("drop", true);
        // What would be reset is so 1 s after the end; no sign tells that it is not.
        std::thread::sleep(std::time::Duration::from_millis(1200));
    }
    assert_eq!(resets(&pipeline, "encoder"), 0);
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

/// What a camera has made is given back before it is closed: its driver would stay open, and
/// libcamerasrc of libcamera 0.0.3 crashes.
#[test]
fn no_frame_is_held_downstream_when_the_camera_is_closed() {
    let pipeline = launch(
        "videotestsrc name=camera is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! mqttvalve name=valve ! queue name=queue max-size-buffers=3 leaky=downstream \
         ! identity sleep-time=100000 ! fakesink name=end async=false",
    );
    let (passed, _) = count(&pipeline, "end");
    let queue = pipeline.by_name("queue").unwrap();
    let (held, seen) = std::sync::mpsc::channel();
    let watched = queue.clone();
    pipeline.bus().unwrap().set_sync_handler(move |_, message| {
        if let gst::MessageView::StateChanged(change) = message.view()
            && message.src().is_some_and(|src| src.name() == "camera")
            && change.current() == gst::State::Null
        {
            let _ = held.send(watched.property::<u32>("current-level-buffers"));
        }
        gst::BusSyncReply::Pass
    });
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for round in 0..3 {
        let before = passed.load(Ordering::SeqCst);
        valve.set_property("drop", false);
        until("a full queue", || {
            passed.load(Ordering::SeqCst) > before
                && queue.property::<u32>("current-level-buffers") == 3
        });
        valve.set_property("drop", true);
        assert_eq!(seen.recv_timeout(DEADLINE), Ok(0), "round {round}");
    }
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
}

/// A frame that came while the camera was being stopped, with the valve open, waited in the sink that
/// the application was just pausing: the application waited for the camera, which waited for the
/// frame.
#[test]
fn a_pause_while_a_failed_camera_is_stopped_hangs_nobody() {
    let pipeline = launch(
        "videotestsrc name=camera is-live=true ! video/x-raw,width=16,height=16,framerate=1000/1 \
         ! mqttvalve name=valve drop=false ! fakesink name=end async=false",
    );
    let (passed, _) = count(&pipeline, "end");
    let camera = pipeline.by_name("camera").unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for round in 0..40u64 {
        let before = passed.load(Ordering::SeqCst);
        until("frames", || passed.load(Ordering::SeqCst) > before + 5);
        gst::element_error!(camera, gst::ResourceError::Read, ["as if unplugged"]);
        // Each time at another moment of its being stopped.
        std::thread::sleep(std::time::Duration::from_micros(round * 50));
        pipeline.set_state(gst::State::Paused).unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        // The next try is due at once after a closing.
        valve.set_property("drop", true);
        valve.set_property("drop", false);
    }
    drop(valve);
    end(pipeline);
}

/// What the stand-in gives before it falls silent.
const GIVEN: u32 = 30;
static STARTS: AtomicU32 = AtomicU32::new(0);

mod silent {
    use super::*;
    use gst_base::subclass::{BaseTransformMode, prelude::*};

    /// An encoder to all appearances. It takes everything, and gives a second's frames after each
    /// start.
    #[derive(Default)]
    pub struct Imp(AtomicU32);

    glib::wrapper! {
        pub struct Encoder(ObjectSubclass<Imp>)
            @extends gst_base::BaseTransform, gst::Element, gst::Object;
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Imp {
        const NAME: &'static str = "TestSilentEncoder";
        type Type = Encoder;
        type ParentType = gst_base::BaseTransform;
    }

    impl ObjectImpl for Imp {}
    impl GstObjectImpl for Imp {}

    impl ElementImpl for Imp {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: std::sync::OnceLock<gst::subclass::ElementMetadata> =
                std::sync::OnceLock::new();
            Some(METADATA.get_or_init(|| {
                let class = "Codec/Encoder/Video";
                gst::subclass::ElementMetadata::new("Encoder", class, "Falls silent", "Nobody")
            }))
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::OnceLock<Vec<gst::PadTemplate>> =
                std::sync::OnceLock::new();
            TEMPLATES.get_or_init(|| {
                let both = [
                    ("sink", gst::PadDirection::Sink),
                    ("src", gst::PadDirection::Src),
                ];
                let caps = gst::Caps::new_empty_simple("video/x-raw");
                both.map(|(name, direction)| {
                    let presence = gst::PadPresence::Always;
                    gst::PadTemplate::new(name, direction, presence, &caps).unwrap()
                })
                .into()
            })
        }
    }

    impl BaseTransformImpl for Imp {
        const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
        const PASSTHROUGH_ON_SAME_CAPS: bool = true;
        const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

        fn start(&self) -> Result<(), gst::ErrorMessage> {
            STARTS.fetch_add(1, Ordering::SeqCst);
            self.0.store(0, Ordering::SeqCst);
            Ok(())
        }

        fn transform_ip_passthrough(
            &self,
            _: &gst::Buffer,
        ) -> Result<gst::FlowSuccess, gst::FlowError> {
            if self.0.fetch_add(1, Ordering::SeqCst) < GIVEN {
                Ok(gst::FlowSuccess::Ok)
            } else {
                Ok(gst_base::BASE_TRANSFORM_FLOW_DROPPED)
            }
        }
    }
}

#[test]
fn an_encoder_that_is_fed_and_gives_nothing_begins_anew_without_the_camera() {
    gst::init().unwrap();
    let kind = silent::Encoder::static_type();
    gst::Element::register(None, "silentenc", gst::Rank::NONE, kind).unwrap();
    // No server is there: that is the sink's business.
    let pipeline = launch(
        "videotestsrc name=camera is-live=true ! video/x-raw,width=64,height=48,framerate=60/1 \
         ! mqttvalve name=valve standby=cold ! queue ! silentenc name=encoder \
         ! x264enc name=out tune=zerolatency ! rtmpauthsink location=rtmp://127.0.0.1:1/live/x",
    );
    let (given, _) = count(&pipeline, "out");
    let given = || given.load(Ordering::SeqCst);
    start(&pipeline);
    let valve = pipeline.by_name("valve").unwrap();
    valve.set_property("drop", false);
    until("it gives what it has", || given() >= u64::from(GIVEN));
    let camera = pipeline.by_name("camera").unwrap();
    until("the camera plays", || {
        camera.current_state() == gst::State::Playing
    });
    let bus = pipeline.bus().unwrap();
    while bus.pop().is_some() {}
    let starts = STARTS.load(Ordering::SeqCst);

    until("it gives again", || given() >= u64::from(GIVEN) * 2);
    assert_eq!(STARTS.load(Ordering::SeqCst), starts + 1);
    let (mut changed, mut told) = (Vec::new(), Vec::new());
    while let Some(message) = bus.pop() {
        let source = message.src().map(|source| source.name().to_string());
        match message.view() {
            gst::MessageView::StateChanged(_) => changed.extend(source),
            gst::MessageView::Warning(warning) => told.push(warning.error().to_string()),
            gst::MessageView::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    assert!(changed.contains(&"encoder".to_owned()), "{changed:?}");
    assert!(!changed.contains(&"camera".to_owned()), "{changed:?}");
    assert!(
        told.iter()
            .any(|text| text.contains("encoder was fed and gave nothing")),
        "{told:?}"
    );
    no_error(&pipeline);
    drop((valve, camera, bus));
    end(pipeline);
}
