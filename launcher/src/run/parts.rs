// SPDX-License-Identifier: MPL-2.0

//! The parts of a side branch, which are taken down and brought up together.

use std::sync::{Arc, Mutex, PoisonError};

use gst::prelude::*;

/// Where a branch begins.
#[derive(Debug, Clone)]
pub struct Head {
    guard: gst::Pad,
    first: gst::Pad,
    /// Keeps everything from a branch that is down. It stays linked: what comes into the tee has
    /// to go on being what the branch takes, too.
    shut: Arc<Mutex<Option<gst::PadProbeId>>>,
}

impl Head {
    pub fn new(guard: gst::Pad, first: gst::Pad) -> Self {
        Head {
            guard,
            first,
            shut: Arc::default(),
        }
    }

    fn probe(&self) -> std::sync::MutexGuard<'_, Option<gst::PadProbeId>> {
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) {
        let kinds = gst::PadProbeType::DATA_DOWNSTREAM;
        let swallow = |_: &gst::Pad, _: &mut gst::PadProbeInfo| gst::PadProbeReturn::Handled;
        let mut probe = self.probe();
        if probe.is_none() {
            *probe = self.guard.add_probe(kinds, swallow);
        }
    }

    /// False where they cannot be linked any more.
    fn open(&self) -> bool {
        // Linked anew, the branch gets all that stands before the first buffer once more.
        let linked = self.guard.unlink(&self.first).and_then(|()| {
            let check = gst::PadLinkCheck::empty();
            let linked = self.guard.link_full(&self.first, check);
            linked.map_err(|err| glib::bool_error!("{err:?}"))
        });
        let probe = self.probe().take();
        if let Some(probe) = probe {
            self.guard.remove_probe(probe);
        }
        linked.is_ok()
    }
}

/// Of one branch.
#[derive(Debug, Clone)]
pub struct Parts {
    pub heads: Vec<Head>,
    /// Sinks before what feeds them.
    pub elements: Vec<gst::Element>,
    /// Those of them on whose end of stream the pipeline's end waits.
    pub sinks: Vec<gst::Element>,
}

impl Parts {
    /// From now on nothing gets into the branch, and the pipeline does not wait for it.
    pub fn cut(&self) {
        self.heads.iter().for_each(Head::shut);
        for element in &self.elements {
            element.set_locked_state(true);
        }
        for sink in &self.sinks {
            sink.unset_element_flags(gst::ElementFlags::SINK);
        }
    }

    /// Brings the branch to NULL; what it writes to may take its time.
    pub fn stop(&self) {
        for element in &self.elements {
            // There is no way to stop it more.
            let _ = element.set_state(gst::State::Null);
        }
    }

    /// Brings the branch to where the pipeline is; false where it does not go there.
    pub fn start(&self, pipeline: &gst::Pipeline) -> bool {
        let (_, current, pending) = pipeline.state(gst::ClockTime::ZERO);
        let target = match pending {
            gst::State::VoidPending => current,
            pending => pending,
        };
        for element in &self.elements {
            // A sink that waits for its first buffer would take the whole pipeline back to PAUSED.
            if element.find_property("async").is_some() {
                element.set_property("async", false);
            }
            element.set_base_time(pipeline.base_time().unwrap_or_default());
            element.set_start_time(pipeline.start_time());
            if let Some(clock) = pipeline.clock() {
                // One that provides the clock itself may refuse; it then keeps its own.
                let _ = element.set_clock(Some(&clock));
            }
            if element.set_state(target).is_err() {
                return false;
            }
        }
        for element in &self.elements {
            element.set_locked_state(false);
        }
        for sink in &self.sinks {
            sink.set_element_flags(gst::ElementFlags::SINK);
        }
        self.heads.iter().all(Head::open)
    }
}
