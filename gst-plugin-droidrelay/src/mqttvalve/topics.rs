// SPDX-License-Identifier: MPL-2.0

/// Topics of one valve.
#[derive(Debug, Clone)]
pub struct Topics {
    pub command: String,
    pub state: String,
    pub availability: String,
}
