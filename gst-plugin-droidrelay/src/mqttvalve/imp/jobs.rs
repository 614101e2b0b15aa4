// SPDX-License-Identifier: MPL-2.0

//! What the valve's two workers do: announcing, and standing by.

use std::time::Duration;

use droidrelay_wire::words::fault::Place;
use gst::{prelude::*, subclass::prelude::*};

use super::MqttValve;
use crate::mqttvalve::{
    cat::CAT,
    downstream,
    memory::{self, MemoryTrim},
    settings::Standby,
    silence::{self, EncoderWatch},
    status::UpstreamState,
    surroundings::Surroundings,
    upstream::{Inputs, Upstream},
};

impl MqttValve {
    /// Tells the world what has changed; returns when something is due by itself.
    pub(super) fn announce(&self) -> Option<Duration> {
        let (offline_timeout, prefix) = {
            let settings = self.settings.lock();
            (settings.offline_timeout, settings.discovery_prefix.clone())
        };
        let standby = self.real_standby();
        let now = self.now();
        let mut report = {
            let mut control = self.control.lock();
            let report = control.report(offline_timeout, standby.as_str(), now);
            if report.expired {
                self.flow.set(control.gate.is_open());
            }
            report
        };
        if report.expired {
            self.standing_by.wake();
        }
        let obj = self.obj();
        let link = self.link();
        self.announcer
            .changes(obj.upcast_ref(), &self.flow.srcpad, &report);
        if !report.changes.is_empty() {
            // By now a sink has answered. Before, frames might flow, and nobody be known to take
            // them: that is `live` where there is no sink, and not where it has yet to connect.
            let now = self.now();
            report.state = self.control.lock().robot_state(standby.as_str(), now);
        }
        if let Some(link) = &link
            && let Err(error) = link.announce_device(prefix)
        {
            self.warn(&error);
        }
        if report.keyframe {
            self.flow.ask_for_key_unit();
        }
        self.announcer
            .state(obj.upcast_ref(), link.as_deref(), &report);
        report.due.map(|due| due.saturating_sub(self.now()))
    }

    /// What stands by, which may be less than was asked for.
    pub(super) fn real_standby(&self) -> Standby {
        let asked = self.settings.lock().standby;
        match asked {
            Standby::Cold if self.around().upstream.state() != UpstreamState::Untouched => {
                Standby::Cold
            }
            Standby::Hot if !self.flow.is_raw() => Standby::Hot,
            _ => Standby::Warm,
        }
    }

    /// Something that does not work as it was asked for, and what is done instead.
    pub(super) fn warn(&self, text: &str) {
        gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
        self.control.lock().note(Place::Setting, text.to_owned());
    }

    /// Brings what is around the valve to where the gate wants it; returns when to look again.
    pub(super) fn stand_by(
        &self,
        around: &Surroundings,
        upstream: &mut Upstream,
        memory: &mut MemoryTrim,
        encoder: &mut EncoderWatch,
    ) -> Option<Duration> {
        if around.upstream.take_eos() {
            self.flow.srcpad.push_event(gst::event::Eos::new());
        }
        let obj = self.obj();
        let was_ours = upstream.is_ours();
        let outcome = upstream.sync(obj.upcast_ref(), &self.flow.sinkpad, || self.inputs());
        for warning in outcome.warnings {
            self.warn(&warning);
        }
        let still_open = std::mem::replace(
            &mut self.control.lock().state.still_open,
            outcome.still_open.clone(),
        );
        if still_open != outcome.still_open {
            self.announcing.wake();
        }
        around.free_sinks(&self.flow.srcpad, self.flow.is_closed());
        let keep = self.settings.lock().keep(upstream.is_ours());
        self.flow.set_keep(keep);
        if was_ours != upstream.is_ours() {
            self.announcing.wake();
        }
        if let Some(fault) = outcome.fault {
            {
                let mut control = self.control.lock();
                control.fault(fault);
                // What comes next is a new beginning, and the end of the fault.
                self.flow.set(control.gate.is_open());
            }
            self.announcing.wake();
        }
        if !upstream.is_ours() {
            self.begin_with_kept();
        }
        if memory.is_due(!self.flow.is_closed(), self.now()) {
            // The encoder behind the valve begins anew, as before the first session.
            self.flow.while_closed(|| {
                if downstream::reset(&self.flow.srcpad) && !upstream.is_ours() {
                    // What is upstream has said it already, and will not say it again.
                    self.flow.repeat_events();
                }
            });
            self.begin_with_kept();
            memory::trim();
        }
        let look_again = self.watch_encoder(encoder);
        let due = outcome.due.into_iter().chain(memory.next());
        let due = due.chain(look_again).min();
        due.map(|due| due.saturating_sub(self.now()))
    }

    /// Begins the encoder behind the open valve anew where it is fed and gives nothing, and leaves
    /// the camera alone; returns when to look again.
    pub(super) fn watch_encoder(&self, encoder: &mut EncoderWatch) -> Option<Duration> {
        if self.flow.is_closed() {
            encoder.rest();
            return None;
        }
        let now = self.now();
        if self.flow.is_raw()
            && let Some(name) = encoder.look(&self.flow.srcpad, self.flow.passed(), now)
        {
            let mut begun = false;
            self.flow.while_held(|| {
                begun = downstream::reset(&self.flow.srcpad);
                if begun {
                    self.flow.repeat_events();
                }
            });
            if begun {
                let text = silence::told(&name);
                gst::element_imp_warning!(self, gst::StreamError::Encode, ("{text}"));
                self.control.lock().note(Place::Encoder, text);
                self.announcing.wake();
            }
        }
        if encoder.gives() && self.control.lock().is_noted(&Place::Encoder) {
            self.control.lock().forget(&[Place::Encoder]);
            self.announcing.wake();
        }
        Some(encoder.next(now))
    }

    pub(super) fn begin_with_kept(&self) {
        if let Err(err) = self.flow.begin_with_kept(self) {
            gst::debug!(CAT, imp = self, "kept media not taken: {err}");
        }
    }

    pub(super) fn inputs(&self) -> Inputs {
        let (standby, timeout) = {
            let settings = self.settings.lock();
            (settings.standby, settings.source_timeout)
        };
        Inputs {
            open: !self.flow.is_closed(),
            standby,
            frames: self.flow.passed().wrapping_add(self.flow.dropped()),
            timeout,
            now: self.now(),
        }
    }
}
