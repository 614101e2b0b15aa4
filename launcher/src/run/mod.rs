// SPDX-License-Identifier: MPL-2.0

//! Keeps a pipeline running: one queue of events, one function that handles them.

mod changer;
pub mod elements;
pub mod events;
pub mod follow;
mod health;
pub mod keep;
mod notify;
pub mod observe;
mod recovery;
mod snapshot;
mod statistics;
pub mod supervisor;
pub mod trigger;
