// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::mqttvalve::elements::Notice;

const STATES: [UpstreamState; 6] = [
    UpstreamState::Inactive,
    UpstreamState::Untouched,
    UpstreamState::Running,
    UpstreamState::Stopped,
    UpstreamState::Failed,
    UpstreamState::Following,
];
const EVENTS: [Event; 12] = [
    Event::StartUntouched,
    Event::Start,
    Event::Open,
    Event::Close,
    Event::Error,
    Event::RetryDue,
    Event::Stray,
    Event::AllowedOpen,
    Event::AllowedClosed,
    Event::Obstacle,
    Event::Follow,
    Event::Shutdown,
];

/// The rows of the table that stands above [`transition`].
fn written_table() -> Vec<Vec<&'static str>> {
    include_str!("../upstream.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("/// | "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn every_state_and_event_does_what_the_table_says() {
    let table = written_table();
    assert_eq!(table.len(), 1 + EVENTS.len());
    for (column, state) in STATES.iter().enumerate() {
        assert_eq!(table[0][1 + column], format!("{state:?}"));
        for (row, event) in EVENTS.iter().enumerate() {
            assert_eq!(table[1 + row][0], format!("{event:?}"));
            let (next, action) = transition(*state, *event);
            let said = match action {
                Action::Nothing if next == *state => ".".into(),
                Action::Nothing => format!("{next:?}"),
                action => format!("{next:?}, {action:?}"),
            };
            assert_eq!(table[1 + row][1 + column], said, "{state:?} at {event:?}");
        }
    }
}

/// A camera and a filter, before a pad that stands for the valve's.
struct Line {
    pipeline: gst::Pipeline,
    valve: gst::Element,
    sinkpad: gst::Pad,
}

impl Line {
    fn new() -> Self {
        gst::init().unwrap();
        let pipeline = gst::parse::launch(
            "fakesrc is-live=true name=camera ! identity name=filter ! fakesink name=valve",
        )
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
        let valve = pipeline.by_name("valve").unwrap();
        valve.set_state(gst::State::Ready).unwrap();
        Line {
            sinkpad: valve.static_pad("sink").unwrap(),
            pipeline,
            valve,
        }
    }

    fn element(&self, name: &str) -> gst::Element {
        self.pipeline.by_name(name).unwrap()
    }

    fn start(&self, standby: Standby) -> Upstream {
        let status = Arc::new(Status::default());
        let told = status.clone();
        let elements = Elements::new(Arc::default(), move |notice| {
            if let Notice::Error(error) = notice {
                told.fail(error);
            }
        });
        let inputs = Inputs {
            standby,
            ..inputs(false, Duration::ZERO)
        };
        let membership = Membership::new(status.clone(), || {});
        Upstream::start(
            status,
            elements,
            membership,
            &self.valve,
            &self.sinkpad,
            inputs,
        )
    }

    fn in_state(&self, state: UpstreamState) -> Upstream {
        let mut upstream = self.start(match state {
            UpstreamState::Untouched => Standby::Warm,
            _ => Standby::Cold,
        });
        match state {
            UpstreamState::Untouched | UpstreamState::Stopped => {}
            UpstreamState::Inactive => {
                self.apply(&mut upstream, Event::Shutdown);
            }
            UpstreamState::Following => {
                self.apply(&mut upstream, Event::Follow);
            }
            UpstreamState::Running => {
                self.apply(&mut upstream, Event::Open);
            }
            UpstreamState::Failed => {
                self.apply(&mut upstream, Event::Open);
                upstream.status.fail("no camera".into());
                let fault = self.apply(&mut upstream, Event::Error);
                assert_eq!(fault.as_deref(), Some("no camera"));
            }
        }
        assert_eq!(upstream.status.state(), state);
        upstream
    }

    fn apply(&self, upstream: &mut Upstream, event: Event) -> Option<String> {
        if matches!(event, Event::AllowedOpen | Event::AllowedClosed) {
            upstream.look(&self.valve, &self.sinkpad, inputs(false, Duration::ZERO));
        }
        upstream.apply(event, &self.valve, &self.sinkpad, &|| Duration::ZERO)
    }

    fn sync(&self, upstream: &mut Upstream, open: bool, now: Duration) -> Outcome {
        upstream.sync(&self.valve, &self.sinkpad, || inputs(open, now))
    }

    fn stray(&self, upstream: &Upstream) -> Option<String> {
        let stray = upstream.stray(&self.valve)?;
        Some(stray.name().to_string())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for name in ["camera", "filter"] {
            if let Some(element) = self.pipeline.by_name(name) {
                element.set_locked_state(false);
            }
        }
        self.pipeline.set_state(gst::State::Null).unwrap();
    }
}

fn inputs(open: bool, now: Duration) -> Inputs {
    Inputs {
        open,
        standby: Standby::Cold,
        frames: 0,
        timeout: Duration::ZERO,
        now,
    }
}

#[test]
fn the_invariant_holds_after_every_event_in_every_state() {
    for state in STATES {
        for event in EVENTS {
            let line = Line::new();
            let mut upstream = line.in_state(state);
            assert_eq!(line.stray(&upstream), None, "{state:?}");
            line.apply(&mut upstream, event);
            assert_eq!(line.stray(&upstream), None, "{state:?} at {event:?}");
        }
    }
}

/// Whatever others do to the elements, in whatever state: the next look puts it right.
#[test]
fn an_element_that_is_not_as_promised_is_brought_there() {
    type Disturb = fn(&Line);
    let disturbances: [(&str, Disturb); 6] = [
        ("unlocked", |line| {
            line.element("filter").set_locked_state(false);
        }),
        ("opened", |line| {
            line.element("camera").set_state(gst::State::Ready).unwrap();
        }),
        ("played", |line| {
            line.element("camera")
                .set_state(gst::State::Playing)
                .unwrap();
        }),
        ("stopped", |line| {
            line.element("filter").set_state(gst::State::Null).unwrap();
        }),
        ("replaced", |line| {
            let (camera, filter) = (line.element("camera"), line.element("filter"));
            camera.unlink(&filter);
            line.pipeline.remove(&camera).unwrap();
            camera.set_state(gst::State::Null).unwrap();
            let other = gst::ElementFactory::make("fakesrc").name("camera");
            let other = other.property("is-live", true).build().unwrap();
            line.pipeline.add(&other).unwrap();
            // Linked first: what plays without a peer ends by an error.
            other.link(&filter).unwrap();
            other.set_state(gst::State::Playing).unwrap();
        }),
        ("another base time", |line| {
            line.element("camera")
                .set_base_time(gst::ClockTime::from_seconds(7));
        }),
    ];
    for (name, disturb) in disturbances {
        for open in [false, true] {
            for target in [gst::State::Ready, gst::State::Playing] {
                let line = Line::new();
                let mut upstream = line.start(Standby::Cold);
                // Nothing prerolls a sink whose source is stopped.
                line.valve.set_property("async", false);
                line.valve.set_state(target).unwrap();
                line.sync(&mut upstream, open, Duration::ZERO);
                disturb(&line);
                line.sync(&mut upstream, open, Duration::ZERO);
                let wanted = if open { target } else { gst::State::Null };
                for element in ["camera", "filter"] {
                    let element = line.element(element);
                    let where_it_is = format!("{name}, {open}, {target:?}: {}", element.name());
                    assert_eq!(target_state(&element), wanted, "{where_it_is}");
                    assert!(open || element.is_locked_state(), "{where_it_is}");
                    if wanted == gst::State::Playing {
                        assert_eq!(element.base_time(), line.valve.base_time(), "{where_it_is}");
                    }
                }
            }
        }
    }
}

/// A camera whose pushes were refused between two lives of the pads has ended its task, though
/// it is in PLAYING.
#[test]
fn a_camera_that_overlooked_a_pass_through_ready_begins_anew() {
    let line = Line::new();
    let mut upstream = line.in_state(UpstreamState::Running);
    line.valve.set_property("async", false);
    line.valve.set_state(gst::State::Playing).unwrap();
    line.sync(&mut upstream, true, Duration::ZERO);
    let camera = line.element("camera");
    let downs = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let seen = downs.clone();
    let bus = line.pipeline.bus().unwrap();
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::StateChanged(change) = message.view()
            && change.old() > change.current()
        {
            seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        gst::BusSyncReply::Drop
    });
    line.sync(&mut upstream, true, Duration::ZERO);
    assert_eq!(downs.load(std::sync::atomic::Ordering::SeqCst), 0);
    upstream.status.begin_life();
    line.sync(&mut upstream, true, Duration::ZERO);
    assert!(downs.load(std::sync::atomic::Ordering::SeqCst) > 0);
    assert_eq!(target_state(&camera), gst::State::Playing);
    bus.unset_sync_handler();
}

#[test]
fn a_camera_that_failed_is_tried_again_when_its_time_has_come_while_the_valve_is_open() {
    let line = Line::new();
    let mut upstream = line.in_state(UpstreamState::Running);
    upstream.status.fail("no camera".into());
    upstream.status.fail("not negotiated".into());
    let outcome = line.sync(&mut upstream, true, Duration::from_secs(1));
    assert_eq!(outcome.fault.as_deref(), Some("no camera"));
    let due = outcome.due.unwrap();
    assert!(due > Duration::from_secs(1));
    assert!(!upstream.status.has_failed());
    let outcome = line.sync(&mut upstream, true, due - Duration::from_nanos(1));
    assert_eq!(outcome.due, Some(due));
    assert_eq!(upstream.status.state(), UpstreamState::Failed);
    assert_eq!(line.sync(&mut upstream, true, due).due, None);
    assert_eq!(upstream.status.state(), UpstreamState::Running);
    line.sync(&mut upstream, false, due);
    assert_eq!(upstream.status.state(), UpstreamState::Stopped);
    // What it has posted on its way down keeps it from nothing.
    upstream.status.fail("cancelled".into());
    line.sync(&mut upstream, true, due);
    assert_eq!(upstream.status.state(), UpstreamState::Running);
}

#[test]
fn a_camera_that_falls_silent_has_failed() {
    let line = Line::new();
    let mut upstream = line.in_state(UpstreamState::Running);
    line.valve.set_property("async", false);
    line.valve.set_state(gst::State::Playing).unwrap();
    let mut at = |seconds, frames| {
        let inputs = Inputs {
            frames,
            timeout: Duration::from_secs(8),
            ..inputs(true, Duration::from_secs(seconds))
        };
        upstream.sync(&line.valve, &line.sinkpad, || inputs)
    };
    assert_eq!(at(1, 0).due, Some(Duration::from_secs(9)));
    assert_eq!(at(9, 5).due, Some(Duration::from_secs(17)));
    assert_eq!(at(16, 5).fault, None);
    let fault = at(17, 5).fault;
    assert_eq!(fault.as_deref(), Some("camera: no frame for 8 s"));
}

#[test]
fn another_standby_is_followed_at_once() {
    let line = Line::new();
    let mut upstream = line.in_state(UpstreamState::Stopped);
    let camera = line.element("camera");
    let mut with = |standby| {
        let inputs = Inputs {
            standby,
            ..inputs(false, Duration::ZERO)
        };
        upstream.sync(&line.valve, &line.sinkpad, || inputs);
        upstream.status.state()
    };
    assert_eq!(with(Standby::Warm), UpstreamState::Untouched);
    assert!(!camera.is_locked_state());
    assert_eq!(camera.current_state(), gst::State::Ready);
    assert_eq!(with(Standby::Cold), UpstreamState::Stopped);
    assert!(camera.is_locked_state());
    assert_eq!(camera.current_state(), gst::State::Null);
}

#[test]
fn what_is_unlinked_is_given_back_by_whoever_unlinks_it() {
    let line = Line::new();
    let mut upstream = line.in_state(UpstreamState::Stopped);
    let (camera, filter) = (line.element("camera"), line.element("filter"));
    let other = gst::Pipeline::new();
    line.pipeline.remove(&camera).unwrap();
    other.add(&camera).unwrap();
    assert!(!camera.is_locked_state());
    assert!(filter.is_locked_state());
    let bus = camera.bus();
    line.sync(&mut upstream, false, Duration::ZERO);
    assert_eq!(camera.bus(), bus);
    assert_eq!(upstream.status.state(), UpstreamState::Untouched);
    assert!(!filter.is_locked_state());
    other.set_state(gst::State::Null).unwrap();
}

#[test]
fn what_was_upstream_is_given_back_as_it_was() {
    let line = Line::new();
    let camera = line.element("camera");
    camera.set_element_flags(gst::ElementFlags::PROVIDE_CLOCK);
    let before = camera.bus();
    let upstream = line.in_state(UpstreamState::Stopped);
    assert_ne!(camera.bus(), before);
    assert!(
        !camera
            .element_flags()
            .contains(gst::ElementFlags::PROVIDE_CLOCK)
    );
    let status = upstream.status.clone();
    drop(upstream);
    assert!(!camera.is_locked_state());
    assert_eq!(camera.bus(), before);
    assert!(
        camera
            .element_flags()
            .contains(gst::ElementFlags::PROVIDE_CLOCK)
    );
    assert_eq!(status.state(), UpstreamState::Inactive);
}
