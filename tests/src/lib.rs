// SPDX-License-Identifier: MPL-2.0

//! Real servers and processes for tests and for the demo: each owns its folder and ports, is
//! ready when its protocol answers, and is ended by its handle.

pub mod balancer;
pub mod bench;
pub mod bridge;
pub mod browser;
pub mod camera;
pub mod certs;
pub mod cloud;
pub mod demo;
pub mod dice;
pub mod faults;
pub mod growth;
pub mod http;
pub mod journal;
pub mod line;
pub mod link;
pub mod mosquitto;
pub mod netns;
pub mod observer;
pub mod process;
pub mod reader;
pub mod relay;
pub mod rig;
pub mod rmqtt;
pub mod robot;
pub mod rtsp;
pub mod secrets;
pub mod silence;
pub mod soak;
pub mod stalls;
pub mod stamps;
pub mod uplink;
