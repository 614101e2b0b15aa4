// SPDX-License-Identifier: MPL-2.0

//! `droidrelay`: runs a pipeline line as a supervised service.

use std::process::ExitCode;

fn main() -> ExitCode {
    droidrelay::commands::main().into()
}
