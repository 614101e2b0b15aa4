// SPDX-License-Identifier: MPL-2.0

//! What a robot without MQTT asks its bridge for, again and again: what is wanted of it.

use serde::{Deserialize, Serialize};

/// Seconds without a poll, beyond the last one's own waiting time, after which a robot counts as
/// offline.
pub const GRACE: u64 = 15;
/// Longest state that a robot may report, in bytes.
pub const MAX_STATE: usize = 4096;

/// What is wanted of the robot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Somebody holds a lease.
    pub open: bool,
    /// Every lease that lives.
    pub leases: Vec<Lease>,
}

/// One viewer's wish.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose; null: of a `start` without id.
    pub id: Option<String>,
    /// Seconds that it still holds; null: until a stop.
    pub lease: Option<f64>,
}
