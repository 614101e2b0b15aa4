// SPDX-License-Identifier: MPL-2.0

//! What Droidrelay costs, beside what does the same without it, as Markdown tables.

mod bridge;
mod common;
mod idle;
mod latency;
mod plot;
mod start;
mod stream;
mod valve;
mod valves;
mod viewers;

use anyhow::Result;
use clap::{Args, Subcommand};

use common::Common;

/// Measures what Droidrelay costs; everything where no command is given.
#[derive(Debug, Clone, Args)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// The bridge under load: start requests, ten thousand robots, a hundred listeners
    Bridge(bridge::Options),
    /// A closed robot: CPU time and memory, before the first session and after the last one
    Idle(idle::Options),
    /// From the camera to the decoded picture at a viewer
    Latency(latency::Options),
    /// From `start` to the publisher and to the first picture at a reader who waits; from `stop`
    Start(start::Options),
    /// A robot that streams: CPU time and memory
    Stream(stream::Options),
    /// Instructions per buffer, open and closed, by callgrind
    Valve(valve::Options),
    /// A thousand valves in one process: threads, memory, and whether each one obeys
    Valves(valves::Options),
    /// MediaMTX: CPU time, memory and bytes for each viewer
    Viewers(viewers::Options),
}

pub fn run(options: &Options) -> Result<()> {
    let common = &options.common;
    match &options.what {
        Some(What::Bridge(options)) => bridge::run(options),
        Some(What::Idle(options)) => idle::run(options),
        Some(What::Latency(options)) => latency::run(options, common),
        Some(What::Start(options)) => start::run(options, common),
        Some(What::Stream(options)) => stream::run(options, common),
        Some(What::Valve(options)) => valve::run(options),
        Some(What::Valves(options)) => valves::run(options),
        Some(What::Viewers(options)) => viewers::run(options),
        None => {
            start::run(&start::Options::default(), common)?;
            latency::run(&latency::Options::default(), common)?;
            stream::run(&stream::Options::default(), common)?;
            idle::run(&idle::Options::default())?;
            valve::run(&valve::Options::default())?;
            valves::run(&valves::Options::default())?;
            bridge::run(&bridge::Options::default())?;
            viewers::run(&viewers::Options::default())
        }
    }
}
