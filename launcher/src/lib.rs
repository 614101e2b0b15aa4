// SPDX-License-Identifier: MPL-2.0

//! The launcher: runs a pipeline line as a supervised service.
//!
//! - [`commands`] is what the program does, `cli` and `help` what its command line looks like.
//! - [`mod@file`] reads launch files and builds their pipelines.
//! - `run` keeps a pipeline running; `remote` serves metrics and polls a bridge meanwhile.
//! - `doctor` looks for what is missing.

mod cli;
pub mod commands;
mod doctor;
mod failure;
/// Launch files: read, their variables replaced, their pipelines built; an element of our own.
pub mod file {
    mod commandsrc;
    pub mod launchfile;
    pub(crate) mod opening;
    pub(crate) mod pipeline;
    pub(crate) mod source;
    pub(crate) mod variables;
}
mod help;
mod log;
mod mask;
/// What the launcher does over HTTP while the pipeline runs, on a thread of its own.
mod remote {
    pub mod metrics;
    pub mod net;
    pub mod poll;
}
mod run;
mod v4l2;
