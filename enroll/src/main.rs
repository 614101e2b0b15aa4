// SPDX-License-Identifier: MPL-2.0

//! What `droidrelay enroll` and `droidrelay leave` run.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use droidrelay_enroll::{Cli, run};
use droidrelay_wire::exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // A closed stdout or stderr changes nothing about the outcome.
            let _ = err.print();
            let code = if err.use_stderr() {
                exit::USAGE
            } else {
                exit::OK
            };
            return code.into();
        }
    };
    match run(cli) {
        Ok(()) => exit::OK.into(),
        Err(failure) => {
            // Nothing is left to tell where standard error is closed.
            let _ = writeln!(io::stderr(), "droidrelay: {}", failure.text);
            failure.code.into()
        }
    }
}
