// SPDX-License-Identifier: MPL-2.0

//! The command line and the exit codes (sysexits.h).

use std::{
    net::{SocketAddr, TcpListener},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::{
    doctor,
    http::{Client, Login, Url},
    keep::Keeper,
    log::{Format, Log},
    manual, metrics,
    net::Net,
    pipeline, poll,
    source::{Failure, Source},
    supervisor::{Event, Inbox, Policy, Supervisor},
    trigger::Trigger,
};

/// Exit codes, named as in sysexits.h.
pub mod exit {
    pub const OK: i32 = 0;
    pub const USAGE: i32 = 64;
    pub const DATA: i32 = 65;
    pub const NO_INPUT: i32 = 66;
    pub const UNAVAILABLE: i32 = 69;
    pub const SOFTWARE: i32 = 70;
    pub const NO_PERMISSION: i32 = 77;
    pub const CONFIG: i32 = 78;
}

/// Runs a GStreamer pipeline line as a supervised service.
///
/// A launch file holds what stands after gst-launch-1.0 on a command line, over several lines,
/// with # comments and variables.
#[derive(Parser)]
#[command(name = "droidrelay", version, after_long_help = manual::AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    action: Action,
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
    log_format: Format,
}

#[derive(Subcommand)]
enum Action {
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
    Check {
        #[command(flatten)]
        line: Line,
    },
    /// Look for what is missing, and say what to do about it
    ///
    /// Plugin, encoders, cameras and clock of this machine; with a launch file also its elements,
    /// sources, encoder, broker and server. One line for each thing: ok, note, warning or FAILED,
    /// what was seen, and behind -> what to do. It disturbs neither a running robot nor a running
    /// stream. The exit code is that of the first failure: 65, 66, 78 the file; 69 something is
    /// missing or out of reach; 77 a right or a login is missing. 0: nothing has failed.
    Doctor(Doctor),
    /// Write a shell's completions to stdout
    Completions { shell: Shell },
    /// Write the manual page to stdout, for man(1)
    Man,
}

#[derive(Args)]
pub struct Line {
    /// The launch file
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
pub struct Settings {
    /// Value of a variable in the file; not for secrets
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl From<Line> for Source {
    fn from(line: Line) -> Self {
        Source {
            path: line.file,
            settings: line.settings.settings,
        }
    }
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    line: Line,
    /// What to do when the pipeline has played to its end
    #[arg(long, value_enum, default_value = "exit", value_name = "ACTION")]
    on_eos: OnEos,
    /// Exit with code 69 after this many failures in a row; 0 = never
    #[arg(long, value_name = "N", default_value_t = 10)]
    give_up_after: u32,
    /// Seconds without media where it should move, which count as a failure; 0 = never
    ///
    /// Media should move through a mqttvalve that is open (unless its camera fails, which it tries
    /// again by itself) and out of a rtmpauthsink that is publishing. With 0, systemd's watchdog
    /// looks at the latter alone.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    stall_timeout: u32,
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
    trigger: Vec<Trigger>,
    /// Serve metrics for Prometheus at http://ADDRESS:PORT/metrics
    ///
    /// PORT alone listens on this machine only. They hold no secret, but anybody who reaches
    /// another address can read them. Port 0 takes a free one; the log says which.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics::parse_address)]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    poll: Poll,
}

#[derive(Args)]
struct Poll {
    /// Follow a bridge by HTTP, for a robot without MQTT: the URL of its stream there
    ///
    /// As in https://cloud.example/robots/r1/stream. The launcher asks the bridge for the wanted
    /// state (long poll), opens and closes the valves as it says, and reports their state. The
    /// valves need no broker. Without an answer the stream goes on: leases run out by themselves,
    /// and what was started without one ends after 120 s.
    // Read later: clap would show a wrong value, which may hold a password.
    #[arg(long = "poll", value_name = "URL")]
    url: Option<String>,
    /// User name at the bridge (Basic)
    #[arg(
        long = "poll-user",
        value_name = "NAME",
        requires = "url",
        requires = "password_file"
    )]
    user: Option<String>,
    /// File whose first line is the password at the bridge; read anew for each connection
    #[arg(
        long = "poll-password-file",
        value_name = "FILE",
        requires = "url",
        requires = "user"
    )]
    password_file: Option<PathBuf>,
    /// File whose first line is the token at the bridge (Bearer); read anew for each connection
    #[arg(
        long = "poll-token-file",
        value_name = "FILE",
        requires = "url",
        conflicts_with = "user"
    )]
    token_file: Option<PathBuf>,
    /// PEM file of the certificates to trust in place of the system's store
    #[arg(long = "poll-ca-file", value_name = "FILE", value_hint = ValueHint::FilePath, requires = "url")]
    ca_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Doctor {
    /// The launch file
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Publish a test picture for a moment, to see whether the server takes the credentials
    ///
    /// Whoever publishes there at that moment may be cut off: stop the robot first. Without this
    /// nothing is published, only a connection made.
    #[arg(long, requires = "file")]
    pub publish: bool,
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
    let log = Log::new(cli.log_format);
    let panics = log.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.error(&format!("a fault of droidrelay itself: {panic}"));
    }));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        log.bridge();
        match cli.action {
            Action::Check { line } => check(line, &log),
            Action::Run(options) => run(*options, &log),
            Action::Doctor(options) => {
                let source = options.file.clone().map(|path| Source {
                    path,
                    settings: options.settings.settings.clone(),
                });
                Ok(doctor::examine(source, options.publish, &log))
            }
            Action::Completions { shell } => manual::completions(shell),
            Action::Man => manual::page(),
        }
    }));
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            log.error(&failure.text);
            failure.code
        }
        Err(_) => exit::SOFTWARE,
    }
}

fn check(line: Line, log: &Log) -> Result<i32, Failure> {
    let source = Source::from(line);
    let (_, pipeline) = source.load(log)?;
    println!(
        "{}: ok, {} elements",
        source.path.display(),
        pipeline::elements(&pipeline)
    );
    Ok(exit::OK)
}

fn run(options: Run, log: &Log) -> Result<i32, Failure> {
    let source = Source::from(options.line);
    let loaded = source.load(log)?;
    let policy = Policy {
        restart_on_eos: options.on_eos == OnEos::Restart,
        give_up_after: options.give_up_after,
        stall_timeout: Duration::from_secs(options.stall_timeout.into()),
        triggers: options.trigger,
    };
    let has_triggers = !policy.triggers.is_empty();
    let listener = options.metrics.map(|at| listen(at, log)).transpose()?;
    let clients = options.poll.clients()?;
    let (inbox, events) = Inbox::new();
    let mut supervisor =
        Supervisor::new(source, loaded, policy, log.clone(), (inbox.clone(), events));
    let elements = supervisor.elements();
    if !elements.has_valves() && (has_triggers || clients.is_some()) {
        log.warning("there is no mqttvalve in the line: --trigger and --poll open nothing");
    }
    if elements.has_broker() && clients.is_some() {
        log.warning("--poll beside a broker: commands of both are obeyed; leave out broker=");
    }
    // A bridge that is polled remembers by itself.
    supervisor = supervisor.with_keeper(Keeper::new().filter(|_| clients.is_none()));
    if listener.is_some() || clients.is_some() {
        let polls = clients.is_some();
        let states = supervisor.states();
        let net = Net::spawn(move |tasks, stop| {
            if let Some(listener) = listener {
                let inbox = inbox.clone();
                let scrape = move |answer| inbox.put(Event::Scrape(answer));
                tasks.spawn(metrics::serve(listener, stop.clone(), scrape));
            }
            if let Some(clients) = clients {
                let tell = move |news| inbox.put(Event::Poll(news));
                tasks.spawn(poll::run(clients, poll::SILENCE, states, stop, tell));
            }
        })
        .map_err(|err| Failure::new(exit::UNAVAILABLE, format!("cannot start a thread: {err}")))?;
        supervisor = supervisor.with_net(net, polls);
    }
    Ok(supervisor.run())
}

fn listen(address: SocketAddr, log: &Log) -> Result<TcpListener, Failure> {
    let failed = |err: std::io::Error| {
        let text = format!(
            "--metrics {address}: {err}; name a free port, or 0, and an address of this machine"
        );
        Failure::new(exit::UNAVAILABLE, text)
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    log.info(&format!("metrics at http://{address}/metrics"));
    if metrics::is_public(address.ip()) {
        log.warning("the metrics can be read by everybody who reaches this address");
    }
    Ok(listener)
}

impl Poll {
    /// One client for questions, one for reports: a question waits for its answer.
    fn clients(self) -> Result<Option<(Client, Client)>, Failure> {
        let Some(url) = self.url else {
            return Ok(None);
        };
        let url = Url::parse(&url)
            .map_err(|text| Failure::new(exit::USAGE, format!("--poll: {text}")))?;
        let login = match (self.user, self.password_file, self.token_file) {
            (Some(user), Some(password_file), _) => Login::Basic {
                user,
                password_file,
            },
            (_, _, Some(token_file)) => Login::Bearer { token_file },
            _ => Login::None,
        };
        let client = || {
            Client::new(url.clone(), login.clone(), self.ca_file.clone())
                .and_then(|client| client.check().map(|()| client))
                .map_err(|text| Failure::new(exit::CONFIG, format!("--poll {url}: {text}")))
        };
        Ok(Some((client()?, client()?)))
    }
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
