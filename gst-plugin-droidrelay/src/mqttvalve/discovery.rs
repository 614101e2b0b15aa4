// SPDX-License-Identifier: MPL-2.0

//! What Home Assistant is told of the robot: one device, in one retained message.
//! Pure: topics and payloads, nothing that sends them.
//!
//! <https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload>

use droidrelay_wire::{
    Command, StreamState,
    words::topics::{OFFLINE, ONLINE, check_distinct, check_topic},
};
use serde_json::json;

use super::identity::Topics;

/// Payload of Home Assistant's birth message.
pub const BIRTH: &[u8] = ONLINE.as_bytes();

/// Topic of Home Assistant's own birth and last will.
pub fn status_topic(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// The robot as a device of Home Assistant.
#[derive(Debug, Clone)]
pub struct Device {
    /// Names the device for ever: what people did to it in Home Assistant hangs on it.
    id: String,
    topics: Topics,
}

impl Device {
    pub fn new(client_id: &str, topics: Topics) -> Self {
        Device {
            id: object_id(client_id),
            topics,
        }
    }

    /// Says what is wrong with `prefix`.
    pub fn check(&self, prefix: &str) -> Result<(), String> {
        check_topic(prefix)
            .and_then(|()| check_topic(&self.config_topic(prefix)))
            .map_err(|error| format!("discovery-prefix {prefix:?}: {error}"))?;
        let Topics {
            command,
            state,
            availability,
        } = &self.topics;
        let (status, config) = (status_topic(prefix), self.config_topic(prefix));
        check_distinct(&[
            ("topic", command),
            ("state-topic", state),
            ("availability-topic", availability),
            ("the topic of Home Assistant's own status", &status),
            ("the topic of the announcement", &config),
        ])
        .map_err(|error| format!("discovery-prefix {prefix:?}: {error}"))
    }

    /// Where the announcement is kept; an empty one takes the device back.
    pub fn config_topic(&self, prefix: &str) -> String {
        format!("{prefix}/device/{}/config", self.id)
    }

    /// The announcement.
    pub fn payload(&self) -> String {
        let Topics {
            command,
            state,
            availability,
        } = &self.topics;
        let mut components = json!({
            "stream": {
                "platform": "switch",
                // The device's own name.
                "name": null,
                "icon": "mdi:video",
                "command_topic": command,
                "payload_on": Command::start().to_payload(),
                "payload_off": Command::stop().to_payload(),
                "state_on": "ON",
                "state_off": "OFF",
                "value_template": format!(
                    "{{{{ 'OFF' if value_json.state == '{}' else 'ON' }}}}",
                    StreamState::Idle.as_str()
                ),
            },
            "connectivity": {
                "platform": "binary_sensor",
                "device_class": "connectivity",
                "entity_category": "diagnostic",
                // Without an availability: it is what says that the robot is away.
                "state_topic": availability,
                "payload_on": ONLINE,
                "payload_off": OFFLINE,
            },
            "state": {
                "platform": "sensor",
                "name": "State",
                "icon": "mdi:video-wireless",
                "device_class": "enum",
                "options": StreamState::ALL,
                "value_template": "{{ value_json.state }}",
            },
            "lease_end": {
                "platform": "sensor",
                "name": "Lease end",
                "device_class": "timestamp",
                "entity_category": "diagnostic",
                // null becomes None, which is unknown.
                "value_template": "{{ value_json.lease_until }}",
            },
            "bitrate": {
                "platform": "sensor",
                "name": "Bitrate",
                "device_class": "data_rate",
                "entity_category": "diagnostic",
                "state_class": "measurement",
                "unit_of_measurement": "kbit/s",
                "value_template": "{{ ((value_json.publish | default({}, true)).bitrate | default(0, true) / 1000) | round | int }}",
            },
            "last_error": {
                "platform": "sensor",
                "name": "Last error",
                "icon": "mdi:alert-circle-outline",
                "entity_category": "diagnostic",
                // Home Assistant takes no longer state.
                "value_template": "{{ (value_json.last_error or 'None')[:255] }}",
            },
        });
        for (name, component) in components.as_object_mut().into_iter().flatten() {
            component["unique_id"] = format!("{}-{name}", self.id).into();
            component["qos"] = 1.into();
            if component.get("state_topic").is_none() {
                component["state_topic"] = state.as_str().into();
                component["availability_topic"] = availability.as_str().into();
                component["payload_available"] = ONLINE.into();
                component["payload_not_available"] = OFFLINE.into();
            }
        }
        json!({
            "device": {
                "identifiers": [self.id],
                "name": command.replace('/', " "),
                "manufacturer": "Droidrelay",
                "model": "mqttvalve",
                "sw_version": env!("CARGO_PKG_VERSION"),
            },
            "origin": {
                "name": "droidrelay",
                "sw_version": env!("CARGO_PKG_VERSION"),
                "support_url": env!("CARGO_PKG_REPOSITORY"),
            },
            "components": components,
        })
        .to_string()
    }
}

/// The client id as Home Assistant takes it, which knows letters, digits, `_` and `-` only. Ids
/// that differ in other characters alone stay apart by a hash of them.
fn object_id(client_id: &str) -> String {
    let differs = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-');
    let mut id = client_id.replace(differs, "-");
    if id != client_id {
        // FNV-1a: the same in each version of this program.
        let hash = client_id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        id = format!("{id}-{hash:08x}");
    }
    let own = id.strip_prefix("droidrelay-").unwrap_or(&id);
    format!("droidrelay-{own}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn device(client_id: &str) -> Device {
        let topics = Topics {
            command: "robot/stream".into(),
            state: "robot/stream/state".into(),
            availability: "robot/stream/availability".into(),
        };
        Device::new(client_id, topics)
    }

    fn announced() -> Value {
        serde_json::from_str(&device("robot1").payload()).unwrap()
    }

    #[test]
    fn the_object_id_is_stable_and_of_few_characters_and_tells_clients_apart() {
        assert_eq!(object_id("robot1"), "droidrelay-robot1");
        assert_eq!(
            object_id("droidrelay-pi-valve0-robot-stream"),
            "droidrelay-pi-valve0-robot-stream"
        );
        // Written down: another one would be another device.
        assert_eq!(object_id("pi.local"), "droidrelay-pi-local-3e38153f");
        assert_ne!(object_id("pi.local"), object_id("pi local"));
        let odd = object_id("Küche/+#\u{0}$");
        assert!(
            odd.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'),
            "{odd}"
        );
    }

    #[test]
    fn topics_lie_below_the_prefix() {
        let device = device("robot1");
        assert_eq!(
            device.config_topic("homeassistant"),
            "homeassistant/device/droidrelay-robot1/config"
        );
        assert_eq!(status_topic("homeassistant"), "homeassistant/status");
    }

    #[test]
    fn a_prefix_that_cannot_be_one_is_refused_by_name() {
        let device = device("robot1");
        assert_eq!(device.check("homeassistant"), Ok(()));
        assert_eq!(device.check("site/ha"), Ok(()));
        assert!(device.check("").unwrap_err().contains("empty"));
        assert!(device.check("home/#").unwrap_err().contains("home/#"));
        type Which = fn(&mut Topics) -> &mut String;
        let which: [Which; 3] = [
            |topics| &mut topics.command,
            |topics| &mut topics.state,
            |topics| &mut topics.availability,
        ];
        for topic in [
            "homeassistant/status",
            "homeassistant/device/droidrelay-robot1/config",
        ] {
            for which in which {
                let mut own = device.clone();
                *which(&mut own.topics) = topic.into();
                let error = own.check("homeassistant").unwrap_err();
                assert!(error.contains(topic), "{error}");
            }
        }
    }

    #[test]
    fn each_component_has_a_platform_and_an_id_of_its_own() {
        let announced = announced();
        let components = announced["components"].as_object().unwrap();
        let mut ids: Vec<&str> = components
            .values()
            .map(|component| {
                assert!(component["platform"].is_string(), "{component}");
                assert_eq!(component["qos"], 1, "{component}");
                component["unique_id"].as_str().unwrap()
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 6, "{ids:?}");
        assert_eq!(announced["device"]["identifiers"][0], "droidrelay-robot1");
        assert_eq!(announced["origin"]["name"], "droidrelay");
    }

    #[test]
    fn the_switch_sends_commands_and_reads_the_state() {
        let switch = announced()["components"]["stream"].take();
        assert_eq!(switch["command_topic"], "robot/stream");
        assert_eq!(switch["state_topic"], "robot/stream/state");
        for (payload, command) in [
            ("payload_on", Command::start()),
            ("payload_off", Command::stop()),
        ] {
            let payload = switch[payload].as_str().unwrap();
            assert_eq!(Command::parse(payload.as_bytes()), Ok(command));
        }
    }

    #[test]
    fn connectivity_is_available_also_when_the_robot_is_not() {
        let announced = announced();
        assert!(announced.get("availability_topic").is_none());
        for (name, component) in announced["components"].as_object().unwrap() {
            let availability = component.get("availability_topic");
            assert_eq!(availability.is_none(), name == "connectivity", "{name}");
        }
        let connectivity = &announced["components"]["connectivity"];
        assert_eq!(connectivity["state_topic"], "robot/stream/availability");
    }

    #[test]
    fn the_announcement_is_far_below_what_a_broker_takes() {
        let length = device("robot1").payload().len();
        assert!(length < 4096, "{length} bytes");
    }
}
