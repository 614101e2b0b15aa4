//! The command line and the exit codes (sysexits.h).

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    launchfile::{Fault, FaultKind, LaunchFile},
    log::Log,
    mask::Mask,
    pipeline,
    supervisor::{Policy, Supervisor},
    variables::Variables,
};

/// Exit codes, named as in sysexits.h.
pub mod exit {
    pub const OK: i32 = 0;
    pub const USAGE: i32 = 64;
    pub const DATA: i32 = 65;
    pub const NO_INPUT: i32 = 66;
    pub const UNAVAILABLE: i32 = 69;
    pub const SOFTWARE: i32 = 70;
    pub const CONFIG: i32 = 78;
}

/// Runs a GStreamer pipeline line as a supervised service.
///
/// FILE holds what stands after gst-launch-1.0 on a command line: over several lines, with
/// # comments, ${VAR} and ${VAR:-default}. Variables come from --set, the environment and
/// the files in $CREDENTIALS_DIRECTORY; ${NOW} is the time at which the file is read (UTC).
///
/// Exit codes: 0 ended as asked, 64 usage, 65 the file is wrong, 66 no file, 69 the
/// pipeline failed too often or GStreamer is missing, 70 the pipeline hung, 78 a variable
/// is missing.
#[derive(Parser)]
#[command(name = "droidrelay", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run the pipeline; start it again when it fails; SIGTERM and SIGINT end it cleanly
    Run {
        #[command(flatten)]
        line: Line,
        /// What to do when the pipeline has played to its end
        #[arg(long, value_enum, default_value = "exit")]
        on_eos: OnEos,
        /// Exit with code 69 after this many failures in a row; 0 = never
        #[arg(long, value_name = "N", default_value_t = 10)]
        give_up_after: u32,
    },
    /// Say whether the file is right: variables, elements, properties, links
    Check {
        #[command(flatten)]
        line: Line,
    },
}

#[derive(Args)]
struct Line {
    /// The launch file
    file: PathBuf,
    /// Value of a variable in the file; not for secrets
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnEos {
    /// Play it again
    Restart,
    /// End with code 0
    Exit,
}

/// Runs the command line and returns the exit code.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // A closed stdout or stderr changes nothing about the outcome.
            let _ = err.print();
            return if err.use_stderr() {
                exit::USAGE
            } else {
                exit::OK
            };
        }
    };
    let outcome = match cli.action {
        Action::Check { line } => check(&line),
        Action::Run {
            line,
            on_eos,
            give_up_after,
        } => run(&line, on_eos, give_up_after),
    };
    outcome.unwrap_or_else(|failure| {
        Log::new(failure.mask).error(&failure.text);
        failure.code
    })
}

/// Why nothing was started.
struct Failure {
    code: i32,
    text: String,
    mask: Mask,
}

impl Failure {
    fn new(code: i32, text: String) -> Self {
        Failure {
            code,
            text,
            mask: Mask::default(),
        }
    }

    fn of_fault(path: &Path, fault: Fault, mask: Mask) -> Self {
        let place = fault.place.map(|at| format!(":{at}")).unwrap_or_default();
        Failure {
            code: match fault.kind {
                FaultKind::Data => exit::DATA,
                FaultKind::Configuration => exit::CONFIG,
            },
            text: format!("{}{place}: {}", path.display(), fault.text),
            mask,
        }
    }
}

/// Reads the file and builds its pipeline.
fn load(line: &Line) -> Result<(LaunchFile, gst::Pipeline), Failure> {
    let path = &line.file;
    let mut variables =
        Variables::new(&line.settings).map_err(|text| Failure::new(exit::USAGE, text))?;
    let bytes = std::fs::read(path).map_err(|err| {
        let text = format!("cannot read {}: {err}; name a launch file", path.display());
        Failure::new(exit::NO_INPUT, text)
    })?;
    let text = String::from_utf8(bytes).map_err(|err| {
        let valid = err.utf8_error().valid_up_to();
        let line = 1 + err.as_bytes()[..valid]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Failure::new(
            exit::DATA,
            format!(
                "{}:{line}: not UTF-8: save the file as UTF-8",
                path.display()
            ),
        )
    })?;
    let file = LaunchFile::parse(&text, &mut |name| variables.look_up(name))
        .map_err(|fault| Failure::of_fault(path, fault, Mask::default()))?;
    for name in variables.unused() {
        Log::default().warning(&format!(
            "--set {name}: {} has no ${{{name}}}",
            path.display()
        ));
    }
    gst::init().map_err(|err| {
        Failure::new(
            exit::UNAVAILABLE,
            format!("GStreamer does not start: {err}; is libgstreamer1.0-0 complete?"),
        )
    })?;
    let pipeline = pipeline::build(&file)
        .map_err(|fault| Failure::of_fault(path, fault, file.mask.clone()))?;
    Ok((file, pipeline))
}

fn check(line: &Line) -> Result<i32, Failure> {
    let (_, pipeline) = load(line)?;
    println!(
        "{}: ok, {} elements",
        line.file.display(),
        pipeline::elements(&pipeline)
    );
    Ok(exit::OK)
}

fn run(line: &Line, on_eos: OnEos, give_up_after: u32) -> Result<i32, Failure> {
    let (file, pipeline) = load(line)?;
    let policy = Policy {
        restart_on_eos: on_eos == OnEos::Restart,
        give_up_after,
    };
    Ok(Supervisor::new(file, pipeline, policy).run())
}
