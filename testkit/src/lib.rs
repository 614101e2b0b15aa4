// SPDX-License-Identifier: MPL-2.0

//! Fixtures for tests and measurements: real servers and processes, each of which owns its folder
//! and ports, is ready when its protocol answers, and is ended by its handle.

pub mod artifacts;
pub mod certs;
pub mod clients;
pub mod growth;
pub mod journal;
pub mod net;
pub mod process;
pub mod robot;
pub mod secrets;
pub mod servers;
pub mod stalls;
pub mod testbed;
pub mod uplink;
pub mod usage;
