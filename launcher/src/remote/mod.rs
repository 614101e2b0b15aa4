// SPDX-License-Identifier: MPL-2.0

//! What the launcher does over HTTP while the pipeline runs, on a thread of its own.

pub mod metrics;
pub mod net;
pub mod poll;
