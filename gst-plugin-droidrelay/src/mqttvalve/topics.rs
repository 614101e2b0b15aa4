// SPDX-License-Identifier: MPL-2.0

use droidrelay_wire::words::topics::{check_distinct, check_topic};

/// Topics of one valve.
#[derive(Debug, Clone)]
pub struct Topics {
    pub command: String,
    pub state: String,
    pub availability: String,
}

impl Topics {
    /// Says what is wrong with one of them, or with all together.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("topic", &*self.command),
            ("state-topic", &*self.state),
            ("availability-topic", &*self.availability),
        ];
        for (name, topic) in named {
            check_topic(topic).map_err(|error| format!("{name}: {error}"))?;
        }
        check_distinct(&named)
    }
}
