// SPDX-License-Identifier: MPL-2.0

//! The elements upstream of the valve, where they are the valve's to stop: those that feed
//! nothing else. Their errors are kept from the pipeline's bus, because a camera that fails is
//! tried again, not a reason to end.

use gst::prelude::*;
use gst_base::prelude::*;

use super::cat::CAT;

/// Given back, unlocked and with the bus that they had, when dropped.
#[derive(Debug)]
pub struct Elements {
    /// Nearest first.
    elements: Vec<gst::Element>,
    /// The bus that they had before: the one of the bin around them.
    bus: Option<gst::Bus>,
}

impl Elements {
    /// Finds what is upstream of `sink`, or says why it cannot be stopped; `on_error` is called
    /// with each error that one of it posts.
    pub fn find(
        sink: &gst::Pad,
        on_error: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let mut elements = Vec::new();
        collect(sink, &mut elements)?;
        let found = Elements {
            bus: elements[0].bus(),
            elements,
        };
        found.intercept(on_error);
        Ok(found)
    }

    /// Takes the elements' errors off their way to the application.
    fn intercept(&self, on_error: impl Fn(String) + Send + Sync + 'static) {
        let Some(parent) = self.bus.clone() else {
            return;
        };
        let bus = gst::Bus::new();
        bus.set_sync_handler(move |_, message| {
            if let gst::MessageView::Error(error) = message.view() {
                let from = message.src().map(|src| src.name()).unwrap_or_default();
                let error = error.error();
                let told = message
                    .src()
                    .and_then(|src| droidrelay_camera::explain(src, &error));
                let text = told.unwrap_or_else(|| error.to_string());
                on_error(format!("{from}: {text}"));
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
                gst::warning!(CAT, obj = element, "could not be stopped: {err}");
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
            element
                .set_state(state)
                .map_err(|_| format!("{}: cannot start", element.name()))?;
        }
        Ok(())
    }

    /// The first one that is not both in `state`, or on its way there, and `locked` or not.
    pub fn stray(&self, state: gst::State, locked: bool) -> Option<&gst::Element> {
        self.elements
            .iter()
            .find(|element| element.is_locked_state() != locked || target_state(element) != state)
    }
}

impl Drop for Elements {
    fn drop(&mut self) {
        for element in &self.elements {
            element.set_bus(self.bus.as_ref());
            element.set_locked_state(false);
        }
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

/// Adds what is upstream of `sink` to `elements`, each once, on however many ways it is reached.
fn collect(sink: &gst::Pad, elements: &mut Vec<gst::Element>) -> Result<(), String> {
    let peer = sink
        .peer()
        .ok_or_else(|| format!("pad {} is not linked (yet)", sink.name()))?;
    let element = peer
        .parent_element()
        .ok_or("the valve is in a bin that is fed from outside: put the source beside it")?;
    if elements.contains(&element) {
        return Ok(());
    }
    let name = element.name();
    if element.num_src_pads() != 1 {
        return Err(format!(
            "{name} feeds {} branches: stopping it would stop the others",
            element.num_src_pads()
        ));
    }
    if peer
        .pad_template()
        .is_some_and(|template| template.presence() != gst::PadPresence::Always)
    {
        return Err(format!(
            "{name} makes its pads as it runs: they would be gone after a restart"
        ));
    }
    if let Some(source) = element.downcast_ref::<gst_base::BaseSrc>()
        && !source.is_live()
    {
        return Err(format!(
            "{name} is not live: it would start over with old time stamps"
        ));
    }
    elements.push(element.clone());
    for pad in element.sink_pads() {
        collect(&pad, elements)?;
    }
    Ok(())
}
