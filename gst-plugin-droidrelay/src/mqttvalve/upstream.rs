// SPDX-License-Identifier: MPL-2.0

//! What is done with the elements upstream of the valve (`standby=cold`).
//!
//! The invariant, looked at after each change ([`Upstream::stray`]): while the valve is closed
//! each element is in NULL and locked, while it is open each is at the pipeline's target. They
//! are locked while the valve is open, too: one driver, the job that owns [`Upstream`], follows
//! the pipeline's target, and a camera that does not start fails no state change of the
//! pipeline. The way down from PAUSED is the bin's, as it is elsewhere: [`Hold::set_locked`]
//! gives it the elements.
//!
//! Nothing is locked while states change. The others see [`Status`].

use std::{mem, sync::Arc, time::Duration};

use droidrelay_wire::{Backoff, backoff::jitter};
use gst::prelude::*;

use super::{
    cat::CAT,
    descriptors::Devices,
    downstream,
    elements::{Elements, target_state, with_children},
    settings::Standby,
    shared::{Membership, Role},
    status::{Status, UpstreamState},
    survey::Obstacle,
};

/// A camera that fails is tried again within these bounds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Events that are followed in one run of the job, and when the next run is then.
const MAX_EVENTS: usize = 8;
const NEXT_RUN: Duration = Duration::from_millis(5);

/// What happens around upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The valve goes to READY; there is nothing that it may stop.
    StartUntouched,
    /// The valve goes to READY. Where it is open, that comes next.
    Start,
    /// The valve is open.
    Open,
    /// The valve is closed.
    Close,
    /// An element has posted an error, or did not start.
    Error,
    /// A camera that has failed may be tried again.
    RetryDue,
    /// An element is not where it should be: the pipeline has another target, the line another
    /// element, or somebody has changed its state.
    Stray,
    /// Nothing stands against stopping it any more, and the valve is open.
    AllowedOpen,
    /// Nothing stands against stopping it any more, and the valve is closed.
    AllowedClosed,
    /// Something stands against stopping it, or `standby` asks for less.
    Obstacle,
    /// Another valve, which it feeds too, stops it for both.
    Follow,
    /// The valve goes to NULL.
    Shutdown,
}

/// What a transition does with the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Locks them where they are.
    Hold,
    /// Brings them to NULL and locks them.
    Stop,
    /// Brings them to the pipeline's target, as a new beginning.
    Run,
    /// Brings them to the pipeline's target.
    Align,
    /// As `Stop`, and a time for the next try.
    ScheduleRetry,
    /// Forgets that tries have failed.
    CancelRetry,
    /// Gives them back to their parent, at the pipeline's target.
    GiveUp,
    /// Gives them back to their parent.
    Release,
    /// Gives them to the other valve.
    Yield,
}

/// The states that are legal, and how one comes from another; each cell is the next state and
/// what is done, `.` where all stays as it is.
///
/// | event          | Inactive      | Untouched      | Running               | Stopped           | Failed               | Following         |
/// |----------------|---------------|----------------|-----------------------|-------------------|----------------------|-------------------|
/// | StartUntouched | Untouched     | .              | .                     | .                 | .                    | .                 |
/// | Start          | Stopped, Hold | .              | .                     | .                 | .                    | .                 |
/// | Open           | .             | .              | .                     | Running, Run      | .                    | .                 |
/// | Close          | .             | .              | Stopped, Stop         | .                 | Stopped, CancelRetry | .                 |
/// | Error          | .             | .              | Failed, ScheduleRetry | .                 | .                    | .                 |
/// | RetryDue       | .             | .              | .                     | .                 | Running, Run         | .                 |
/// | Stray          | .             | .              | Running, Align        | Stopped, Stop     | Failed, Stop         | .                 |
/// | AllowedOpen    | .             | Running, Align | .                     | .                 | .                    | Running, Run      |
/// | AllowedClosed  | .             | Stopped, Stop  | .                     | .                 | .                    | Stopped, Stop     |
/// | Obstacle       | .             | .              | Untouched, GiveUp     | Untouched, GiveUp | Untouched, GiveUp    | Untouched, GiveUp |
/// | Follow         | Following     | Following      | Following, Yield      | Following, Yield  | Following, Yield     | .                 |
/// | Shutdown       | .             | Inactive       | Inactive, Release     | Inactive, Release | Inactive, Release    | Inactive          |
const fn transition(state: UpstreamState, event: Event) -> (UpstreamState, Action) {
    use UpstreamState::*;
    match (state, event) {
        (Inactive, Event::StartUntouched) => (Untouched, Action::Nothing),
        (Inactive, Event::Start) => (Stopped, Action::Hold),
        (Stopped, Event::Open) | (Failed, Event::RetryDue) | (Following, Event::AllowedOpen) => {
            (Running, Action::Run)
        }
        (Running, Event::Stray) | (Untouched, Event::AllowedOpen) => (Running, Action::Align),
        (Untouched | Following, Event::AllowedClosed)
        | (Running, Event::Close)
        | (Stopped, Event::Stray) => (Stopped, Action::Stop),
        (Failed, Event::Stray) => (Failed, Action::Stop),
        (Failed, Event::Close) => (Stopped, Action::CancelRetry),
        (Running, Event::Error) => (Failed, Action::ScheduleRetry),
        (Running | Stopped | Failed | Following, Event::Obstacle) => (Untouched, Action::GiveUp),
        (Running | Stopped | Failed, Event::Follow) => (Following, Action::Yield),
        (Inactive | Untouched, Event::Follow) => (Following, Action::Nothing),
        (Untouched | Following, Event::Shutdown) => (Inactive, Action::Nothing),
        (Running | Stopped | Failed, Event::Shutdown) => (Inactive, Action::Release),
        (stays, _) => (stays, Action::Nothing),
    }
}

/// What upstream is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Whether the valve is open.
    pub open: bool,
    pub standby: Standby,
    /// Frames that have come so far.
    pub frames: u64,
    /// How long a camera that runs may be silent; zero: for ever.
    pub timeout: Duration,
    /// On the element's clock.
    pub now: Duration,
}

/// Who stops what is upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This valve; `open`: it or another one that is fed from there.
    Ours { open: bool },
    /// No valve may.
    Nobodys,
    /// Another valve, which is fed from there as well.
    Anothers,
}

/// What came of following the valve.
#[derive(Debug, Default)]
pub struct Outcome {
    /// When to look again.
    pub due: Option<Duration>,
    /// Why the camera cannot deliver.
    pub fault: Option<String>,
    /// Devices that are open though what has opened them is stopped.
    pub still_open: Vec<String>,
    /// What the application should know, each once.
    pub warnings: Vec<String>,
}

/// Holds what is upstream, from READY on; gives it back when dropped.
pub struct Upstream {
    status: Arc<Status>,
    elements: Elements,
    /// All that is upstream, held or not.
    line: Vec<gst::Element>,
    /// What around the valve must be there while its neighbours are asked for: a pipeline that
    /// is being disposed of while it plays leaves them without parents one by one.
    root: Option<glib::WeakRef<gst::Object>>,
    backoff: Backoff,
    /// When a camera that has failed is tried again, on the element's clock.
    retry_at: Duration,
    /// Frames that had come when it was last seen that they do, and when that was.
    frames: (u64, Duration),
    /// It was told that none come.
    is_silent: bool,
    /// The one of [`Status`] to which the elements were brought last.
    life: u64,
    membership: Membership,
    /// Other valves that the line feeds.
    valves: Vec<gst::Element>,
    /// What stands against stopping it.
    obstacle: Option<Obstacle>,
    devices: Devices,
    warnings: Vec<String>,
}

impl Upstream {
    /// The valve goes to READY; its state change is not over, so nothing is asked of the network
    /// or of a camera.
    pub fn start(
        status: Arc<Status>,
        elements: Elements,
        membership: Membership,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        inputs: Inputs,
    ) -> Self {
        let mut upstream = Upstream {
            status,
            elements,
            line: Vec::new(),
            root: root(valve).as_ref().map(glib::clone::Downgrade::downgrade),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            retry_at: Duration::ZERO,
            frames: (inputs.frames, inputs.now),
            is_silent: false,
            life: 0,
            membership,
            valves: Vec::new(),
            obstacle: None,
            devices: Devices::default(),
            warnings: Vec::new(),
        };
        let event = match upstream.look(valve, sinkpad, inputs).0 {
            Whose::Ours { .. } => Event::Start,
            Whose::Nobodys => Event::StartUntouched,
            Whose::Anothers => Event::Follow,
        };
        upstream.apply(event, valve, sinkpad, &|| inputs.now);
        upstream
    }

    /// Whether there is something upstream that the valve stops.
    pub fn is_ours(&self) -> bool {
        !matches!(
            self.status.state(),
            UpstreamState::Untouched | UpstreamState::Inactive
        )
    }

    /// What the application should know, each once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        mem::take(&mut self.warnings)
    }

    /// Brings upstream to where `inputs` want it. A change that comes meanwhile is seen, or wakes
    /// the job once more.
    pub fn sync(
        &mut self,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        inputs: impl Fn() -> Inputs,
    ) -> Outcome {
        let root = match &self.root {
            Some(root) => match root.upgrade() {
                Some(root) => Some(root),
                None => return Outcome::default(),
            },
            None => None,
        };
        let now = || inputs().now;
        let mut outcome = Outcome::default();
        for turn in 0.. {
            let inputs = inputs();
            let (whose, fault) = self.look(valve, sinkpad, inputs);
            outcome.fault = fault.filter(|_| inputs.open).or(outcome.fault);
            let silence = self.watch(valve, inputs);
            outcome.fault = silence.or(outcome.fault);
            let Some(event) = self.next_event(valve, whose, inputs) else {
                outcome.due = self.due(valve, inputs);
                break;
            };
            if turn == MAX_EVENTS {
                // Somebody changes things faster than the camera follows: look again after them.
                outcome.due = Some(inputs.now + NEXT_RUN);
                break;
            }
            let fault = self.apply(event, valve, sinkpad, &now);
            outcome.fault = fault.or(outcome.fault);
        }
        self.warnings.extend(self.devices.look(now()));
        outcome.due = outcome.due.into_iter().chain(self.devices.due()).min();
        outcome.warnings = self.take_warnings();
        outcome.still_open = self.devices.still_open().to_vec();
        if self.status.own_state() == UpstreamState::Following {
            // An EOS of the pipeline's is for each valve to send on while no source runs.
            match self.status.state().is_stopped() {
                true => valve.set_element_flags(gst::ElementFlags::SOURCE),
                false => valve.unset_element_flags(gst::ElementFlags::SOURCE),
            }
        }
        if let Some(root) = root.and_downcast::<gst::Element>()
            && root.ref_count() == 1
        {
            // The application has let go of it meanwhile: not here, where its end would wait for
            // this job.
            root.call_async(|_| {});
        }
        outcome
    }

    /// Looks at the line, and holds what is new in it where it is this valve's to stop. With a
    /// fault that another valve has found.
    fn look(
        &mut self,
        valve: &gst::Element,
        sinkpad: &gst::Pad,
        inputs: Inputs,
    ) -> (Whose, Option<String>) {
        if inputs.standby != Standby::Cold {
            self.elements.look_away();
            self.membership.leave();
            self.obstacle = None;
            return (Whose::Nobodys, None);
        }
        let survey = self.elements.look(sinkpad);
        (self.line, self.valves) = (survey.elements, survey.valves);
        if self.obstacle != survey.obstacle {
            self.obstacle = survey.obstacle;
            if let Some(Obstacle::Cannot(reason)) = &self.obstacle {
                self.warnings.push(format!(
                    "standby=cold is not possible, warm instead: {reason}"
                ));
            }
        }
        if self.obstacle.is_some() {
            self.membership.leave();
            return (Whose::Nobodys, None);
        }
        let open = match self.membership.join(&self.line, inputs.open) {
            Role::Leads { others_open } => inputs.open || others_open,
            Role::Follows { leader, fault } => {
                self.status.follow(Some(leader));
                return (Whose::Anothers, fault);
            }
        };
        if let Some(clock) = valve.clock()
            && let Some(provider) = Elements::provider(&self.line, &clock)
        {
            self.warnings.push(format!(
                "{} provides the pipeline's clock, which stands still while the valve is closed: \
                 select another clock, or set the pipeline to PAUSED and PLAYING at CLOCK_LOST",
                provider.name()
            ));
        }
        self.elements.adopt(&self.line);
        (Whose::Ours { open }, None)
    }

    /// When to look again though nothing happens.
    fn due(&self, valve: &gst::Element, inputs: Inputs) -> Option<Duration> {
        match self.status.own_state() {
            UpstreamState::Failed => Some(self.retry_at),
            state if runs(state) && is_watched(valve, inputs) => {
                // Told of, it is over with the next frame.
                Some(self.frames.1 + inputs.timeout).filter(|_| !self.is_silent)
            }
            _ => None,
        }
    }

    /// A camera that says nothing has failed as well. One that is not the valve's to start anew is
    /// told of.
    fn watch(&mut self, valve: &gst::Element, inputs: Inputs) -> Option<String> {
        let state = self.status.own_state();
        if !runs(state) || !is_watched(valve, inputs) || self.frames.0 != inputs.frames {
            self.frames = (inputs.frames, inputs.now);
            self.is_silent = false;
        } else if inputs.now >= self.frames.1 + inputs.timeout && !self.is_silent {
            let camera = self.line.last().map(|it| it.name());
            let camera = camera.as_deref().unwrap_or("upstream");
            let seconds = inputs.timeout.as_secs();
            let fault = format!("{camera}: no frame for {seconds} s");
            if state == UpstreamState::Running {
                self.status.fail(fault);
            } else {
                self.is_silent = true;
                return Some(fault);
            }
        }
        None
    }

    /// What has happened and was not followed yet.
    fn next_event(&mut self, valve: &gst::Element, whose: Whose, inputs: Inputs) -> Option<Event> {
        use UpstreamState::{Failed, Following, Inactive, Running, Stopped, Untouched};
        let state = self.status.own_state();
        let open = match whose {
            _ if state == Inactive => return None,
            Whose::Nobodys => return (state != Untouched).then_some(Event::Obstacle),
            Whose::Anothers => return (state != Following).then_some(Event::Follow),
            Whose::Ours { open } => open,
        };
        match state {
            Untouched | Following if open => Some(Event::AllowedOpen),
            Untouched | Following => Some(Event::AllowedClosed),
            Running | Failed if !open => Some(Event::Close),
            Running if self.status.has_failed() => Some(Event::Error),
            Stopped if open => Some(Event::Open),
            Failed if self.retry_at <= inputs.now => Some(Event::RetryDue),
            Running | Stopped | Failed => self.stray(valve).map(|_| Event::Stray),
            Inactive => None,
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
        let before = self.status.own_state();
        let action = self.status.advance(|state| transition(state, event));
        if before != self.status.own_state() {
            self.membership.tell(None);
        }
        if action != Action::Nothing {
            gst::debug!(CAT, obj = valve, "upstream: {event:?}, {action:?}");
        }
        match action {
            Action::Nothing => {}
            Action::CancelRetry => self.backoff.reset(),
            Action::Release | Action::Yield => {
                self.devices.rest();
                self.elements.release(&[], valve);
            }
            Action::GiveUp => {
                valve.unset_element_flags(gst::ElementFlags::SOURCE);
                self.status.take_error();
                self.backoff.reset();
                self.devices.rest();
                self.elements.release(&self.line, valve);
            }
            // `look` has locked them.
            Action::Hold => valve.set_element_flags(gst::ElementFlags::SOURCE),
            Action::Stop => {
                self.stop(valve, sinkpad, now());
                if event != Event::Stray {
                    self.backoff.reset();
                }
            }
            Action::Run | Action::Align => {
                if action == Action::Run {
                    // What an earlier life posted says nothing about this one.
                    self.status.take_error();
                    valve.unset_element_flags(gst::ElementFlags::SOURCE);
                }
                self.frames.1 = now();
                let life = self.status.life();
                let anew = mem::replace(&mut self.life, life) != life;
                if anew {
                    self.wait_for_pushes(sinkpad);
                }
                let started = self.elements.start(valve, target_state(valve), anew);
                self.devices.started(&self.all());
                if let Err(error) = started {
                    self.status.fail(error);
                    return self.apply(Event::Error, valve, sinkpad, now);
                }
                if action == Action::Run {
                    let latency = gst::message::Latency::builder().src(valve).build();
                    // Without a bus nobody listens.
                    let _ = valve.post_message(latency);
                }
            }
            Action::ScheduleRetry => {
                // The error is forgotten only then: by it the end of the failed stream, which may
                // just be on its way, is known as such.
                self.stop(valve, sinkpad, now());
                let error = self.status.take_error().unwrap_or_default();
                let wait = self.backoff.next(jitter());
                self.retry_at = now() + wait;
                gst::warning!(
                    CAT,
                    obj = valve,
                    "camera failed, next try in {} ms: {error}",
                    wait.as_millis()
                );
                self.membership.tell(Some(&error));
                return Some(error);
            }
        }
        None
    }

    /// All that is upstream, and what is in it.
    fn all(&self) -> Vec<gst::Element> {
        self.line.iter().flat_map(with_children).collect()
    }

    fn stop(&mut self, valve: &gst::Element, sinkpad: &gst::Pad, now: Duration) {
        let held_back = self.hold_back(sinkpad);
        self.wait_for_pushes(sinkpad);
        self.elements.stop(|| {
            downstream::drain(valve);
            self.valves.iter().for_each(downstream::drain);
        });
        drop(held_back);
        self.devices.stopped(&self.all(), now);
        // So that a pipeline-wide EOS reaches what is downstream while no source runs.
        valve.set_element_flags(gst::ElementFlags::SOURCE);
    }

    /// Lets no frame into a valve until it is dropped, though the valve be open (the camera has
    /// failed): it could wait below, in a sink that has just been paused.
    fn hold_back(&self, sinkpad: &gst::Pad) -> HeldBack {
        let kind = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
        let hold = |pad: gst::Pad| {
            // Not `Drop`: GStreamer 1.22 would unref once more what the bindings have let go of.
            let probe = pad.add_probe(kind, |_, _| gst::PadProbeReturn::Handled)?;
            Some((pad, probe))
        };
        let others = self.valves.iter().flat_map(|valve| valve.sink_pads());
        HeldBack(others.chain([sinkpad.clone()]).filter_map(hold).collect())
    }

    /// Stopping an element whose streaming thread is below a valve would wait for it while the
    /// application may wait for us: lets those pushes return first.
    fn wait_for_pushes(&self, sinkpad: &gst::Pad) {
        drop(sinkpad.stream_lock());
        for pad in self.valves.iter().flat_map(|valve| valve.sink_pads()) {
            drop(pad.stream_lock());
        }
    }

    /// An element that is not as the state promises.
    fn stray(&self, valve: &gst::Element) -> Option<gst::Element> {
        let (state, locked) = match self.status.own_state() {
            // On its way to NULL all is given back.
            UpstreamState::Running if target_state(valve) == gst::State::Null => return None,
            UpstreamState::Running => (target_state(valve), false),
            UpstreamState::Stopped | UpstreamState::Failed => (gst::State::Null, true),
            UpstreamState::Inactive | UpstreamState::Untouched | UpstreamState::Following => {
                return None;
            }
        };
        let stray = self.elements.stray(valve, state, locked).or_else(|| {
            let old = state > gst::State::Ready && self.life != self.status.life();
            self.line.first().filter(|_| old).cloned()
        })?;
        gst::debug!(
            CAT,
            obj = valve,
            "{} is in {:?}, locked: {}; it should be in {state:?}",
            stray.name(),
            target_state(&stray),
            stray.is_locked_state()
        );
        Some(stray)
    }
}

/// See [`Upstream::hold_back`].
struct HeldBack(Vec<(gst::Pad, gst::PadProbeId)>);

impl Drop for HeldBack {
    fn drop(&mut self) {
        for (pad, probe) in self.0.drain(..) {
            pad.remove_probe(probe);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // Its elements give themselves back.
        self.status
            .advance(|state| transition(state, Event::Shutdown));
    }
}

/// Frames come from there while the valve is open.
fn runs(state: UpstreamState) -> bool {
    matches!(state, UpstreamState::Running | UpstreamState::Untouched)
}

fn is_watched(valve: &gst::Element, inputs: Inputs) -> bool {
    inputs.open && inputs.timeout > Duration::ZERO && target_state(valve) == gst::State::Playing
}

/// The outermost object around `valve`, if there is one.
fn root(valve: &gst::Element) -> Option<gst::Object> {
    let mut root = valve.parent()?;
    while let Some(parent) = root.parent() {
        root = parent;
    }
    Some(root)
}

#[cfg(test)]
mod tests;
