// SPDX-License-Identifier: MPL-2.0

//! Faults of every part, one after the other; `tests/faults.sh` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use droidrelay_lab::faults::{self, Options};

fn main() -> ExitCode {
    match faults::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("faults: {err:#}");
            ExitCode::FAILURE
        }
    }
}
