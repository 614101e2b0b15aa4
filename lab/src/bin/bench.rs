// SPDX-License-Identifier: MPL-2.0

//! What Droidrelay costs, in Markdown; `tests/bench.sh` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use droidrelay_lab::{bench, bench::Options};

fn main() -> ExitCode {
    match bench::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}
