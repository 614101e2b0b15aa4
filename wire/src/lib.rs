// SPDX-License-Identifier: MPL-2.0

//! What robot and bridge share: the words that they say to each other ([`words`]), the MQTT
//! session that both keep ([`mqtt`]), and the way to a server ([`net`]).

pub mod backoff;
pub mod boot;
pub mod exit;
mod files;
pub mod line;
pub mod mqtt;
pub mod net;
pub mod secret;
pub mod words;

pub use backoff::Backoff;
pub use mqtt::{
    broker::BrokerUrl,
    fault::{Fault, FaultKind},
};
pub use secret::Secret;
pub use words::command::{Command, Refusal};
pub use words::state::{Cause, PublishPhase, PublishState, RobotState, Standby, StreamState};
