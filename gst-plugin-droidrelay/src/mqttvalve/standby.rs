// SPDX-License-Identifier: MPL-2.0

//! Stops and restarts what is upstream of a closed valve (`standby=cold`).
//!
//! Only elements that feed nothing but the valve are touched. Their errors are kept from the
//! pipeline's bus, because a camera that fails is tried again, not a reason to end.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gst::prelude::*;
use gst_base::prelude::*;

use crate::element::link;

/// The elements upstream of the valve, nearest first.
pub struct Upstream {
    elements: Vec<gst::Element>,
    /// The bus that the elements had before: the one of the bin around them.
    bus: Option<gst::Bus>,
    errors: Errors,
}

/// The first error that upstream elements have posted since they were last cleared.
#[derive(Clone, Default)]
pub struct Errors(Arc<Mutex<Option<String>>>);

impl Errors {
    pub fn first(&self) -> Option<String> {
        self.lock().clone()
    }

    pub fn clear(&self) {
        self.lock().take();
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_none()
    }

    /// What comes after the first is most often its consequence.
    fn add(&self, error: String) {
        self.lock().get_or_insert(error);
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why what is upstream cannot be stopped.
#[derive(Debug)]
pub struct Ineligible(String);

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Upstream {
    /// Finds what is upstream of `sink`; `on_error` is called when one of it has posted an error.
    pub fn find(
        sink: &gst::Pad,
        errors: Errors,
        on_error: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, Ineligible> {
        let mut elements = Vec::new();
        collect(sink, &mut elements)?;
        let mut upstream = Upstream {
            bus: elements[0].bus(),
            elements,
            errors,
        };
        upstream.intercept(on_error);
        Ok(upstream)
    }

    /// Takes the elements' errors off their way to the application.
    fn intercept(&mut self, on_error: impl Fn() + Send + Sync + 'static) {
        let Some(parent) = self.bus.clone() else {
            return;
        };
        let errors = self.errors.clone();
        let bus = gst::Bus::new();
        bus.set_sync_handler(move |_, message| {
            if let gst::MessageView::Error(error) = message.view() {
                let from = message
                    .src()
                    .map(|src| src.name().to_string())
                    .unwrap_or_default();
                errors.add(format!("{from}: {}", error.error()));
                on_error();
            } else {
                // Nobody listens only while the pipeline is being taken apart.
                let _ = parent.post(message.clone());
            }
            gst::BusSyncReply::Drop
        });
        for element in &self.elements {
            element.set_bus(Some(&bus));
        }
    }

    /// Keeps the parent's state changes from the elements, which stay as they are.
    pub fn lock(&self) {
        for element in &self.elements {
            element.set_locked_state(true);
        }
    }

    /// Brings the elements to NULL and holds them there.
    pub fn stop(&self) {
        self.lock();
        for element in &self.elements {
            if let Err(err) = element.set_state(gst::State::Null) {
                gst::warning!(
                    super::imp::CAT,
                    obj = element,
                    "could not be stopped: {err}"
                );
            }
        }
    }

    /// Brings the elements to `state`, in the clock and base time of `valve`.
    pub fn start(&self, valve: &gst::Element, state: gst::State) -> Result<(), String> {
        for element in &self.elements {
            element.set_locked_state(false);
            element.set_base_time(valve.base_time().unwrap_or_default());
            element.set_start_time(valve.start_time());
            if let Some(clock) = valve.clock() {
                // An element that provides the clock itself may refuse; it then keeps its own.
                let _ = element.set_clock(Some(&clock));
            }
            if element.set_state(state).is_err() {
                return Err(self
                    .errors
                    .first()
                    .unwrap_or_else(|| format!("{}: cannot start", element.name())));
            }
        }
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for element in &self.elements {
            element.set_bus(self.bus.as_ref());
            element.set_locked_state(false);
        }
    }
}

/// Makes the elements between the valve and a sink that ends sessions by itself give back what
/// they hold for a stream (an encoder its pictures and threads): they begin the next one as the
/// first. Nothing may come from the valve meanwhile. Elements before any other sink keep what
/// they have, for it is theirs to write. Returns whether there were any.
pub fn reset(src: &gst::Pad) -> bool {
    let mut elements = Vec::new();
    let mut pad = src.clone();
    while let Some(peer) = pad.peer()
        && let Some(element) = peer.parent_element()
        && !link::is_of_session_sink(&peer)
    {
        let (1, [src]) = (element.num_sink_pads(), &element.src_pads()[..]) else {
            return false;
        };
        pad = src.clone();
        elements.push(element);
    }
    if elements.is_empty() || pad.peer().is_none() {
        return false;
    }
    for element in elements.iter().rev() {
        if element.set_state(gst::State::Ready).is_err() {
            gst::warning!(super::imp::CAT, obj = element, "cannot be stopped");
        }
    }
    for element in elements.iter().rev() {
        if element.sync_state_with_parent().is_err() {
            gst::warning!(super::imp::CAT, obj = element, "cannot be started again");
        }
    }
    true
}

/// Adds what is upstream of `sink` to `elements`, each once, on however many ways it is reached.
fn collect(sink: &gst::Pad, elements: &mut Vec<gst::Element>) -> Result<(), Ineligible> {
    let peer = sink
        .peer()
        .ok_or_else(|| Ineligible(format!("pad {} is not linked (yet)", sink.name())))?;
    let element = peer.parent_element().ok_or_else(|| {
        Ineligible(
            "the valve is in a bin that is fed from outside: put the source beside it".into(),
        )
    })?;
    if elements.contains(&element) {
        return Ok(());
    }
    let name = element.name();
    if element.num_src_pads() != 1 {
        return Err(Ineligible(format!(
            "{name} feeds {} branches: stopping it would stop the others",
            element.num_src_pads()
        )));
    }
    if peer
        .pad_template()
        .is_some_and(|template| template.presence() != gst::PadPresence::Always)
    {
        return Err(Ineligible(format!(
            "{name} makes its pads as it runs: they would be gone after a restart"
        )));
    }
    if let Some(source) = element.downcast_ref::<gst_base::BaseSrc>()
        && !source.is_live()
    {
        return Err(Ineligible(format!(
            "{name} is not live: it would start over with old time stamps"
        )));
    }
    elements.push(element.clone());
    for pad in element.sink_pads() {
        collect(&pad, elements)?;
    }
    Ok(())
}
