// SPDX-License-Identifier: MPL-2.0

//! Keeps a pipeline running: one queue of events, one function that handles them.

mod branches;
mod changer;
mod disk;
pub mod elements;
pub mod events;
pub mod follow;
mod health;
pub mod keep;
mod notify;
pub mod observe;
mod parts;
mod recovery;
pub mod retention;
mod side;
mod snapshot;
mod statistics;
pub mod successor;
pub mod supervisor;
pub mod trigger;
