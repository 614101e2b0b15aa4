// SPDX-License-Identifier: MPL-2.0

//! The valves and sinks of a pipeline, as far as the launcher deals with them: by factory name,
//! properties and action signals.

use std::time::Duration;

use droidrelay_wire::{RobotState, words::state::worst_state};
use gst::prelude::*;

const VALVE: &str = "mqttvalve";
const SINK: &str = "rtmpauthsink";
const LEASES: &str = "application/x-mqttvalve-leases";

#[derive(Default)]
pub struct Elements {
    valves: Vec<gst::Element>,
    sinks: Vec<gst::Element>,
}

/// What one valve says of itself.
pub struct Valve {
    pub name: String,
    pub open: bool,
    /// It takes commands by MQTT.
    pub broker: bool,
    pub connected: bool,
    pub state: RobotState,
    pub stats: gst::Structure,
}

/// What one sink says of itself.
pub struct Sink {
    pub name: String,
    /// `idle`, `connecting`, `publishing`, `backoff` or `refused`.
    pub state: String,
    pub stats: gst::Structure,
}

/// One holder's lease, as a valve gives and takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: String,
    /// Who opened it: `mqtt` or `local`.
    pub origin: String,
    /// None: until a stop.
    pub left: Option<Duration>,
}

impl Lease {
    fn read(value: &glib::SendValue) -> Option<Self> {
        let lease = value.get::<gst::Structure>().ok()?;
        Some(Lease {
            id: lease.get("id").ok()?,
            origin: lease.get("origin").ok()?,
            left: lease
                .get_optional::<u64>("left")
                .ok()?
                .map(Duration::from_nanos),
        })
    }

    fn to_value(&self) -> glib::SendValue {
        let left = self.left.map(|left| left.as_nanos() as u64);
        gst::Structure::builder("lease")
            .field("id", &self.id)
            .field("origin", &self.origin)
            .field_if_some("left", left)
            .build()
            .to_send_value()
    }
}

impl Elements {
    pub fn of(pipeline: &gst::Pipeline) -> Self {
        let made_by = |factory: &str| {
            let mut found: Vec<gst::Element> = pipeline
                .iterate_recurse()
                .into_iter()
                .flatten()
                .filter(|element| {
                    element
                        .factory()
                        .is_some_and(|made_by| made_by.name() == factory)
                })
                .collect();
            found.sort_by_key(|element| element.name());
            found
        };
        Elements {
            valves: made_by(VALVE),
            sinks: made_by(SINK),
        }
    }

    /// Makes the valves of `heirs` go on with these valves' leases, and with the commands that
    /// come for them meanwhile. Heirs are known by their name, or as the only ones.
    pub fn hand_over(&self, heirs: &Elements) {
        for heir in &heirs.valves {
            let named = self.valves.iter().find(|old| old.name() == heir.name());
            let only = (self.valves.len() == 1 && heirs.valves.len() == 1)
                .then(|| self.valves.first())
                .flatten();
            if let Some(old) = named.or(only) {
                heir.set_property_from_value("leases", &old.property_value("leases"));
            }
        }
    }

    pub fn valve_names(&self) -> Vec<String> {
        self.valves
            .iter()
            .map(|valve| valve.name().into())
            .collect()
    }

    /// Who holds which valve open.
    pub fn leases(&self) -> Vec<(String, Lease)> {
        let mut all = Vec::new();
        for valve in &self.valves {
            let held = valve.property::<gst::Structure>("leases");
            let leases = held.get::<gst::Array>("leases").unwrap_or_default();
            let leases = leases.iter().filter_map(Lease::read);
            all.extend(leases.map(|lease| (valve.name().to_string(), lease)));
        }
        all
    }

    /// Makes the valve of this name go on with leases that [`Elements::leases`] gave.
    pub fn take_up(&self, name: &str, leases: &[Lease]) {
        if let Some(valve) = self.valves.iter().find(|valve| valve.name() == name) {
            let leases = leases.iter().map(Lease::to_value);
            let held = gst::Structure::builder(LEASES)
                .field("leases", gst::Array::from_values(leases))
                .build();
            valve.set_property("leases", held);
        }
    }

    /// Opens the valves, or renews the lease of `id`; 0 seconds: as long as each valve's `lease`
    /// says.
    pub fn start(&self, id: &str, lease: u32) {
        for valve in &self.valves {
            valve.emit_by_name::<bool>("start", &[&id, &lease]);
        }
    }

    /// Ends the lease of `id`.
    pub fn stop(&self, id: &str) {
        for valve in &self.valves {
            valve.emit_by_name::<bool>("stop", &[&id]);
        }
    }

    pub fn keyframe(&self) {
        for valve in &self.valves {
            valve.emit_by_name::<bool>("keyframe", &[]);
        }
    }

    pub fn has_valves(&self) -> bool {
        !self.valves.is_empty()
    }

    pub fn valve_elements(&self) -> &[gst::Element] {
        &self.valves
    }

    pub fn sink_elements(&self) -> &[gst::Element] {
        &self.sinks
    }

    /// Whether a valve takes commands by MQTT.
    pub fn has_broker(&self) -> bool {
        self.valves
            .iter()
            .any(|valve| valve.property::<Option<String>>("broker").is_some())
    }

    pub fn valves(&self) -> Vec<Valve> {
        let read = |valve: &gst::Element| Valve {
            name: valve.name().into(),
            open: !valve.property::<bool>("drop"),
            broker: valve.property::<Option<String>>("broker").is_some(),
            connected: valve.property("connected"),
            state: valve
                .property::<Option<String>>("state")
                .and_then(|state| serde_json::from_str(&state).ok())
                .unwrap_or_default(),
            stats: valve.property("stats"),
        };
        self.valves.iter().map(read).collect()
    }

    pub fn sinks(&self) -> Vec<Sink> {
        let read = |sink: &gst::Element| Sink {
            name: sink.name().into(),
            state: nick(&sink.property_value("state")),
            stats: sink.property("stats"),
        };
        self.sinks.iter().map(read).collect()
    }
}

/// The state that speaks for all of them: that of the one which is furthest from well.
pub fn gravest(valves: &[Valve]) -> Option<&RobotState> {
    worst_state(valves.iter().map(|valve| &valve.state))
}

/// A count in an element's statistics.
pub fn count(stats: &gst::Structure, field: &str) -> u64 {
    stats.get(field).unwrap_or_default()
}

fn nick(value: &glib::Value) -> String {
    glib::EnumValue::from_value(value)
        .map(|(_, value)| value.nick().to_owned())
        .unwrap_or_default()
}
