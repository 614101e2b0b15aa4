// SPDX-License-Identifier: MPL-2.0

//! The valves and sinks of a pipeline, as far as the launcher deals with them: by factory name,
//! properties and action signals.

use std::{collections::BTreeMap, time::Duration};

use droidrelay_wire::{Command, words::fault::Place};
use gst::prelude::*;
use serde::{Deserialize, Serialize};

use super::snapshot::{Sink, Snapshot, Valve};

const VALVE: &str = "mqttvalve";
const SINK: &str = "rtmpauthsink";
const LEASES: &str = "application/x-mqttvalve-leases";
const CLIENT_ID: &str = "client-id";

#[derive(Default)]
pub struct Elements {
    pub valves: Vec<gst::Element>,
    pub sinks: Vec<gst::Element>,
}

/// What the valves hold, for those of another process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Held {
    pub leases: Vec<ValveLease>,
    /// By the valve's name, the client id of its session with the broker.
    pub sessions: BTreeMap<String, String>,
}

/// One holder's lease of one valve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValveLease {
    /// Name of the valve.
    pub valve: String,
    pub id: String,
    /// Who opened it: `mqtt` or `local`.
    pub origin: String,
    /// On a clock of the caller's; None: until a stop.
    pub until: Option<Duration>,
}

impl ValveLease {
    /// As a valve gives it.
    fn read(valve: &gst::Element, value: &glib::SendValue, now: Duration) -> Option<Self> {
        let lease = value.get::<gst::Structure>().ok()?;
        let left = lease.get_optional::<u64>("left").ok()?;
        Some(ValveLease {
            valve: valve.name().into(),
            id: lease.get("id").ok()?,
            origin: lease.get("origin").ok()?,
            until: left.map(|left| now + Duration::from_nanos(left)),
        })
    }

    /// As a valve takes it.
    fn to_value(&self, now: Duration) -> glib::SendValue {
        let left = self
            .until
            .map(|until| until.saturating_sub(now).as_nanos() as u64);
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
            let is_meant = |element: &gst::Element| {
                let made_by = element.factory();
                made_by.is_some_and(|made_by| made_by.name() == factory)
            };
            let all = pipeline.iterate_recurse().into_iter().flatten();
            let mut found: Vec<gst::Element> = all.filter(is_meant).collect();
            found.sort_by_key(|element| element.name());
            found
        };
        Elements {
            valves: made_by(VALVE),
            sinks: made_by(SINK),
        }
    }

    /// Makes the valves of `successors` go on with these valves' leases, and with the commands that
    /// come for them meanwhile. A successor has its predecessor's name, or both are the only ones.
    pub fn hand_over(&self, successors: &Elements) {
        for successor in &successors.valves {
            let named = |old: &&gst::Element| old.name() == successor.name();
            let old = match (&self.valves[..], &successors.valves[..]) {
                ([only], [_]) => Some(only),
                (valves, _) => valves.iter().find(named),
            };
            if let Some(old) = old {
                successor.set_property_from_value("leases", &old.property_value("leases"));
            }
        }
    }

    /// Calls `changed`, from any thread, whenever a valve's session with its broker has come up or
    /// gone down.
    pub fn on_broker(&self, changed: impl Fn() + Clone + Send + Sync + 'static) {
        for valve in &self.valves {
            let changed = changed.clone();
            valve.connect_notify(Some("connected"), move |_, _| changed());
        }
    }

    /// Who holds which valve open at `now`, and by which sessions they are commanded.
    pub fn held(&self, now: Duration) -> Held {
        let mut all = Held::default();
        for valve in &self.valves {
            let held = valve.property::<gst::Structure>("leases");
            let leases = held.get::<gst::Array>("leases").unwrap_or_default();
            let read = |lease| ValveLease::read(valve, lease, now);
            all.leases.extend(leases.iter().filter_map(read));
            if let Ok(client_id) = held.get::<String>(CLIENT_ID) {
                all.sessions.insert(valve.name().into(), client_id);
            }
        }
        all
    }

    /// Makes the valves go on at `now` with what [`Elements::held`] gave.
    pub fn take_up(&self, held: &Held, now: Duration) {
        for valve in &self.valves {
            let leases = held
                .leases
                .iter()
                .filter(|lease| valve.name() == lease.valve);
            let session = held.sessions.get(valve.name().as_str());
            let held = gst::Structure::builder(LEASES)
                .field(
                    "leases",
                    gst::Array::from_values(leases.map(|lease| lease.to_value(now))),
                )
                .field_if_some(CLIENT_ID, session)
                .build();
            valve.set_property("leases", held);
        }
    }

    /// Makes all valves obey. A start without a lease holds as long as each valve's `lease` says.
    pub fn apply(&self, command: &Command) {
        for valve in &self.valves {
            let _: bool = match command {
                Command::Start { id, lease } => {
                    let lease = lease.map_or(0, |lease| lease.as_secs() as u32);
                    valve.emit_by_name("start", &[id, &lease])
                }
                Command::Stop { id } => valve.emit_by_name("stop", &[id]),
                Command::Keyframe => valve.emit_by_name("keyframe", &[]),
            };
        }
    }

    /// Has the valves tell in their state what is wrong at `at`; None: nothing.
    pub fn report_fault(&self, at: &Place, reason: Option<&str>) {
        for valve in &self.valves {
            let _: bool = valve.emit_by_name("report-fault", &[&at.as_str(), &reason]);
        }
    }

    /// Whether a valve takes commands by MQTT.
    pub fn has_broker(&self) -> bool {
        self.valves.iter().any(has_broker)
    }

    /// What all of them say of themselves at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let valve = |valve: &gst::Element| Valve {
            name: valve.name().into(),
            open: !valve.property::<bool>("drop"),
            broker: has_broker(valve),
            connected: valve.property("connected"),
            state: valve
                .property::<Option<String>>("state")
                .and_then(|state| serde_json::from_str(&state).ok())
                .unwrap_or_default(),
            stats: valve.property("stats"),
        };
        let sink = |sink: &gst::Element| Sink {
            name: sink.name().into(),
            state: nick(&sink.property_value("state")).into(),
            stats: sink.property("stats"),
        };
        Snapshot {
            valves: self.valves.iter().map(valve).collect(),
            sinks: self.sinks.iter().map(sink).collect(),
        }
    }
}

fn has_broker(valve: &gst::Element) -> bool {
    valve.property::<Option<String>>("broker").is_some()
}

fn nick(value: &glib::Value) -> String {
    glib::EnumValue::from_value(value)
        .map(|(_, value)| value.nick().to_owned())
        .unwrap_or_default()
}
