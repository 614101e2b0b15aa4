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
pub mod file;
mod help;
mod log;
mod mask;
mod memory;
mod remote;
mod run;
