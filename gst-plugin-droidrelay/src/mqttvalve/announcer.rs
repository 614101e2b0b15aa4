// SPDX-License-Identifier: MPL-2.0

//! What the world has been told: the elements behind the valve by events, the application by
//! notifications and messages, the broker's clients by the state topic.

use droidrelay_wire::StreamState;
use gst::prelude::*;
use parking_lot::Mutex;

use super::{broker::BrokerLink, cat::CAT, control::Report};
use crate::element::link;

#[derive(Default)]
pub struct Announcer {
    last_published: Mutex<Published>,
}

/// What the application was told last.
#[derive(Default)]
struct Published {
    connected: bool,
    /// With the last error.
    state: (StreamState, Option<String>),
}

impl Announcer {
    /// Tells of openings, closings and the broker's session.
    pub fn changes(&self, valve: &gst::Element, src: &gst::Pad, report: &Report) {
        for (opening, change) in &report.changes {
            gst::info!(
                CAT,
                obj = valve,
                "{} ({}{})",
                if change.open { "opens" } else { "closes" },
                change.cause.as_str(),
                change
                    .who
                    .as_ref()
                    .map(|who| format!(", {who}"))
                    .unwrap_or_default(),
            );
            let session = if change.open {
                link::SessionEvent::Wanted(*opening)
            } else {
                link::SessionEvent::Unwanted(*opening)
            };
            // Nobody downstream need understand it.
            let _ = src.push_event(session.event());
        }
        if !report.changes.is_empty() {
            valve.notify("drop");
        }
        self.connected(valve, report.connected);
    }

    pub fn connected(&self, valve: &gst::Element, connected: bool) {
        let before = std::mem::replace(&mut self.last_published.lock().connected, connected);
        if before != connected {
            valve.notify("connected");
        }
    }

    /// Tells the state.
    pub fn state(&self, valve: &gst::Element, link: Option<&BrokerLink>, report: &Report) {
        let state = &report.state;
        if let Some(link) = link
            && let Err(err) = link.publish_state(state)
        {
            gst::error!(CAT, obj = valve, "cannot write the state: {err}");
        }
        let told = (state.state.clone(), state.last_error.clone());
        let before = std::mem::replace(&mut self.last_published.lock().state, told.clone());
        let news = before != told;
        if !news && report.changes.is_empty() {
            return;
        }
        let who = report
            .changes
            .back()
            .and_then(|(_, change)| change.who.clone());
        let structure = gst::Structure::builder("mqttvalve-state")
            .field("state", state.state.as_str())
            .field("open", state.state != StreamState::Idle)
            .field("cause", state.cause.as_str())
            .field("who", who)
            .field("viewers", state.viewers.len() as u32)
            .field("lease-until", &state.lease_until)
            .field("last-error", &state.last_error)
            .build();
        let message = gst::message::Element::builder(structure).src(valve).build();
        // Without a bus nobody listens.
        let _ = valve.post_message(message);
    }
}
