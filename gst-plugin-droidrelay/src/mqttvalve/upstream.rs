// SPDX-License-Identifier: MPL-2.0

//! What is done with the elements upstream of the valve (`standby=cold`).
//!
//! The invariant, looked at after each event ([`Upstream::violation`]): while the valve is closed
//! each element is in NULL and locked, while it is open each is at the pipeline's target.
//!
//! [`Upstream`] belongs to the one job that changes states, so that nothing is locked while it
//! does. The others see its [`Status`].

use std::{mem, sync::Arc, time::Duration};

use droidrelay_wire::{Backoff, backoff::jitter};
use gst::prelude::*;
use parking_lot::Mutex;

use super::{
    cat::CAT,
    elements::{Elements, target_state},
    settings::Standby,
};

/// A camera that fails is tried again within these bounds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Events that are followed in one run of the job.
const MAX_EVENTS: usize = 8;

/// What has been done with upstream, or is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// The valve is in NULL.
    #[default]
    Inactive,
    /// Not the valve's to stop: `standby` asks for less, or it cannot be done.
    Untouched,
    /// Not locked, at the pipeline's target.
    Running,
    /// Locked in NULL.
    Stopped,
    /// Locked in NULL until the next try: the camera has failed.
    Failed,
}

/// What happens around upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The valve goes to READY; there is nothing that it may stop.
    StartUntouched,
    /// The valve goes to READY and is open.
    StartOpen,
    /// The valve goes to READY and is closed.
    StartClosed,
    /// The valve is open.
    Open,
    /// The valve is closed.
    Close,
    /// An element has posted an error, or did not start.
    Error,
    /// A camera that has failed may be tried again.
    RetryDue,
    /// The pipeline has another target.
    Pipeline,
    /// The valve was linked or unlinked.
    Link,
    /// The property `standby` has changed; it counts from the next start on.
    Standby,
    /// The valve goes to NULL.
    Shutdown,
}

/// What a transition does with the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Locks them where they are, which is NULL: states change from sink to source.
    Hold,
    /// Brings them to NULL and locks them.
    Stop,
    /// Unlocks them and brings them to the pipeline's target.
    Run,
    /// As `Stop`, and a time for the next try.
    ScheduleRetry,
    /// Forgets that tries have failed.
    CancelRetry,
    /// Gives them back to their parent.
    Release,
}

/// The states that are legal, and how one comes from another; each cell is the next state and
/// what is done, `.` where all stays as it is.
///
/// | event          | Inactive      | Untouched | Running               | Stopped           | Failed               |
/// |----------------|---------------|-----------|-----------------------|-------------------|----------------------|
/// | StartUntouched | Untouched     | .         | .                     | .                 | .                    |
/// | StartOpen      | Running       | .         | .                     | .                 | .                    |
/// | StartClosed    | Stopped, Hold | .         | .                     | .                 | .                    |
/// | Open           | .             | .         | .                     | Running, Run      | .                    |
/// | Close          | .             | .         | Stopped, Stop         | .                 | Stopped, CancelRetry |
/// | Error          | .             | .         | Failed, ScheduleRetry | .                 | .                    |
/// | RetryDue       | .             | .         | .                     | .                 | Running, Run         |
/// | Pipeline       | .             | .         | .                     | .                 | .                    |
/// | Link           | .             | .         | .                     | .                 | .                    |
/// | Standby        | .             | .         | .                     | .                 | .                    |
/// | Shutdown       | .             | Inactive  | Inactive, Release     | Inactive, Release | Inactive, Release    |
const fn transition(state: UpstreamState, event: Event) -> (UpstreamState, Action) {
    use UpstreamState::*;
    match (state, event) {
        (Inactive, Event::StartUntouched) => (Untouched, Action::Nothing),
        (Inactive, Event::StartOpen) => (Running, Action::Nothing),
        (Inactive, Event::StartClosed) => (Stopped, Action::Hold),
        (Stopped, Event::Open) | (Failed, Event::RetryDue) => (Running, Action::Run),
        (Running, Event::Close) => (Stopped, Action::Stop),
        (Failed, Event::Close) => (Stopped, Action::CancelRetry),
        (Running, Event::Error) => (Failed, Action::ScheduleRetry),
        (Untouched, Event::Shutdown) => (Inactive, Action::Nothing),
        (Running | Stopped | Failed, Event::Shutdown) => (Inactive, Action::Release),
        (stays, _) => (stays, Action::Nothing),
    }
}

/// What others may know of upstream, and ask of it.
#[derive(Debug, Default)]
pub struct Status(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    state: UpstreamState,
    /// The first error since upstream was last started: others are most often its consequence.
    error: Option<String>,
    eos: bool,
}

impl Status {
    pub fn state(&self) -> UpstreamState {
        self.0.lock().state
    }

    /// Whether an element has failed since upstream was last started.
    pub fn has_failed(&self) -> bool {
        self.0.lock().error.is_some()
    }

    pub fn fail(&self, error: String) {
        self.0.lock().error.get_or_insert(error);
    }

    /// Asks for an EOS in place of sources that are stopped; false where there are none.
    pub fn want_eos(&self) -> bool {
        let mut known = self.0.lock();
        let stopped = matches!(known.state, UpstreamState::Stopped | UpstreamState::Failed);
        known.eos |= stopped;
        stopped
    }

    /// Whether an EOS is to be pushed; from now on it is taken as pushed.
    pub fn take_eos(&self) -> bool {
        mem::take(&mut self.0.lock().eos)
    }

    fn take_error(&self) -> Option<String> {
        self.0.lock().error.take()
    }

    /// The only place where the state changes.
    fn advance(&self, event: Event) -> Action {
        let mut known = self.0.lock();
        let (next, action) = transition(known.state, event);
        known.state = next;
        action
    }
}

/// What upstream is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Whether the valve is open.
    pub open: bool,
    pub standby: Standby,
    /// On the element's clock.
    pub now: Duration,
}

/// What has been seen of the surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    target: gst::State,
    peer: Option<gst::Pad>,
    standby: Standby,
}

impl Seen {
    fn now(valve: &gst::Element, sinkpad: &gst::Pad, standby: Standby) -> Self {
        Seen {
            target: target_state(valve),
            peer: sinkpad.peer(),
            standby,
        }
    }
}

/// What came of following the valve.
#[derive(Debug, Default)]
pub struct Outcome {
    /// When to look again.
    pub due: Option<Duration>,
    /// Why the camera cannot deliver.
    pub fault: Option<String>,
}

/// Holds what is upstream, from READY on; gives it back when dropped.
#[derive(Debug)]
pub struct Upstream {
    status: Arc<Status>,
    elements: Option<Elements>,
    backoff: Backoff,
    /// When a camera that has failed is tried again, on the element's clock.
    retry_at: Duration,
    seen: Seen,
}

impl Upstream {
    /// The valve goes to READY. `elements`: what it may stop.
    pub fn start(
        status: Arc<Status>,
        elements: Option<Elements>,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        inputs: Inputs,
    ) -> Self {
        let event = match elements {
            None => Event::StartUntouched,
            Some(_) if inputs.open => Event::StartOpen,
            Some(_) => Event::StartClosed,
        };
        let mut upstream = Upstream {
            status,
            elements,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            retry_at: Duration::ZERO,
            seen: Seen::now(valve, sinkpad, inputs.standby),
        };
        upstream.apply(event, valve, sinkpad, &|| inputs.now);
        upstream
    }

    /// Whether there is something upstream that the valve stops.
    pub fn is_ours(&self) -> bool {
        self.elements.is_some()
    }

    /// Brings upstream to where `inputs` want it. A change that comes meanwhile is seen, or wakes
    /// the job once more.
    pub fn sync(
        &mut self,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        inputs: impl Fn() -> Inputs,
    ) -> Outcome {
        let now = || inputs().now;
        let mut fault = None;
        for _ in 0..MAX_EVENTS {
            let inputs = inputs();
            let Some(event) = self.next_event(&Seen::now(valve, sinkpad, inputs.standby), inputs)
            else {
                let waits = self.status.state() == UpstreamState::Failed;
                let due = waits.then_some(self.retry_at);
                return Outcome { due, fault };
            };
            fault = self.apply(event, valve, sinkpad, &now).or(fault);
            if let Some(violation) = self.violation(valve) {
                gst::debug!(CAT, obj = valve, "after {event:?}: {violation}");
            }
        }
        // Somebody toggles faster than the camera follows: look again after the others.
        let due = Some(now() + Duration::from_millis(1));
        Outcome { due, fault }
    }

    /// What has happened and was not followed yet.
    fn next_event(&mut self, seen: &Seen, inputs: Inputs) -> Option<Event> {
        use UpstreamState::{Failed, Running, Stopped};
        let state = self.status.state();
        match state {
            Running | Failed if !inputs.open => return Some(Event::Close),
            Running if self.status.has_failed() => return Some(Event::Error),
            Stopped if inputs.open => return Some(Event::Open),
            Failed if self.retry_at <= inputs.now => return Some(Event::RetryDue),
            _ => {}
        }
        if mem::replace(&mut self.seen.target, seen.target) != seen.target {
            Some(Event::Pipeline)
        } else if mem::replace(&mut self.seen.peer, seen.peer.clone()) != seen.peer {
            Some(Event::Link)
        } else if mem::replace(&mut self.seen.standby, seen.standby) != seen.standby {
            Some(Event::Standby)
        } else {
            None
        }
    }

    /// Follows one event; gives the fault that keeps upstream from it.
    fn apply(
        &mut self,
        event: Event,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        now: &dyn Fn() -> Duration,
    ) -> Option<String> {
        let action = self.status.advance(event);
        let elements = self.elements.as_ref()?;
        gst::debug!(CAT, obj = valve, "upstream: {event:?}, {action:?}");
        match action {
            Action::Nothing => {}
            Action::CancelRetry => self.backoff.reset(),
            Action::Release => self.elements = None,
            Action::Hold => {
                elements.lock();
                valve.set_element_flags(gst::ElementFlags::SOURCE);
            }
            Action::Stop => {
                stop(elements, valve, sinkpad);
                self.backoff.reset();
            }
            Action::Run => {
                // What an earlier life posted says nothing about this one.
                self.status.take_error();
                valve.unset_element_flags(gst::ElementFlags::SOURCE);
                match elements.start(valve, target_state(valve)) {
                    Ok(()) => {
                        let latency = gst::message::Latency::builder().src(valve).build();
                        // Without a bus nobody listens.
                        let _ = valve.post_message(latency);
                    }
                    Err(error) => {
                        self.status.fail(error);
                        return self.apply(Event::Error, valve, sinkpad, now);
                    }
                }
            }
            Action::ScheduleRetry => {
                // The error is forgotten only then: by it the end of the failed stream, which may
                // just be on its way, is known as such.
                stop(elements, valve, sinkpad);
                let error = self.status.take_error().unwrap_or_default();
                let wait = self.backoff.next(jitter());
                self.retry_at = now() + wait;
                gst::warning!(
                    CAT,
                    obj = valve,
                    "camera failed, next try in {} ms: {error}",
                    wait.as_millis()
                );
                return Some(error);
            }
        }
        None
    }

    /// Where the elements are not as the state promises.
    fn violation(&self, valve: &gst::Element) -> Option<String> {
        let (state, locked) = match self.status.state() {
            UpstreamState::Running => (target_state(valve), false),
            UpstreamState::Stopped | UpstreamState::Failed => (gst::State::Null, true),
            UpstreamState::Inactive | UpstreamState::Untouched => return None,
        };
        let stray = self.elements.as_ref()?.stray(state, locked)?;
        Some(format!(
            "{} is in {:?}, locked: {}; it should be in {state:?}, locked: {locked}",
            stray.name(),
            target_state(stray),
            stray.is_locked_state()
        ))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.status.advance(Event::Shutdown) == Action::Release {
            self.elements = None;
        }
    }
}

fn stop(elements: &Elements, valve: &gst::Element, sinkpad: &gst::Pad) {
    // Stopping an element whose streaming thread is below the valve would wait for it
    // while the application may wait for us: let that push return first.
    drop(sinkpad.stream_lock());
    elements.stop();
    // So that a pipeline-wide EOS reaches what is downstream while no source runs.
    valve.set_element_flags(gst::ElementFlags::SOURCE);
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [UpstreamState; 5] = [
        UpstreamState::Inactive,
        UpstreamState::Untouched,
        UpstreamState::Running,
        UpstreamState::Stopped,
        UpstreamState::Failed,
    ];
    const EVENTS: [Event; 11] = [
        Event::StartUntouched,
        Event::StartOpen,
        Event::StartClosed,
        Event::Open,
        Event::Close,
        Event::Error,
        Event::RetryDue,
        Event::Pipeline,
        Event::Link,
        Event::Standby,
        Event::Shutdown,
    ];

    /// The rows of the table that stands above [`transition`].
    fn written_table() -> Vec<Vec<&'static str>> {
        include_str!("upstream.rs")
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

        fn start(&self, elements: bool, open: bool) -> Upstream {
            let status = Arc::new(Status::default());
            let told = status.clone();
            let elements = elements
                .then(|| Elements::find(&self.sinkpad, move |error| told.fail(error)).unwrap());
            Upstream::start(
                status,
                elements,
                &self.valve,
                &self.sinkpad,
                inputs(open, Duration::ZERO),
            )
        }

        fn in_state(&self, state: UpstreamState) -> Upstream {
            self.pipeline.set_state(gst::State::Ready).unwrap();
            let mut upstream = match state {
                UpstreamState::Inactive => {
                    let mut upstream = self.start(true, false);
                    self.apply(&mut upstream, Event::Shutdown);
                    upstream
                }
                UpstreamState::Untouched => self.start(false, false),
                UpstreamState::Stopped => {
                    self.pipeline.set_state(gst::State::Null).unwrap();
                    self.valve.set_state(gst::State::Ready).unwrap();
                    self.start(true, false)
                }
                UpstreamState::Running | UpstreamState::Failed => self.start(true, true),
            };
            if state == UpstreamState::Failed {
                upstream.status.fail("no camera".into());
                let fault = self.apply(&mut upstream, Event::Error);
                assert_eq!(fault.as_deref(), Some("no camera"));
            }
            assert_eq!(upstream.status.state(), state);
            upstream
        }

        fn apply(&self, upstream: &mut Upstream, event: Event) -> Option<String> {
            upstream.apply(event, &self.valve, &self.sinkpad, &|| Duration::ZERO)
        }

        fn sync(&self, upstream: &mut Upstream, open: bool, now: Duration) -> Outcome {
            upstream.sync(&self.valve, &self.sinkpad, || inputs(open, now))
        }
    }

    impl Drop for Line {
        fn drop(&mut self) {
            for name in ["camera", "filter"] {
                self.element(name).set_locked_state(false);
            }
            self.pipeline.set_state(gst::State::Null).unwrap();
        }
    }

    fn inputs(open: bool, now: Duration) -> Inputs {
        Inputs {
            open,
            standby: Standby::Cold,
            now,
        }
    }

    #[test]
    fn the_invariant_holds_after_every_event_in_every_state() {
        for state in STATES {
            for event in EVENTS {
                let line = Line::new();
                let mut upstream = line.in_state(state);
                assert_eq!(upstream.violation(&line.valve), None, "{state:?}");
                line.apply(&mut upstream, event);
                assert_eq!(
                    upstream.violation(&line.valve),
                    None,
                    "{state:?} at {event:?}"
                );
            }
        }
    }

    #[test]
    fn a_violation_of_the_invariant_is_named() {
        let line = Line::new();
        let upstream = line.in_state(UpstreamState::Stopped);
        line.element("filter").set_locked_state(false);
        let violation = upstream.violation(&line.valve).unwrap();
        assert!(violation.contains("filter"), "{violation}");
        drop(upstream);

        let upstream = line.in_state(UpstreamState::Running);
        line.element("camera").set_state(gst::State::Null).unwrap();
        let violation = upstream.violation(&line.valve).unwrap();
        assert!(violation.contains("camera"), "{violation}");
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
    fn changes_around_upstream_are_seen_once() {
        let line = Line::new();
        let mut upstream = line.in_state(UpstreamState::Running);
        let mut next = |standby| {
            let seen = Seen::now(&line.valve, &line.sinkpad, standby);
            upstream.next_event(&seen, inputs(true, Duration::ZERO))
        };
        assert_eq!(next(Standby::Cold), None);
        assert_eq!(next(Standby::Warm), Some(Event::Standby));
        assert_eq!(next(Standby::Warm), None);
        line.sinkpad.peer().unwrap().unlink(&line.sinkpad).unwrap();
        line.valve.set_state(gst::State::Null).unwrap();
        assert_eq!(next(Standby::Warm), Some(Event::Pipeline));
        assert_eq!(next(Standby::Warm), Some(Event::Link));
        assert_eq!(next(Standby::Warm), None);
    }

    #[test]
    fn what_was_upstream_is_given_back_as_it_was() {
        let line = Line::new();
        let upstream = line.in_state(UpstreamState::Stopped);
        let camera = line.element("camera");
        let bus = camera.bus();
        let status = upstream.status.clone();
        drop(upstream);
        assert!(!camera.is_locked_state());
        assert_ne!(camera.bus(), bus);
        assert_eq!(status.state(), UpstreamState::Inactive);
    }
}
