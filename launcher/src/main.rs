// SPDX-License-Identifier: MPL-2.0

//! `droidrelay`: runs a pipeline line as a supervised service.

mod changer;
mod cli;
mod doctor;
mod elements;
mod health;
mod http;
mod keep;
mod launchfile;
mod log;
mod manual;
mod mask;
mod metrics;
mod net;
mod notify;
mod pipeline;
mod poll;
mod report;
mod source;
mod supervisor;
mod trigger;
mod variables;

fn main() {
    std::process::exit(cli::main());
}
