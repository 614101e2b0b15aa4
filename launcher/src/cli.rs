// SPDX-License-Identifier: MPL-2.0

//! The command line.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::{
    file::source::{Settings, Source},
    help,
    log::Format,
    remote::metrics,
    run::{retention::Retention, trigger::Trigger},
};

/// Runs a GStreamer pipeline line as a supervised service.
///
/// A launch file holds what stands after gst-launch-1.0 on a command line, over several lines,
/// with # comments and variables.
#[derive(Parser)]
#[command(name = "droidrelay", version, after_long_help = help::AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Action,
    /// How the log is written, which goes to stderr
    ///
    /// Where stderr is systemd's journal, each line carries its priority. GStreamer's own log is
    /// part of it, as much of it as $GST_DEBUG asks for. Secrets of the launch file are masked.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub log_format: Format,
}

#[derive(Subcommand)]
pub enum Action {
    /// Run the pipeline of a launch file, and keep it running
    ///
    /// A pipeline that fails is started again after 0.5 to 30 s; every third failure in a row, and
    /// an element that has panicked, bring a new pipeline; what hangs, and --give-up-after, end the
    /// process for systemd to start it anew. Leases that hold a mqttvalve open are kept on all of
    /// these steps; on the last one in $RUNTIME_DIRECTORY.
    ///
    /// SIGTERM and SIGINT end it within 2 s, with EOS so that files are complete; a second one at
    /// once. SIGHUP reads the launch file again and, if it is right, runs it in place of the old
    /// one, leases kept.
    Run(Box<Run>),
    /// Say whether a launch file is right: variables, elements, properties, links
    ///
    /// Cameras that are there are opened for a moment, and asked whether they have the size, format
    /// and rate that the file asks for.
    Check(Source),
    /// Look for what is missing, and say what to do about it
    ///
    /// Plugin, encoders, cameras and clock of this machine; with a launch file also its elements,
    /// sources, encoder, broker and server. One line for each thing: ok, note, warning or FAILED,
    /// what was seen, and behind -> what to do. It disturbs neither a running robot nor a running
    /// stream. The exit code is that of the first failure: 65, 66, 78 the file; 69 something is
    /// missing or out of reach; 77 a right or a login is missing. 0: nothing has failed.
    Doctor(Doctor),
    /// Set this robot up with the command that its server has printed
    ///
    /// On the server: droidrelay-bridge robot add NAME. It fetches passwords and certificate, finds
    /// the cameras of this machine and the launch file that fits, and starts the service.
    /// droidrelay enroll --help has its options.
    #[command(disable_help_flag = true)]
    Enroll(Enrollment),
    /// Take away what enroll made, and stop the service
    #[command(disable_help_flag = true)]
    Leave(Enrollment),
    /// Write a shell's completions to stdout
    Completions { shell: Shell },
    /// Write the manual page to stdout, for man(1)
    Man,
}

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    pub source: Source,
    /// What to do when the pipeline has played to its end
    #[arg(long, value_enum, default_value = "exit", value_name = "ACTION")]
    pub on_eos: OnEos,
    /// Exit with code 69 after this many failures in a row; 0 = never
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub give_up_after: u32,
    /// Seconds without media where it should move, which count as a failure; 0 = never
    ///
    /// Media should move through a mqttvalve that is open (unless its camera fails, which it tries
    /// again by itself) and out of a rtmpauthsink that is publishing. With 0, systemd's watchdog
    /// looks at the latter alone.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub stall_timeout: u32,
    /// Delete the oldest recordings while less than this is free on their disk
    ///
    /// SHARE is a percentage (10%), or bytes (5G, 500M). PATTERN is an absolute path with one * in
    /// the file's name. Looked at every 30 s, and when a side branch of the pipeline fails; the
    /// newest file of the pattern always stays.
    ///
    /// Example: --keep-free '10%=/var/lib/droidrelay/*.ts'
    #[arg(long, value_name = "SHARE=PATTERN", value_parser = str::parse::<Retention>)]
    pub keep_free: Option<Retention>,
    /// Open the valves for a while when an element posts a message
    ///
    /// NAME:lease=SECONDS[,CONDITION]... NAME is that of the element message's structure, and the
    /// id of the lease; it is renewed while messages come. Conditions, which must all hold: FIELD
    /// (is there), !FIELD (is not), FIELD and one of = != < <= > >= with a VALUE; of a list, such
    /// as one value a channel, one value is enough. Can be given several times.
    ///
    /// Examples: --trigger motion:lease=30 for motioncells postallmotion=true (without that it
    /// posts at the begin and at the end of a motion only); --trigger 'level:lease=20,rms>-30' for
    /// level, which is more than -30 dB in one channel.
    #[arg(long, value_name = "NAME:lease=SECONDS", value_parser = str::parse::<Trigger>)]
    pub trigger: Vec<Trigger>,
    /// Serve metrics for Prometheus at http://ADDRESS:PORT/metrics
    ///
    /// PORT alone listens on this machine only. They hold no secret, but anybody who reaches
    /// another address can read them. Port 0 takes a free one; the log says which.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics::parse_address)]
    pub metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub poll: Poll,
}

#[derive(Args)]
pub struct Poll {
    /// Follow a bridge by HTTP, for a robot without MQTT: the URL of its stream there
    ///
    /// As in https://cloud.example/robots/r1/stream. The launcher asks the bridge for the wanted
    /// state (long poll), opens and closes the valves as it says, and reports their state. The
    /// valves need no broker. Without an answer the stream goes on: leases run out by themselves,
    /// and what was started without one ends after 120 s.
    // Read later: clap would show a wrong value, which may hold a password.
    #[arg(long = "poll", value_name = "URL")]
    pub url: Option<String>,
    /// User name at the bridge (Basic)
    #[arg(
        long = "poll-user",
        value_name = "NAME",
        requires = "url",
        requires = "password_file"
    )]
    pub user: Option<String>,
    /// File whose first line is the password at the bridge; read anew for each connection
    #[arg(
        long = "poll-password-file",
        value_name = "FILE",
        requires = "url",
        requires = "user"
    )]
    pub password_file: Option<PathBuf>,
    /// File whose first line is the token at the bridge (Bearer); read anew for each connection
    #[arg(
        long = "poll-token-file",
        value_name = "FILE",
        requires = "url",
        conflicts_with = "user"
    )]
    pub token_file: Option<PathBuf>,
    /// PEM file of the certificates to trust in place of the system's store
    #[arg(long = "poll-ca-file", value_name = "FILE", value_hint = ValueHint::FilePath, requires = "url")]
    pub ca_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Doctor {
    /// The launch file, or the name of a service
    ///
    /// For droidrelay@NAME.service its NAME: the doctor reads the service's launch file, environment
    /// and credentials, and as root it takes on the rights of the service's user.
    #[arg(value_name = "FILE|NAME", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub settings: Settings,
    /// Publish a test picture for a moment, to see whether the server takes the credentials
    ///
    /// Whoever publishes there at that moment may be cut off: stop the robot first. Without this
    /// nothing is published, only a connection made.
    #[arg(long, requires = "file")]
    pub publish: bool,
}

/// For the program droidrelay-enroll, which reads them.
#[derive(Args)]
pub struct Enrollment {
    /// https://HOST/enroll#..., or options
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    pub words: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnEos {
    /// Play it again
    Restart,
    /// End with code 0
    Exit,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
