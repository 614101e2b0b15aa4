// SPDX-License-Identifier: MPL-2.0

//! Every property that can be set, at its extremes, in every state and in random order: nothing
//! panics, and the element ends in time.

use std::{ops::RangeInclusive, time::Duration};

use droidrelay_rtmp::double::{Access, Seen, Server};
use droidrelay_testkit::process::poll;
use gst::prelude::*;
use proptest::{prelude::*, test_runner::TestRunner};

use crate::common::{end, launch};

/// Open, and published to `server`: the encoder behind the valve, or before one that keeps media.
fn lines(server: &Server) -> [gst::Pipeline; 2] {
    let camera = "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=100/1";
    let valve = "mqttvalve name=valve drop=false";
    let encoder = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5";
    let sink = format!("rtmpauthsink name=sink location={}", server.url());
    [
        format!("{camera} ! {valve} ! {encoder} ! {sink}"),
        format!("{camera} ! {encoder} ! {valve} standby=hot ! {sink}"),
    ]
    .map(|line| launch(&line))
}

const ELEMENTS: [&str; 2] = ["valve", "sink"];
const STATES: [gst::State; 4] = [
    gst::State::Null,
    gst::State::Ready,
    gst::State::Paused,
    gst::State::Playing,
];

/// The ends of a range, what lies beside them, and what is most often multiplied or added.
fn numbers<T: Copy + PartialOrd + TryFrom<i128>>(range: RangeInclusive<T>) -> Vec<T> {
    let seconds = 1_000_000_000;
    [
        i64::MAX,
        i64::MAX / seconds,
        u32::MAX.into(),
        i32::MAX.into(),
        seconds,
        1,
        0,
        -1,
    ]
    .into_iter()
    .map(i128::from)
    .flat_map(|number| [number - 1, number, number + 1])
    .filter_map(|number| T::try_from(number).ok())
    .filter(|number| range.contains(number))
    .chain([*range.start(), *range.end()])
    .collect()
}

fn texts() -> Vec<Option<String>> {
    let given = [
        "",
        " ",
        "/",
        "?",
        "x",
        "mqtt://",
        "rtmp://",
        "mqtt://127.0.0.1:1",
        "rtmp://127.0.0.1:1/live/x",
        "rtmps://[::1]:1/live/x",
        "mqtts://:@/",
        "/nonexistent/file",
        "/",
        "{\"a\":",
        "\u{feff}é\n\r\t#+$",
    ];
    let long = "x".repeat(70_000);
    given
        .iter()
        .map(|text| Some((*text).to_owned()))
        .chain([Some(long), None])
        .collect()
}

/// What a property is tried with; its default is the last one.
fn values(spec: &glib::ParamSpec) -> Vec<glib::Value> {
    fn all<T: ToValue>(values: Vec<T>) -> Vec<glib::Value> {
        values.iter().map(ToValue::to_value).collect()
    }
    let mut values = if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
        all(numbers(spec.minimum()..=spec.maximum()))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt64>() {
        all(numbers(spec.minimum()..=spec.maximum()))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        all(numbers(spec.minimum()..=spec.maximum()))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt>() {
        all(numbers(spec.minimum()..=spec.maximum()))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        all(vec![spec.minimum(), spec.maximum(), 0.0, f64::MIN_POSITIVE]
            .into_iter()
            .filter(|number| (spec.minimum()..=spec.maximum()).contains(number))
            .collect())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        class
            .values()
            .iter()
            .filter_map(|value| class.to_value(value.value()))
            .collect()
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecFlags>() {
        let class = spec.flags_class();
        class
            .values()
            .iter()
            .filter_map(|value| class.to_value_by_nick(value.nick()))
            .collect()
    } else if spec.value_type() == bool::static_type() {
        all(vec![true, false])
    } else if spec.value_type() == String::static_type() {
        all(texts())
    } else if spec.value_type() == gst::Structure::static_type() {
        let odd = gst::Structure::builder("x")
            .field("a", u64::MAX)
            .field("b", "")
            .build();
        all(vec![
            None,
            Some(odd),
            Some(gst::Structure::new_empty("leases")),
        ])
    } else {
        panic!("{}: no values for {}", spec.name(), spec.value_type());
    };
    values.push(spec.default_value().clone());
    values
}

fn writable(element: &gst::Element) -> Vec<glib::ParamSpec> {
    let mut specs = element.list_properties().to_vec();
    specs.retain(|spec| {
        spec.owner_type() == element.type_() && spec.flags().contains(glib::ParamFlags::WRITABLE)
    });
    specs
}

/// A panic in an element is an error on the bus.
fn no_panic(pipeline: &gst::Pipeline, after: &str) {
    let bus = pipeline.bus().unwrap();
    while let Some(message) = bus.pop_filtered(&[gst::MessageType::Error]) {
        let gst::MessageView::Error(error) = message.view() else {
            continue;
        };
        let text = error.debug().unwrap_or_default();
        assert!(!text.contains("Panicked"), "after {after}: {text}");
    }
}

/// Plays until a frame has reached the server in two sessions; some values let none through.
fn play(pipeline: &gst::Pipeline, server: &Server) {
    go(pipeline, gst::State::Playing);
    let valve = pipeline.by_name("valve").unwrap();
    for drop in [true, false] {
        let mark = server.seen().mark();
        let there = || {
            server
                .seen()
                .since(mark)
                .contains(&Seen::Video)
                .then_some(())
        };
        poll(Duration::from_millis(50), there);
        valve.set_property("drop", drop);
    }
}

/// To `state`; some values are refused on the way up, nothing is on the way down.
fn go(pipeline: &gst::Pipeline, state: gst::State) {
    let result = pipeline.set_state(state);
    assert!(result.is_ok() || state > gst::State::Null, "not to NULL");
    let (_, _, _) = pipeline.state(gst::ClockTime::from_mseconds(5));
}

#[test]
fn every_property_takes_its_extremes_in_every_state() {
    let server = Server::start(Access::Everybody);
    for pipeline in lines(&server) {
        for name in ELEMENTS {
            let element = pipeline.by_name(name).unwrap();
            for spec in writable(&element) {
                try_extremes(&pipeline, &server, &element, &spec);
            }
        }
        end(pipeline);
    }
}

fn try_extremes(
    pipeline: &gst::Pipeline,
    server: &Server,
    element: &gst::Element,
    spec: &glib::ParamSpec,
) {
    let name = format!("{}.{}", element.name(), spec.name());
    let before = spec
        .flags()
        .contains(glib::ParamFlags::READABLE)
        .then(|| element.property_value(spec.name()));
    for state in STATES {
        go(pipeline, state);
        for value in values(spec) {
            element.set_property_from_value(spec.name(), &value);
            if before.is_some() {
                element.property_value(spec.name());
            }
        }
        no_panic(pipeline, &format!("{name} in {state:?}"));
    }
    // As it starts with each value; one that is not a text does not keep it from a server.
    for (number, value) in values(spec).iter().enumerate() {
        go(pipeline, gst::State::Null);
        element.set_property_from_value(spec.name(), value);
        go(pipeline, gst::State::Playing);
        if spec.value_type() != String::static_type() {
            play(pipeline, server);
        }
        // Not the value itself: GLib does not write a structure that is none.
        let what = format!("{name} from the start, value {number} of its extremes");
        no_panic(pipeline, &what);
    }
    go(pipeline, gst::State::Null);
    if let Some(before) = before {
        element.set_property_from_value(spec.name(), &before);
    }
}

#[derive(Debug, Clone)]
enum Step {
    State(usize),
    /// Element, property and value, each by a number that is taken modulo what there is.
    Set(usize, usize, usize),
    Start,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..STATES.len()).prop_map(Step::State),
        any::<(usize, usize, usize)>()
            .prop_map(|(element, property, value)| Step::Set(element, property, value)),
        Just(Step::Start),
        Just(Step::Stop),
    ]
}

#[test]
fn properties_and_states_change_in_any_order() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let server = Server::start(Access::Everybody);
    let steps = prop::collection::vec(step(), 1..40);
    let result = runner.run(&steps, |steps| {
        for pipeline in lines(&server) {
            let [valve, sink] = ELEMENTS.map(|name| pipeline.by_name(name).unwrap());
            for step in &steps {
                take(step, &pipeline, &valve, &sink);
                no_panic(&pipeline, &format!("{step:?}"));
            }
            drop((valve, sink));
            end(pipeline);
        }
        Ok(())
    });
    result.unwrap_or_else(|err| panic!("{err}"));
}

fn take(step: &Step, pipeline: &gst::Pipeline, valve: &gst::Element, sink: &gst::Element) {
    match *step {
        Step::State(state) => go(pipeline, STATES[state]),
        Step::Set(element, property, value) => {
            let element = [valve, sink][element % 2];
            let specs = writable(element);
            let spec = &specs[property % specs.len()];
            let values = values(spec);
            element.set_property_from_value(spec.name(), &values[value % values.len()]);
        }
        Step::Start => {
            valve.emit_by_name::<bool>("start", &[&None::<String>, &u32::MAX as &dyn ToValue]);
        }
        Step::Stop => {
            valve.emit_by_name::<bool>("stop", &[&None::<String>]);
        }
    }
}
