// SPDX-License-Identifier: MPL-2.0

//! Hours of a robot's life with faults at random; `tests/soak.sh` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use droidrelay_lab::soak::{self, Options};

fn main() -> ExitCode {
    match soak::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("soak: {err:#}");
            ExitCode::FAILURE
        }
    }
}
