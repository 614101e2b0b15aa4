// SPDX-License-Identifier: MPL-2.0

//! What the world has been told: the elements behind the valve by events, the application by
//! notifications and messages, the broker's clients by the state topic.

use droidrelay_wire::StreamState;
use gst::prelude::*;
use parking_lot::Mutex;

use super::{broker::BrokerLink, cat::CAT, control::Report};
use crate::element::link;

/// What the application was told last.
#[derive(Default)]
pub struct Announcer {
    connected: Mutex<bool>,
    /// With the last error, and the devices that are still open.
    state: Mutex<(StreamState, Option<String>, Vec<String>)>,
}

impl Announcer {
    /// Tells of openings, closings and the broker's session.
    pub fn changes(&self, valve: &gst::Element, src: &gst::Pad, report: &Report) {
        for (opening, change) in &report.changes {
            let (what, session) = if change.open {
                ("opens", link::SessionEvent::Wanted(*opening))
            } else {
                ("closes", link::SessionEvent::Unwanted(*opening))
            };
            let who = change.who.iter().map(|who| format!(", {who}"));
            let who: String = who.collect();
            gst::info!(CAT, obj = valve, "{what} ({}{who})", change.cause);
            // Nobody downstream need understand it.
            let _ = src.push_event(session.event());
        }
        if let Some(opening) = report.hurry {
            let _ = src.push_event(link::SessionEvent::Wanted(opening).event());
        }
        if !report.changes.is_empty() {
            valve.notify("drop");
        }
        self.connected(valve, report.connected);
    }

    pub fn connected(&self, valve: &gst::Element, connected: bool) {
        let before = std::mem::replace(&mut *self.connected.lock(), connected);
        if before != connected {
            valve.notify("connected");
        }
    }

    /// Tells the state.
    pub fn state(&self, valve: &gst::Element, link: Option<&BrokerLink>, report: &Report) {
        let state = &report.state;
        if let Some(link) = link {
            link.publish(state, report.connected);
        }
        let told = (
            state.state.clone(),
            state.last_error.clone(),
            state.still_open.clone(),
        );
        let before = std::mem::replace(&mut *self.state.lock(), told.clone());
        let news = before != told;
        if !news && report.changes.is_empty() {
            return;
        }
        let who = report
            .changes
            .back()
            .and_then(|(_, change)| change.who.clone());
        let at = state.faults.first().map(|fault| fault.at.as_str());
        let structure = gst::Structure::builder("mqttvalve-state")
            .field("state", state.state.as_str())
            .field("open", state.state != StreamState::Idle)
            .field("cause", state.cause.as_str())
            .field("who", who)
            .field("viewers", state.viewers.len() as u32)
            .field("lease-until", &state.lease_until)
            .field("last-error", &state.last_error)
            .field("fault-at", at)
            .build();
        let message = gst::message::Element::builder(structure).src(valve).build();
        // Without a bus nobody listens.
        let _ = valve.post_message(message);
    }
}
