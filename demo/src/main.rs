// SPDX-License-Identifier: MPL-2.0

//! The whole of Droidrelay on this machine; `pipelines/demo.sh` builds and runs it.

mod demo;

use std::process::ExitCode;

use clap::Parser;
use demo::Options;

fn main() -> ExitCode {
    match demo::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("demo: {err:#}");
            ExitCode::FAILURE
        }
    }
}
