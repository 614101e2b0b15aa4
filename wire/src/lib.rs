// SPDX-License-Identifier: MPL-2.0

//! What robot and bridge share: the words that they say to each other ([`words`]), the MQTT
//! session that both keep ([`mqtt`]), and the way to a server ([`net`]).

pub mod backoff;
/// Which start of the machine this is.
pub mod boot {
    use std::fs;

    /// Another one after each boot: it names what begins anew then, as the kernel's clock does.
    /// Empty where the kernel does not tell.
    pub fn id() -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }
}
/// How commands end: exit codes, named as in sysexits.h.
pub mod exit {
    pub const OK: u8 = 0;
    pub const USAGE: u8 = 64;
    pub const DATA: u8 = 65;
    pub const NO_INPUT: u8 = 66;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub const NO_PERMISSION: u8 = 77;
    pub const CONFIG: u8 = 78;

    /// Why a command failed, and what to do.
    #[derive(Debug)]
    pub struct Failure {
        /// One of these codes.
        pub code: u8,
        pub text: String,
    }

    impl Failure {
        pub fn new(code: u8, text: impl Into<String>) -> Self {
            Failure {
                code,
                text: text.into(),
            }
        }
    }
}
mod files;
pub mod line;
/// The MQTT session that robot and bridge keep.
pub mod mqtt {
    pub mod broker;
    mod config;
    mod connection;
    pub mod fault;
    mod protocol;
    pub mod reason;
    pub mod session;
    mod state;
    mod task;
    mod transport;
}
/// The way to a server, whatever is spoken with it: its URL, its addresses, TCP, TLS, HTTP.
pub mod net {
    pub mod connect;
    #[cfg(feature = "http")]
    pub mod http;
    pub mod tls;
    pub mod url;
}
pub mod secret;
/// What robot and bridge say to each other: commands, states, topics, the answer to a poll, hook
/// events, and the gate that decides on commands. Pure: no I/O, no thread, no clock.
pub mod words {
    pub mod command;
    pub mod enroll;
    pub mod fault;
    pub mod gate;
    pub mod hook;
    pub mod poll;
    pub mod state;
    pub mod topics;
    mod word;
}

pub use backoff::Backoff;
pub use mqtt::{
    broker::BrokerUrl,
    fault::{Fault, FaultKind},
};
pub use secret::Secret;
pub use words::command::{Command, Refusal};
pub use words::state::{Cause, PublishPhase, PublishState, RobotState, Standby, StreamState};
