// SPDX-License-Identifier: MPL-2.0

//! The elements upstream of the valve while they are the valve's to stop. They are locked: their
//! parent's state changes pass them by. Their errors are kept from the pipeline's bus, because a
//! camera that fails is tried again, not a reason to end. Their clocks are not offered to the
//! pipeline, because they stop with them. All of it is undone where an element is given back.

use std::sync::{Arc, Weak};

use gst::prelude::*;
use parking_lot::Mutex;

use super::{
    cat::CAT,
    shared,
    survey::{self, Survey},
};

/// What has been seen of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It has posted an error.
    Error(String),
    /// Its state or a link of it has changed.
    Changed,
}

type OnNotice = Arc<dyn Fn(Notice) + Send + Sync>;

/// One that is held, and how it was.
#[derive(Debug)]
struct Held {
    element: gst::Element,
    /// The bus of the bin around it, and ours in its place.
    bus: Option<gst::Bus>,
    own_bus: gst::Bus,
    /// Those of it, or in it, that had offered a clock.
    clocks: Vec<gst::Element>,
}

impl Held {
    fn take(element: &gst::Element, on_notice: &OnNotice) -> Self {
        let bus = element.bus();
        let own_bus = intercept(element, bus.clone(), on_notice.clone());
        element.set_bus(Some(&own_bus));
        element.set_locked_state(true);
        let clocks: Vec<gst::Element> = with_children(element)
            .into_iter()
            .filter(|it| {
                it.element_flags()
                    .contains(gst::ElementFlags::PROVIDE_CLOCK)
            })
            .collect();
        for provider in &clocks {
            provider.unset_element_flags(gst::ElementFlags::PROVIDE_CLOCK);
        }
        Held {
            element: element.clone(),
            bus,
            own_bus,
            clocks,
        }
    }

    /// Whether it is still in the bin in which it was taken.
    fn is_in_place(&self) -> bool {
        self.element.bus().as_ref() == Some(&self.own_bus)
    }

    fn give_back(&self) {
        if self.is_in_place() {
            self.element.set_bus(self.bus.as_ref());
        }
        self.element.set_locked_state(false);
        for provider in &self.clocks {
            provider.set_element_flags(gst::ElementFlags::PROVIDE_CLOCK);
        }
    }
}

pub fn with_children(element: &gst::Element) -> Vec<gst::Element> {
    let children = element.downcast_ref::<gst::Bin>().map(|bin| {
        let children = bin.iterate_recurse().into_iter().flatten();
        children.collect::<Vec<_>>()
    });
    let mut elements = children.unwrap_or_default();
    elements.push(element.clone());
    elements
}

/// A bus for `element` that takes its errors off their way to the application.
fn intercept(element: &gst::Element, parent: Option<gst::Bus>, on_notice: OnNotice) -> gst::Bus {
    // As the one that a bin has for what it holds: nobody waits on it.
    let bus: gst::Bus = glib::Object::builder()
        .property("enable-async", false)
        .build();
    let held = element.downgrade();
    bus.set_sync_handler(move |_, message| {
        let is_of_held = || message.src() == held.upgrade().as_ref().map(|it| it.upcast_ref());
        match message.view() {
            gst::MessageView::Error(error) => {
                let from = message.src().map(|src| src.name()).unwrap_or_default();
                let error = error.error();
                let told = message
                    .src()
                    .and_then(|src| droidrelay_camera::explain(src, &error));
                let text = told.unwrap_or_else(|| error.to_string());
                on_notice(Notice::Error(format!("{from}: {text}")));
                return gst::BusSyncReply::Drop;
            }
            gst::MessageView::StateChanged(_) if is_of_held() => on_notice(Notice::Changed),
            _ => {}
        }
        if let Some(parent) = &parent {
            // Nobody listens only while the pipeline is being taken apart.
            let _ = parent.post(message.clone());
        }
        gst::BusSyncReply::Drop
    });
    bus
}

/// Those that are held, for the valve's state changes and for what happens to their links as
/// well. Locked for moments, in which nothing is called but setters.
#[derive(Debug, Default)]
pub struct Hold(Mutex<Vec<Held>>);

impl Hold {
    fn holds(&self, element: &gst::Element) -> bool {
        self.0.lock().iter().any(|held| held.element == *element)
    }

    fn elements(&self) -> Vec<gst::Element> {
        let held = self.0.lock();
        held.iter().map(|held| held.element.clone()).collect()
    }

    /// Whether the parent's state changes pass them by.
    pub fn set_locked(&self, locked: bool) {
        for element in self.elements() {
            element.set_locked_state(locked);
        }
    }

    /// Holds these alone, in this order.
    fn adopt(&self, elements: &[gst::Element], on_notice: &OnNotice) {
        let gone = {
            let mut all = self.0.lock();
            let mut before = std::mem::take(&mut *all);
            for element in elements {
                let at = before.iter().position(|held| held.element == *element);
                let held = at.map(|at| before.remove(at));
                all.push(match held {
                    Some(held) if held.is_in_place() => held,
                    moved => {
                        moved.iter().for_each(Held::give_back);
                        Held::take(element, on_notice)
                    }
                });
            }
            before
        };
        for held in &gone {
            held.give_back();
        }
    }

    /// Gives back all but these.
    fn keep(&self, elements: &[gst::Element]) {
        let gone: Vec<Held> = {
            let mut all = self.0.lock();
            let (kept, gone) = std::mem::take(&mut *all)
                .into_iter()
                .partition(|held| elements.contains(&held.element));
            *all = kept;
            gone
        };
        for held in &gone {
            held.give_back();
        }
    }
}

/// Holds elements; gives them back when dropped.
pub struct Elements {
    hold: Arc<Hold>,
    on_notice: OnNotice,
    watch: Watch,
}

impl Elements {
    /// None yet; `on_notice` is called with what happens to those that are held and to the line,
    /// in any thread.
    pub fn new(hold: Arc<Hold>, on_notice: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Elements {
            hold,
            on_notice: Arc::new(on_notice),
            watch: Watch::default(),
        }
    }

    /// Looks at the line before `sink`, and will tell when it changes.
    pub fn look(&mut self, sink: &gst::Pad) -> Survey {
        let survey = survey::look(sink, |element| {
            self.hold.holds(element) || shared::is_claimed(element)
        });
        self.watch
            .follow(sink, &survey, &self.hold, &self.on_notice);
        survey
    }

    /// Is not told of the line any more.
    pub fn look_away(&mut self) {
        self.watch = Watch::default();
    }

    /// Holds these alone.
    pub fn adopt(&self, elements: &[gst::Element]) {
        self.hold.adopt(elements, &self.on_notice);
    }

    /// Gives all back, and brings those that are still among `upstream` to where `valve` is: what
    /// was stopped goes on without the valve.
    pub fn release(&self, upstream: &[gst::Element], valve: &gst::Element) {
        let mut held = self.elements();
        held.retain(|element| upstream.contains(element));
        self.hold.keep(&[]);
        for element in held {
            set_times(&element, valve);
            // It has told the application why.
            let _ = element.set_state(target_state(valve));
        }
    }

    /// The one whose clock is `clock`, before they are held.
    pub fn provider(elements: &[gst::Element], clock: &gst::Clock) -> Option<gst::Element> {
        let all = elements.iter().flat_map(with_children);
        let mut providers = all.filter(|it| {
            it.element_flags()
                .contains(gst::ElementFlags::PROVIDE_CLOCK)
        });
        providers.find(|element| element.provide_clock().as_ref() == Some(clock))
    }

    /// Brings the elements to NULL and holds them there; `between`: when they make nothing any more,
    /// and before they give up what they have made it of.
    pub fn stop(&self, between: impl FnOnce()) {
        let mut running = self.elements();
        running.retain(|element| target_state(element) > gst::State::Ready);
        if !running.is_empty() {
            // What cannot go there is brought to NULL all the same.
            let _ = self.drive(running, gst::State::Ready, |_| {});
            between();
        }
        if let Err(error) = self.drive(self.elements(), gst::State::Null, |_| {}) {
            gst::warning!(CAT, "{error}");
        }
    }

    /// Brings the elements to `state`, in the clock and base time of `valve`; `anew`: from READY
    /// on, wherever they are.
    pub fn start(&self, valve: &gst::Element, state: gst::State, anew: bool) -> Result<(), String> {
        if anew
            && self
                .elements()
                .iter()
                .any(|it| target_state(it) > gst::State::Ready)
        {
            self.drive(self.elements(), gst::State::Ready, |_| {})?;
        }
        self.drive(self.elements(), state, |element| set_times(element, valve))
    }

    fn elements(&self) -> Vec<gst::Element> {
        self.hold.elements()
    }

    /// Brings `elements`, which are held, to `state`, nearest first; none that is taken away
    /// meanwhile stays in it.
    fn drive(
        &self,
        elements: Vec<gst::Element>,
        state: gst::State,
        prepare: impl Fn(&gst::Element),
    ) -> Result<(), String> {
        let mut outcome = Ok(());
        for element in elements {
            element.set_locked_state(true);
            prepare(&element);
            let result = element.set_state(state);
            if !self.hold.holds(&element) {
                element.set_locked_state(false);
                let _ = match element.parent() {
                    Some(_) => element.sync_state_with_parent().map_err(|_| ()),
                    None => element
                        .set_state(gst::State::Null)
                        .map(|_| ())
                        .map_err(|_| ()),
                };
            } else if result.is_err() {
                outcome = Err(format!("{}: cannot go to {state:?}", element.name()));
                if state != gst::State::Null {
                    break;
                }
            }
        }
        outcome
    }

    /// The first one that is not in `state`, or on its way there, or not locked where it is to
    /// be so, or that plays in another time than `valve`.
    pub fn stray(
        &self,
        valve: &gst::Element,
        state: gst::State,
        locked: bool,
    ) -> Option<gst::Element> {
        let base = valve.base_time().filter(|_| state == gst::State::Playing);
        self.elements().into_iter().find(|element| {
            (locked && !element.is_locked_state())
                || target_state(element) != state
                || base.is_some_and(|base| element.base_time() != Some(base))
        })
    }
}

impl Drop for Elements {
    fn drop(&mut self) {
        self.look_away();
        self.hold.keep(&[]);
    }
}

fn set_times(element: &gst::Element, valve: &gst::Element) {
    element.set_base_time(valve.base_time().unwrap_or_default());
    element.set_start_time(valve.start_time());
    if let Some(clock) = valve.clock() {
        // An element that provides the clock itself may refuse; it then keeps its own.
        let _ = element.set_clock(Some(&clock));
    }
}

/// The state that `element` has or is on its way to.
pub fn target_state(element: &gst::Element) -> gst::State {
    let (_, current, pending) = element.state(gst::ClockTime::ZERO);
    if pending == gst::State::VoidPending {
        current
    } else {
        pending
    }
}

/// Who is told when the line changes.
#[derive(Default)]
struct Watch {
    pads: Vec<gst::Pad>,
    elements: Vec<gst::Element>,
    handlers: Vec<(gst::Object, glib::SignalHandlerId)>,
}

impl Watch {
    fn follow(&mut self, sink: &gst::Pad, survey: &Survey, hold: &Arc<Hold>, on_notice: &OnNotice) {
        let elements = &survey.seen[..];
        let mut pads = vec![sink.clone()];
        pads.extend(elements.iter().flat_map(|element| element.pads()));
        pads.extend(survey.valves.iter().flat_map(|valve| valve.sink_pads()));
        if self.pads == pads && self.elements == elements {
            return;
        }
        let mut watch = Watch {
            pads,
            elements: elements.to_vec(),
            handlers: Vec::new(),
        };
        for pad in watch.pads.clone() {
            let told = on_notice.clone();
            let linked = pad.connect_linked(move |_, _| told(Notice::Changed));
            let (told, hold, sink) = (on_notice.clone(), Arc::downgrade(hold), sink.downgrade());
            let unlinked = pad.connect_unlinked(move |_, _| {
                give_up_strangers(&hold, &sink);
                told(Notice::Changed);
            });
            watch.handlers.push((pad.clone().upcast(), linked));
            watch.handlers.push((pad.upcast(), unlinked));
        }
        for element in elements {
            let told = on_notice.clone();
            let added = element.connect_pad_added(move |_, _| told(Notice::Changed));
            let told = on_notice.clone();
            let removed = element.connect_pad_removed(move |_, _| told(Notice::Changed));
            watch.handlers.push((element.clone().upcast(), added));
            watch.handlers.push((element.clone().upcast(), removed));
        }
        for valve in &survey.valves {
            let told = on_notice.clone();
            let standby = move |_: &gst::Element, _: &glib::ParamSpec| told(Notice::Changed);
            let handler = valve.connect_notify(Some("standby"), standby);
            watch.handlers.push((valve.clone().upcast(), handler));
        }
        *self = watch;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for (object, handler) in self.handlers.drain(..) {
            object.disconnect(handler);
        }
    }
}

/// What is no longer upstream is given back at once, by whoever unlinks it: they may put it into
/// another pipeline next.
fn give_up_strangers(hold: &Weak<Hold>, sink: &glib::WeakRef<gst::Pad>) {
    if let (Some(hold), Some(sink)) = (hold.upgrade(), sink.upgrade()) {
        let survey = survey::look(&sink, |element| {
            hold.holds(element) || shared::is_claimed(element)
        });
        hold.keep(&survey.elements);
    }
}
