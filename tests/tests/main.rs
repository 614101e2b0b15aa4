// SPDX-License-Identifier: MPL-2.0

//! The end-to-end tests: one program, so that they are linked once and wait side by side.

mod addresses;
mod architecture;
mod attack;
mod brokers;
mod commands;
mod discovery;
mod enroll;
mod fixtures;
mod kit;
mod looking;
mod map;
mod media;
mod never_deaf;
mod page;
mod pipelines;
mod poll;
mod rounds;
mod rtmps;
mod scaling;
mod server_faults;
mod session;
mod tls;
mod twins;
mod uplink;
mod valves;
