// SPDX-License-Identifier: MPL-2.0

//! What a valve does with the elements around it, whatever order things happen in.

use std::sync::atomic::Ordering;

use droidrelay_testkit::servers::relay::{Kind, Relay};
use gst::prelude::*;

use crate::common::{DEADLINE, count, end, init, launch, no_error, start, until};

fn make(factory: &str, name: &str) -> gst::Element {
    let element = gst::ElementFactory::make(factory).name(name);
    element.build().unwrap()
}

/// A live camera.
fn camera(name: &str) -> gst::Element {
    let camera = make("videotestsrc", name);
    camera.set_property("is-live", true);
    camera
}

fn is_held(element: &gst::Element) -> bool {
    element.is_locked_state() && target(element) == gst::State::Null
}

fn target(element: &gst::Element) -> gst::State {
    let (_, current, pending) = element.state(gst::ClockTime::ZERO);
    match pending {
        gst::State::VoidPending => current,
        pending => pending,
    }
}

fn says(valve: &gst::Element, word: &str) -> bool {
    valve
        .property::<Option<String>>("state")
        .is_some_and(|state| state.contains(word))
}

/// The text of the next warning.
fn warning(pipeline: &gst::Pipeline) -> String {
    let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
    let bus = pipeline.bus().unwrap();
    let kinds = [gst::MessageType::Warning, gst::MessageType::Error];
    let message = bus.timed_pop_filtered(deadline, &kinds).expect("a warning");
    match message.view() {
        gst::MessageView::Warning(warning) => warning.error().to_string(),
        other => panic!("{other:?}"),
    }
}

const LINE: &str = "videotestsrc is-live=true name=camera \
     ! video/x-raw,width=64,height=64,framerate=30/1 ! queue ! mqttvalve name=valve \
     ! fakesink name=end";

#[test]
fn a_start_that_races_with_state_changes_leaves_the_camera_where_the_pipeline_is() {
    use gst::State::{Null, Paused, Playing, Ready};
    let pipeline = launch(LINE);
    let (passed, _) = count(&pipeline, "end");
    let (camera, valve) = (
        pipeline.by_name("camera").unwrap(),
        pipeline.by_name("valve").unwrap(),
    );
    for round in 0..60u64 {
        let states: &[gst::State] = match round % 4 {
            0 => &[Ready, Playing],
            1 => &[Playing, Paused, Playing],
            2 => &[Paused, Playing],
            _ => &[Playing, Ready, Playing, Paused],
        };
        let opener = valve.clone();
        let opens = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_micros(round * 50));
            opener.emit_by_name::<bool>("start", &[&None::<String>, &0u32]);
        });
        for state in states {
            pipeline.set_state(*state).unwrap();
        }
        opens.join().unwrap();
        let last = *states.last().unwrap();
        until("the camera at the pipeline's target", || {
            target(&camera) == last
        });
        if last == Playing {
            let before = passed.load(Ordering::SeqCst);
            until("frames", || passed.load(Ordering::SeqCst) > before + 1);
        }
        // A sink in PAUSED holds the frame that it has, and with it the camera's thread.
        start(&pipeline);
        valve.emit_by_name::<bool>("stop", &[&None::<String>]);
        until("a closed camera", || is_held(&camera));
        no_error(&pipeline);
        pipeline.set_state(Null).unwrap();
        assert!(!camera.is_locked_state());
    }
    drop((camera, valve));
    end(pipeline);
}

#[test]
fn a_camera_that_was_opened_before_the_pipeline_is_closed() {
    let pipeline = launch(LINE);
    let camera = pipeline.by_name("camera").unwrap();
    camera.set_state(gst::State::Ready).unwrap();
    start(&pipeline);
    until("a closed camera", || is_held(&camera));
    // Nor does it stay open when somebody opens it later.
    camera.set_state(gst::State::Ready).unwrap();
    until("a closed camera", || is_held(&camera));
    drop(camera);
    end(pipeline);
}

/// Puts a valve between `camera` and a new sink `end`, in the place of the sink `first`.
fn link_valve(pipeline: &gst::Pipeline, camera: &gst::Element) -> gst::Element {
    let (valve, sink) = (make("mqttvalve", "valve"), make("fakesink", "end"));
    sink.set_property("async", false);
    pipeline.add_many([&valve, &sink]).unwrap();
    valve.link(&sink).unwrap();
    let first = pipeline.by_name("first").unwrap();
    for element in [&sink, &valve] {
        element.sync_state_with_parent().unwrap();
    }
    // What it pushes meanwhile would end the camera.
    let src = camera.static_pad("src").unwrap();
    let (sender, blocked) = std::sync::mpsc::channel();
    let probe = src.add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |_, _| {
        let _ = sender.send(());
        gst::PadProbeReturn::Ok
    });
    blocked.recv_timeout(DEADLINE).unwrap();
    camera.unlink(&first);
    first.set_state(gst::State::Null).unwrap();
    pipeline.remove(&first).unwrap();
    camera.link(&valve).unwrap();
    src.remove_probe(probe.unwrap());
    valve
}

#[test]
fn a_camera_that_is_linked_while_the_pipeline_plays_is_closed() {
    let pipeline = launch("videotestsrc is-live=true name=camera ! fakesink name=first");
    let (seen, _) = count(&pipeline, "first");
    start(&pipeline);
    until("frames", || seen.load(Ordering::SeqCst) > 2);
    let camera = pipeline.by_name("camera").unwrap();
    let valve = link_valve(&pipeline, &camera);
    until("a closed camera", || is_held(&camera));
    assert!(says(&valve, r#""standby":"cold""#));
    let (passed, _) = count(&pipeline, "end");
    valve.set_property("drop", false);
    until("frames", || passed.load(Ordering::SeqCst) > 2);
    no_error(&pipeline);
    drop((camera, valve));
    end(pipeline);
}

#[test]
fn a_camera_that_is_replaced_while_closed_is_the_one_that_is_closed_and_started() {
    let pipeline = launch(LINE);
    let (passed, _) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    let old = pipeline.by_name("camera").unwrap();
    start(&pipeline);
    until("a closed camera", || is_held(&old));
    let behind = old.static_pad("src").unwrap().peer().unwrap();
    pipeline.remove(&old).unwrap();
    assert!(!old.is_locked_state());
    let new = camera("new");
    pipeline.add(&new).unwrap();
    new.static_pad("src").unwrap().link(&behind).unwrap();
    new.sync_state_with_parent().unwrap();
    until("a closed camera", || is_held(&new));
    valve.set_property("drop", false);
    until("frames", || passed.load(Ordering::SeqCst) > 2);
    assert_eq!(target(&new), gst::State::Playing);
    assert_eq!(target(&old), gst::State::Null);
    no_error(&pipeline);

    // In a pipeline of its own it is like any other.
    let other = gst::Pipeline::new();
    let sink = make("fakesink", "end");
    other.add_many([&old, &sink]).unwrap();
    old.link(&sink).unwrap();
    let (seen, _) = count(&other, "end");
    start(&other);
    until("frames of the old camera", || {
        seen.load(Ordering::SeqCst) > 2
    });
    drop((valve, new, old, sink, behind));
    end(other);
    end(pipeline);
}

#[test]
fn what_cannot_be_stopped_is_left_alone_and_named() {
    let in_bin = |inside: &str| {
        let pipeline = launch("mqttvalve name=valve ! fakesink name=end");
        let bin = gst::parse::bin_from_description(inside, true).unwrap();
        bin.set_property("name", "box");
        pipeline.add(&bin).unwrap();
        bin.link(&pipeline.by_name("valve").unwrap()).unwrap();
        pipeline
    };
    let locked = launch(LINE);
    locked.by_name("camera").unwrap().set_locked_state(true);
    let cases = [
        (
            "holds a sink",
            in_bin("videotestsrc is-live=true ! tee name=t ! queue ! fakesink t. ! queue"),
        ),
        ("not live", in_bin("videotestsrc ! identity sync=true")),
        (
            "pads as it runs",
            in_bin("videotestsrc is-live=true ! x264enc tune=zerolatency ! decodebin ! queue"),
        ),
        (
            "pads as it runs",
            in_bin("rtspsrc location=rtsp://127.0.0.1:1/none ! rtph264depay"),
        ),
        ("locked", locked),
        (
            "branches",
            launch(
                "videotestsrc is-live=true ! tee name=t ! queue ! mqttvalve name=valve ! fakesink name=end t. ! queue ! fakesink",
            ),
        ),
        (
            "valve too",
            launch(
                "videotestsrc is-live=true ! mqttvalve drop=false ! queue ! mqttvalve name=valve ! fakesink name=end",
            ),
        ),
    ];
    for (reason, pipeline) in cases {
        let valve = pipeline.by_name("valve").unwrap();
        start(&pipeline);
        let text = warning(&pipeline);
        assert!(text.contains("warm") && text.contains(reason), "{text}");
        assert!(says(&valve, r#""standby":"warm""#), "{reason}");
        let upstream = valve.static_pad("sink").unwrap().peer().unwrap();
        let upstream = upstream.parent_element().unwrap();
        assert!(!upstream.is_locked_state(), "{reason}");
        assert_eq!(target(&upstream), gst::State::Playing, "{reason}");
        if reason == "locked" {
            let camera = pipeline.by_name("camera").unwrap();
            assert!(camera.is_locked_state());
            assert_eq!(target(&camera), gst::State::Null);
            camera.set_locked_state(false);
        }
        drop((valve, upstream));
        end(pipeline);
    }
}

#[test]
fn a_bin_around_a_camera_alone_is_stopped_as_one() {
    let pipeline = launch("mqttvalve name=valve ! fakesink name=end");
    let bin =
        gst::parse::bin_from_description("videotestsrc is-live=true name=camera ! queue", true)
            .unwrap();
    pipeline.add(&bin).unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    bin.link(&valve).unwrap();
    let (passed, _) = count(&pipeline, "end");
    let camera = pipeline.by_name("camera").unwrap();
    start(&pipeline);
    for _ in 0..2 {
        until("a closed camera", || {
            is_held(bin.upcast_ref()) && target(&camera) == gst::State::Null
        });
        let before = passed.load(Ordering::SeqCst);
        valve.set_property("drop", false);
        until("frames", || passed.load(Ordering::SeqCst) > before + 2);
        valve.set_property("drop", true);
    }
    no_error(&pipeline);
    drop((bin, valve, camera));
    end(pipeline);
}

#[test]
fn a_camera_that_is_missing_at_the_start_of_an_open_valve_is_tried_again() {
    for drop in ["true", "false"] {
        let pipeline = launch(&format!(
            "v4l2src name=camera device=/dev/video-that-is-not-there \
             ! mqttvalve name=valve drop={drop} ! fakesink videotestsrc is-live=true ! fakesink name=sibling"
        ));
        let (seen, _) = count(&pipeline, "sibling");
        let valve = pipeline.by_name("valve").unwrap();
        let rounds = if drop == "false" { 2 } else { 1 };
        for _ in 0..rounds {
            start(&pipeline);
            valve.set_property("drop", false);
            until("the fault", || {
                says(&valve, r#""state":"error""#) && says(&valve, "video-that-is-not-there")
            });
            let before = seen.load(Ordering::SeqCst);
            until("the others to go on", || {
                seen.load(Ordering::SeqCst) > before + 2
            });
            no_error(&pipeline);
            // As after an error of another element, with the lease held.
            pipeline.set_state(gst::State::Null).unwrap();
        }
        std::mem::drop(valve);
        end(pipeline);
    }
}

#[test]
fn another_standby_counts_while_the_pipeline_plays() {
    let pipeline = launch(LINE);
    let (camera, valve) = (
        pipeline.by_name("camera").unwrap(),
        pipeline.by_name("valve").unwrap(),
    );
    start(&pipeline);
    until("a closed camera", || is_held(&camera));
    for _ in 0..2 {
        valve.set_property_from_str("standby", "warm");
        until("a camera that runs", || {
            target(&camera) == gst::State::Playing && !camera.is_locked_state()
        });
        until("warm", || says(&valve, r#""standby":"warm""#));
        let dropped = || {
            valve
                .property::<gst::Structure>("stats")
                .get::<u64>("dropped")
                .unwrap()
        };
        let before = dropped();
        until("dropped frames", || dropped() > before + 2);
        valve.set_property_from_str("standby", "cold");
        until("a closed camera", || is_held(&camera));
        until("cold", || says(&valve, r#""standby":"cold""#));
    }
    no_error(&pipeline);
    drop((camera, valve));
    end(pipeline);
}

#[test]
fn a_closed_valve_holds_up_no_other_input_of_a_mixer_or_selector() {
    for line in [
        "compositor name=m ! fakesink name=end videotestsrc is-live=true ! m. \
         videotestsrc is-live=true ! mqttvalve name=valve ! m.",
        "audiomixer name=m ! fakesink name=end audiotestsrc is-live=true ! m. \
         audiotestsrc is-live=true ! mqttvalve name=valve ! m.",
        "input-selector name=m ! fakesink name=end videotestsrc is-live=true ! m.sink_0 \
         videotestsrc is-live=true ! mqttvalve name=valve ! m.sink_1",
    ] {
        let pipeline = launch(line);
        let (seen, _) = count(&pipeline, "end");
        start(&pipeline);
        until(line, || seen.load(Ordering::SeqCst) > 10);
        let valve = pipeline.by_name("valve").unwrap();
        valve.set_property("drop", false);
        until("live", || says(&valve, r#""state":"live""#));
        valve.set_property("drop", true);
        let before = seen.load(Ordering::SeqCst);
        until(line, || seen.load(Ordering::SeqCst) > before + 10);
        no_error(&pipeline);
        drop(valve);
        end(pipeline);
    }
}

#[test]
fn an_open_warm_valve_is_live_only_where_its_source_is() {
    let pipeline = launch(
        "videotestsrc num-buffers=10 ! mqttvalve name=valve standby=warm drop=false ! fakesink name=end",
    );
    assert_eq!(
        pipeline.set_state(gst::State::Paused),
        Ok(gst::StateChangeSuccess::Async)
    );
    let (result, state, _) = pipeline.state(gst::ClockTime::from_seconds(DEADLINE.as_secs()));
    assert_eq!(result, Ok(gst::StateChangeSuccess::Success));
    assert_eq!(state, gst::State::Paused);
    let sink = pipeline.by_name("end").unwrap();
    assert!(sink.property::<bool>("async"));
    // Closed it has nothing for a sink to wait for, and no longer than it is there.
    let valve = pipeline.by_name("valve").unwrap();
    valve.set_property("drop", true);
    until("a sink that does not wait", || {
        !sink.property::<bool>("async")
    });
    assert_eq!(
        pipeline.set_state(gst::State::Null),
        Ok(gst::StateChangeSuccess::Success)
    );
    assert!(sink.property::<bool>("async"));
    drop((sink, valve));
    end(pipeline);
}

/// A bin that waits for its sink to preroll, as playbin's does, must not be told that none will.
#[test]
fn an_open_warm_valve_in_the_sink_of_a_player_lets_it_play_to_the_end() {
    let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
    let plays_to_the_end = |pipeline: gst::Pipeline| {
        start(&pipeline);
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = pipeline.bus().unwrap().timed_pop_filtered(deadline, &kinds);
        assert_eq!(message.map(|it| it.type_()), Some(gst::MessageType::Eos));
        end(pipeline);
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    plays_to_the_end(launch(&format!(
        "videotestsrc num-buffers=10 ! video/x-raw,width=64,height=64 ! jpegenc ! avimux \
         ! filesink location={}",
        file.path().display()
    )));
    let player = launch(&format!(
        "playbin name=player uri=file://{}",
        file.path().display()
    ));
    let sink = "mqttvalve drop=false standby=warm ! fakesink sync=true";
    let sink = gst::parse::bin_from_description(sink, true).unwrap();
    player.set_property("video-sink", &sink);
    drop(sink);
    plays_to_the_end(player);
}

#[test]
fn a_clock_that_stops_with_its_camera_is_not_offered() {
    let pipeline =
        launch("audiotestsrc is-live=true name=camera ! mqttvalve name=valve ! fakesink");
    let camera = pipeline.by_name("camera").unwrap();
    camera.set_element_flags(gst::ElementFlags::PROVIDE_CLOCK);
    start(&pipeline);
    assert!(
        !camera
            .element_flags()
            .contains(gst::ElementFlags::PROVIDE_CLOCK)
    );
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(
        camera
            .element_flags()
            .contains(gst::ElementFlags::PROVIDE_CLOCK)
    );
    drop(camera);
    end(pipeline);
}

/// A live source with a clock, as a sound card's is.
mod clocked {
    use gst::subclass::prelude::*;
    use gst_base::{prelude::*, subclass::prelude::*};

    glib::wrapper! {
        pub struct Clocked(ObjectSubclass<Source>)
            @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object;
    }

    #[derive(Default)]
    pub struct Source {
        clock: std::sync::OnceLock<gst::Clock>,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Source {
        const NAME: &'static str = "TestClockedSource";
        type Type = Clocked;
        type ParentType = gst_base::PushSrc;
    }

    impl ObjectImpl for Source {
        fn constructed(&self) {
            self.parent_constructed();
            self.obj().set_live(true);
            let flag = gst::ElementFlags::PROVIDE_CLOCK;
            self.obj().set_element_flags(flag);
        }
    }

    impl GstObjectImpl for Source {}

    impl ElementImpl for Source {
        fn provide_clock(&self) -> Option<gst::Clock> {
            let card = || {
                let clock = glib::Object::builder::<gst::SystemClock>();
                clock.property("name", "card").build().upcast()
            };
            Some(self.clock.get_or_init(card).clone())
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::OnceLock<Vec<gst::PadTemplate>> =
                std::sync::OnceLock::new();
            TEMPLATES.get_or_init(|| {
                let (any, always) = (gst::Caps::new_any(), gst::PadPresence::Always);
                let src = gst::PadDirection::Src;
                vec![gst::PadTemplate::new("src", src, always, &any).unwrap()]
            })
        }
    }

    impl BaseSrcImpl for Source {}

    impl PushSrcImpl for Source {
        fn create(
            &self,
            _: Option<&mut gst::BufferRef>,
        ) -> Result<gst_base::subclass::base_src::CreateSuccess, gst::FlowError> {
            // A card's pace.
            std::thread::sleep(std::time::Duration::from_millis(10));
            let buffer = gst::Buffer::with_size(1).unwrap();
            Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(
                buffer,
            ))
        }
    }
}

#[test]
fn a_camera_whose_clock_the_pipeline_has_already_is_named_once() {
    init();
    let pipeline = gst::Pipeline::new();
    pipeline.add(&make("fakesink", "first")).unwrap();
    let camera: clocked::Clocked = glib::Object::builder().property("name", "camera").build();
    let camera = camera.upcast::<gst::Element>();
    pipeline.add(&camera).unwrap();
    camera.link(&pipeline.by_name("first").unwrap()).unwrap();
    start(&pipeline);
    until("the camera's clock", || {
        pipeline.clock().is_some_and(|clock| clock.name() == "card")
    });
    let valve = link_valve(&pipeline, &camera);
    until("a closed camera", || is_held(&camera));
    let text = warning(&pipeline);
    assert!(
        text.contains("camera provides the pipeline's clock") && text.contains("CLOCK_LOST"),
        "{text}"
    );
    for drop in [false, true] {
        valve.set_property("drop", drop);
        until("the camera", || is_held(&camera) == drop);
    }
    let warnings = [gst::MessageType::Warning];
    assert!(pipeline.bus().unwrap().pop_filtered(&warnings).is_none());
    drop((valve, camera));
    end(pipeline);
}

#[test]
fn a_camera_that_falls_silent_is_tried_again() {
    let pipeline = launch(&LINE.replace("mqttvalve", "mqttvalve source-timeout=1"));
    let camera = pipeline.by_name("camera").unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    let silent = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_silent = silent.clone();
    let pad = camera.static_pad("src").unwrap();
    // As a driver that has stopped to deliver; no error, no end.
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        match is_silent.load(Ordering::SeqCst) {
            true => gst::PadProbeReturn::Drop,
            false => gst::PadProbeReturn::Ok,
        }
    });
    start(&pipeline);
    valve.set_property("drop", false);
    until("live", || says(&valve, r#""state":"live""#));
    silent.store(true, Ordering::SeqCst);
    until("the fault", || {
        says(&valve, r#""state":"error""#) && says(&valve, "camera: no frame for 1 s")
    });
    silent.store(false, Ordering::SeqCst);
    until("live again", || says(&valve, r#""state":"live""#));
    no_error(&pipeline);
    drop((camera, valve, pad));
    end(pipeline);
}

/// How a sink publishes there.
fn publishes(relay: &Relay) -> String {
    let login = &relay.publisher;
    let (url, user, password) = (relay.publish_url(), &login.user, &login.password);
    format!("location={url} user={user} password={password}")
}

/// The publishing state of the element `sink`.
fn published(sink: &gst::Element) -> String {
    let state = sink.property_value("state");
    let state = glib::EnumValue::from_value(&state).map(|(_, value)| value.nick().to_owned());
    state.unwrap()
}

fn sessions(sink: &gst::Element) -> u64 {
    let stats = sink.property::<gst::Structure>("stats");
    stats.get("sessions").unwrap()
}

fn frames(sink: &gst::Element) -> u64 {
    let stats = sink.property::<gst::Structure>("stats");
    stats.get("frames").unwrap()
}

/// A picture that is always there, and one that comes into it on demand.
#[test]
fn a_valve_at_one_input_of_a_mixer_ends_no_session_of_the_others() {
    let relay = Relay::start(Kind::Nginx).unwrap();
    let pipeline = launch(&format!(
        "compositor name=m ! video/x-raw,width=64,height=64,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink {} \
         videotestsrc is-live=true ! m. videotestsrc is-live=true ! mqttvalve name=valve ! m.",
        publishes(&relay)
    ));
    let (sink, valve) = (
        pipeline.by_name("sink").unwrap(),
        pipeline.by_name("valve").unwrap(),
    );
    start(&pipeline);
    for drop in [true, false, true] {
        valve.set_property("drop", drop);
        until("the valve", || {
            says(&valve, if drop { "idle" } else { "live" })
        });
        until("publishing", || published(&sink) == "publishing");
        let before = frames(&sink);
        until("frames", || frames(&sink) > before + 10);
    }
    assert_eq!(sessions(&sink), 1);
    no_error(&pipeline);
    drop((sink, valve));
    end(pipeline);
}

#[test]
fn a_mixer_of_valves_publishes_while_any_of_them_is_open() {
    let relay = Relay::start(Kind::Nginx).unwrap();
    let pipeline = launch(&format!(
        "compositor name=m ! video/x-raw,width=64,height=64,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink {} \
         videotestsrc is-live=true ! mqttvalve name=first ! m. \
         videotestsrc is-live=true ! mqttvalve name=second ! m.",
        publishes(&relay)
    ));
    let [sink, first, second] = ["sink", "first", "second"].map(|it| pipeline.by_name(it).unwrap());
    start(&pipeline);
    for (opens_later, closes_later) in [(&second, &first), (&first, &second)] {
        let opens_first = if opens_later == &first {
            &second
        } else {
            &first
        };
        let closes_first = if closes_later == &first {
            &second
        } else {
            &first
        };
        until("nothing published", || published(&sink) == "idle");
        let before = sessions(&sink);
        opens_first.set_property("drop", false);
        until("publishing", || published(&sink) == "publishing");
        opens_later.set_property("drop", false);
        until("live", || says(opens_later, r#""state":"live""#));
        closes_first.set_property("drop", true);
        until("idle", || says(closes_first, r#""state":"idle""#));
        let sent = frames(&sink);
        until("frames", || frames(&sink) > sent + 10);
        assert_eq!(sessions(&sink), before + 1);
        closes_later.set_property("drop", true);
        until("nothing published", || published(&sink) == "idle");
    }
    no_error(&pipeline);
    drop((sink, first, second));
    end(pipeline);
}

#[test]
fn a_sink_whose_valve_is_taken_out_of_the_line_publishes_what_comes() {
    let relay = Relay::start(Kind::Nginx).unwrap();
    for drop in [true, false] {
        let pipeline = launch(&format!(
            "videotestsrc is-live=true name=camera ! video/x-raw,width=64,height=64 \
             ! identity name=before ! mqttvalve name=valve ! queue name=behind \
             ! x264enc tune=zerolatency ! rtmpauthsink name=sink {}",
            publishes(&relay)
        ));
        let [camera, before, valve, behind, sink] =
            ["camera", "before", "valve", "behind", "sink"].map(|it| pipeline.by_name(it).unwrap());
        start(&pipeline);
        valve.set_property("drop", false);
        until("publishing", || published(&sink) == "publishing");
        valve.set_property("drop", drop);
        if drop {
            until("nothing published", || published(&sink) == "idle");
            until("a closed camera", || is_held(&camera));
        }
        before.unlink(&valve);
        valve.unlink(&behind);
        valve.set_state(gst::State::Null).unwrap();
        pipeline.remove(&valve).unwrap();
        before.link(&behind).unwrap();
        for element in pipeline.iterate_elements().into_iter().flatten() {
            assert!(!element.is_locked_state(), "{}", element.name());
        }
        // What ran has been refused meanwhile, and begins anew.
        let mut line = vec![before.clone()];
        let mut pad = before.static_pad("sink");
        while let Some(next) = pad.and_then(|pad| pad.peer()?.parent_element()) {
            pad = next.static_pad("sink");
            line.push(next);
        }
        assert_eq!(line.last(), Some(&camera));
        for element in &line {
            element.set_state(gst::State::Null).unwrap();
        }
        for element in &line {
            element.sync_state_with_parent().unwrap();
        }
        let sent = frames(&sink);
        until("frames", || {
            frames(&sink) > sent + 10 && published(&sink) == "publishing"
        });
        no_error(&pipeline);
        std::mem::drop((camera, before, valve, behind, sink, line));
        end(pipeline);
    }
}

/// A picture for two servers, or in two qualities.
#[test]
fn a_tee_that_feeds_valves_alone_is_stopped_with_the_last_and_started_with_the_first() {
    let pipeline = launch(
        "videotestsrc is-live=true name=camera ! video/x-raw,width=64,height=64,framerate=30/1 \
         ! tee name=t ! queue name=q1 ! mqttvalve name=first ! fakesink name=one \
         t. ! queue name=q2 ! identity ! mqttvalve name=second ! fakesink name=two",
    );
    let [camera, tee, q1, q2, first, second] =
        ["camera", "t", "q1", "q2", "first", "second"].map(|it| pipeline.by_name(it).unwrap());
    let (one, two) = (count(&pipeline, "one").0, count(&pipeline, "two").0);
    let line = [&camera, &tee, &q1, &q2];
    let all_held = || line.iter().all(|element| is_held(element));
    let more = |count: &std::sync::atomic::AtomicU64| {
        let before = count.load(Ordering::SeqCst);
        until("frames", || count.load(Ordering::SeqCst) > before + 3);
    };
    let close = |valve: &gst::Element, drop: bool| valve.set_property("drop", drop);
    start(&pipeline);
    assert!(line.iter().all(|element| element.is_locked_state()));
    for (a, b, frames_a, frames_b) in [(&first, &second, &one, &two), (&second, &first, &two, &one)]
    {
        until("a closed camera", all_held);
        for valve in [a, b] {
            assert!(says(valve, r#""standby":"cold""#), "{}", valve.name());
        }
        close(a, false);
        more(frames_a);
        let others = frames_b.load(Ordering::SeqCst);
        more(frames_a);
        assert_eq!(frames_b.load(Ordering::SeqCst), others);
        close(b, false);
        more(frames_b);
        close(a, true);
        more(frames_b);
        assert_eq!(target(&camera), gst::State::Playing);

        // Each of those that want it hears of the fault.
        close(a, false);
        more(frames_a);
        gst::element_error!(camera, gst::ResourceError::Read, ["unplugged"]);
        for valve in [a, b] {
            until("the fault", || says(valve, "camera: "));
        }
        for (valve, frames) in [(a, frames_a), (b, frames_b)] {
            more(frames);
            until("live again", || says(valve, r#""state":"live""#));
        }
        close(a, true);
        close(b, true);
    }
    until("a closed camera", all_held);

    // One leaves: the other goes on by itself.
    let branch = q1.static_pad("sink").unwrap().peer().unwrap();
    tee.unlink(&q1);
    tee.release_request_pad(&branch);
    for name in ["one", "first", "q1"] {
        let element = pipeline.by_name(name).unwrap();
        element.set_state(gst::State::Null).unwrap();
        pipeline.remove(&element).unwrap();
        assert!(!element.is_locked_state(), "{name}");
    }
    for _ in 0..2 {
        let line = [&camera, &tee, &q2];
        until("a closed camera", || line.iter().all(|it| is_held(it)));
        close(&second, false);
        more(&two);
        close(&second, true);
    }
    let bus = pipeline.bus().unwrap();
    assert!(bus.pop_filtered(&[gst::MessageType::Warning]).is_none());
    no_error(&pipeline);
    drop(branch);
    drop((camera, tee, q1, q2, first, second));
    end(pipeline);
}

#[test]
fn a_tee_with_a_valve_that_is_not_cold_is_left_alone() {
    let pipeline = launch(
        "videotestsrc is-live=true name=camera ! tee name=t ! queue ! mqttvalve name=first ! fakesink \
         t. ! queue ! mqttvalve name=second standby=warm ! fakesink",
    );
    let [camera, first, second] =
        ["camera", "first", "second"].map(|it| pipeline.by_name(it).unwrap());
    start(&pipeline);
    let text = warning(&pipeline);
    assert!(text.contains("second is not cold"), "{text}");
    until("a camera that runs", || {
        target(&camera) == gst::State::Playing
    });
    second.set_property_from_str("standby", "cold");
    until("a closed camera", || is_held(&camera));
    second.set_property_from_str("standby", "warm");
    until("a camera that runs", || {
        target(&camera) == gst::State::Playing && !camera.is_locked_state()
    });
    no_error(&pipeline);
    drop((camera, first, second));
    end(pipeline);
}

/// As v4l2src of GStreamer 1.22.0 does it.
#[test]
fn a_device_that_stays_open_is_named() {
    let device = "/dev/full";
    let pipeline = launch(&format!(
        "v4l2src name=camera device={device} ! mqttvalve name=valve drop=false ! fakesink"
    ));
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    until("the fault", || says(&valve, r#""state":"error""#));
    assert!(!says(&valve, "still_open"));
    let open = std::fs::File::open(device).unwrap();
    let text = warning(&pipeline);
    assert!(
        text.contains(device) && text.contains("GST_V4L2_FORCE_DRAIN=1"),
        "{text}"
    );
    until("the name of the device", || {
        says(&valve, r#""still_open":["/dev/full"]"#)
    });
    drop(open);
    until("its end", || !says(&valve, "still_open"));
    drop(valve);
    end(pipeline);
}
