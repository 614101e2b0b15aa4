//! `droidrelay`: runs a pipeline line as a supervised service.

mod changer;
mod cli;
mod launchfile;
mod log;
mod mask;
mod notify;
mod pipeline;
mod supervisor;
mod variables;

fn main() {
    std::process::exit(cli::main());
}
