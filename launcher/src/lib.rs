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
/// How GStreamer's V4L2 elements are told to close their devices.
mod v4l2 {
    use std::env;

    /// In GStreamer 1.22, an element that orphans its buffer pool when it stops never lets go of it, and
    /// the device stays open. With this variable it drains the pool in place of that, as it does where
    /// the driver cannot orphan one.
    const VARIABLE: &str = "GST_V4L2_FORCE_DRAIN";

    /// To be called before GStreamer is initialised, while there is no other thread. What the environment
    /// has chosen stays.
    pub fn close_devices() {
        let (major, minor, ..) = gst::version();
        if (major, minor) == (1, 22) && env::var_os(VARIABLE).is_none() {
            // SAFETY: no other thread reads the environment.
            unsafe { env::set_var(VARIABLE, "1") };
        }
    }
}
