// SPDX-License-Identifier: MPL-2.0

//! The programs that measure Droidrelay and write `docs/5-reports`. `tests/bench.sh`,
//! `tests/faults.sh`, `tests/soak.sh`, `tests/pictures.sh` and `lab/vm.sh` build and run them.

mod bench;
mod faults;
mod pictures;
mod soak;
mod subscriber;
mod uplink;
mod vm;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(version)]
enum Lab {
    Bench(bench::Options),
    Faults(faults::Options),
    Pictures(pictures::Options),
    Soak(soak::Options),
    Uplink(uplink::Options),
    Visit(pictures::Visit),
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let (name, result) = match Lab::parse() {
        Lab::Bench(options) => ("bench", bench::run(&options)),
        Lab::Faults(options) => ("faults", faults::run(&options)),
        Lab::Pictures(options) => ("pictures", pictures::run(&options)),
        Lab::Soak(options) => ("soak", soak::run(&options)),
        Lab::Uplink(options) => ("uplink", uplink::run(&options)),
        Lab::Visit(options) => ("visit", pictures::visit(&options)),
        Lab::Vm(options) => ("vm", vm::run(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{name}: {err:#}");
            ExitCode::FAILURE
        }
    }
}
