// SPDX-License-Identifier: MPL-2.0

//! `droidrelay`: runs a pipeline line as a supervised service.

fn main() {
    std::process::exit(droidrelay::commands::main());
}
