// SPDX-License-Identifier: MPL-2.0

//! Fixtures for tests and measurements: real servers and processes, each of which owns its folder
//! and ports, is ready when its protocol answers, and is ended by its handle.

pub mod artifacts;
pub mod certs;
/// Who sends commands, and who watches.
pub mod clients {
    pub mod browser;
    pub mod observer;
    pub mod reader;
    pub mod rtsp;
}
pub mod journal;
/// Networks that can be made bad, and HTTP.
pub mod net {
    pub mod http;
    pub mod netns;
    pub mod proxy;
    pub mod shaped_link;
}
pub mod process;
pub mod robot;
/// What a robot and its viewers connect to.
pub mod servers {
    pub mod balancer;
    pub mod bridge;
    pub mod cloud;
    pub mod mosquitto;
    pub mod other_broker;
    pub mod others;
    pub mod relay;
    pub mod rmqtt;
    pub mod silent;
}
pub mod testbed;
pub mod uplink;
pub mod usage;
