// SPDX-License-Identifier: MPL-2.0

//! Leases on their way from one valve to the next: `application/x-mqttvalve-leases` with
//! `leases`, an array of structures `lease` with `id` (string), `origin` (`mqtt` or `local`) and
//! `left` (uint64, nanoseconds; absent: until a stop), and `client-id` (string), the name of the
//! session with the broker that goes on (absent: there was none).

use std::{error::Error, time::Duration};

use gst::prelude::*;

use droidrelay_wire::words::gate::{Lease, Origin};

const NAME: &str = "application/x-mqttvalve-leases";
const MQTT: &str = "mqtt";
const LOCAL: &str = "local";

/// What one valve holds, for the next one.
#[derive(Debug, Default, PartialEq)]
pub struct Held {
    pub leases: Vec<Lease>,
    pub client_id: Option<String>,
}

pub fn write(held: Held) -> gst::Structure {
    let Held { leases, client_id } = held;
    let leases = leases.into_iter().map(|lease| {
        let origin = match lease.origin {
            Origin::Mqtt => MQTT,
            Origin::Local => LOCAL,
        };
        let left = lease
            .left
            .map(|left| u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        gst::Structure::builder("lease")
            .field("id", lease.id)
            .field("origin", origin)
            .field_if_some("left", left)
            .build()
            .to_send_value()
    });
    gst::Structure::builder(NAME)
        .field("leases", gst::Array::from_values(leases))
        .field_if_some("client-id", client_id)
        .build()
}

/// Reads what [`write`] made.
pub fn read(value: &glib::Value) -> Result<Held, String> {
    let structure = value
        .get::<Option<gst::Structure>>()
        .ok()
        .flatten()
        .filter(|structure| structure.name() == NAME)
        .ok_or_else(|| format!("not a structure {NAME}: set what was read from a valve"))?;
    held(&structure).map_err(|err| format!("{NAME}: {err}"))
}

fn held(structure: &gst::StructureRef) -> Result<Held, Box<dyn Error>> {
    let leases = structure.get::<gst::Array>("leases")?;
    let leases = leases.iter().map(|value| lease(value));
    Ok(Held {
        leases: leases.collect::<Result<_, _>>()?,
        client_id: structure.get_optional("client-id")?,
    })
}

fn lease(value: &glib::Value) -> Result<Lease, Box<dyn Error>> {
    let lease = value.get::<gst::Structure>()?;
    let origin = match lease.get::<String>("origin")?.as_str() {
        MQTT => Origin::Mqtt,
        LOCAL => Origin::Local,
        other => return Err(format!("origin {other:?} is neither mqtt nor local").into()),
    };
    let left = lease.get_optional::<u64>("left")?;
    Ok(Lease {
        id: lease.get("id")?,
        origin,
        left: left.map(Duration::from_nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_read_back_as_they_were() {
        gst::init().unwrap();
        let leases = vec![
            Lease {
                id: "phone 7, \"x\"".into(),
                origin: Origin::Mqtt,
                left: Some(Duration::from_millis(1500)),
            },
            Lease {
                id: "local".into(),
                origin: Origin::Local,
                left: None,
            },
        ];
        for held in [
            Held {
                leases,
                client_id: Some("robot-2".into()),
            },
            Held::default(),
        ] {
            let Held { leases, client_id } = &held;
            let copy = Held {
                leases: leases.clone(),
                client_id: client_id.clone(),
            };
            assert_eq!(read(&write(copy).to_value()), Ok(held));
        }
    }

    #[test]
    fn what_is_no_list_of_leases_is_refused() {
        gst::init().unwrap();
        let other = gst::Structure::new_empty("other");
        assert!(read(&other.to_value()).unwrap_err().contains(NAME));
        assert!(read(&None::<gst::Structure>.to_value()).is_err());
        let empty = gst::Structure::new_empty(NAME);
        assert!(read(&empty.to_value()).unwrap_err().contains("leases"));
    }
}
