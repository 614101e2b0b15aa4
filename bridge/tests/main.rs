// SPDX-License-Identifier: MPL-2.0

//! The bridge as a process, with real servers: one program, so that it is linked once.

mod bridge;
mod common;
mod mediamtx;
mod poll;
mod service;
mod webhooks;
