// SPDX-License-Identifier: MPL-2.0

//! What robot and bridge say to each other: commands, states, topics, the answer to a poll, hook
//! events, and the gate that decides on commands. Pure: no I/O, no thread, no clock.

pub mod command;
pub mod gate;
pub mod hook;
pub mod poll;
pub mod state;
pub mod topics;
mod word;
