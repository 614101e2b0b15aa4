// SPDX-License-Identifier: MPL-2.0

//! Command line of the bridge.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, Subcommand};
use droidrelay_bridge::{
    Bridge, Config, app,
    auth::Hash,
    cli::{hook, notify, robot},
    config, housekeeping,
    serve::{Tls, serve},
};
use droidrelay_wire::{Secret, exit};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::interval,
};
use tracing::{Level, error, info, warn};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Requests in progress get this long at the end.
const DRAIN: Duration = Duration::from_millis(500);
/// How often the certificate's files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Starts and stops robots' streams by HTTP, tells their state, speaks MQTT to the robots.
#[derive(Parser)]
#[command(name = "droidrelay-bridge", version)]
struct Arguments {
    /// Configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "DROIDRELAY_BRIDGE_CONFIG",
        default_value = "/etc/droidrelay-bridge/droidrelay-bridge.toml"
    )]
    config: PathBuf,
    /// Read the configuration, say whether it is right, and end.
    #[arg(long)]
    check: bool,
    /// Print the commented default configuration, which is the manual, and end.
    #[arg(long)]
    print_config_template: bool,
    /// error, warn, info or debug.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Level,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Read a password from the first line of standard input, print its hash for the configuration.
    HashPassword {
        /// SHA-256 instead of argon2id: for tokens and other long random secrets only.
        #[arg(long)]
        sha256: bool,
    },
    /// Tell the bridge what happens at MediaMTX, which runs this as runOnDemand and its kin.
    Hook(hook::Options),
    /// Give a robot all that it needs on the server, or take it away.
    Robot {
        #[command(subcommand)]
        what: RobotCommand,
    },
}

#[derive(Subcommand)]
enum RobotCommand {
    /// Make the robot's broker user with its rights and its publisher's credential; print the
    /// robot's line.
    Add(robot::Options),
    /// Take away what `add` gave.
    Remove(robot::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let path = arguments.config;
    let done = match arguments.command {
        Some(Subcommands::HashPassword { sha256 }) => hash_password(sha256),
        Some(Subcommands::Hook(options)) => block_on(hook::run(&options)),
        Some(Subcommands::Robot { what }) => match what {
            RobotCommand::Add(options) => robot::add(&options, &path),
            RobotCommand::Remove(options) => robot::remove(&options, &path),
        }
        .and_then(|told| print(&told)),
        None if arguments.print_config_template => print(config::TEMPLATE),
        None => match Config::load(&path) {
            Ok(_) if arguments.check => Ok(()),
            Ok(config) => {
                start_log(arguments.log_level);
                let ended = block_on(run(path, config)).inspect_err(|err| error!("{err}"));
                return ended.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
            }
            Err(err) => return fail(&err, ExitCode::from(exit::CONFIG)),
        },
    };
    done.map_or_else(|err| fail(&err, ExitCode::FAILURE), |()| ExitCode::SUCCESS)
}

fn fail(reason: &str, code: ExitCode) -> ExitCode {
    // Nothing is left to tell where standard error is closed.
    let _ = writeln!(io::stderr(), "droidrelay-bridge: {reason}");
    code
}

fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|err| format!("cannot write: {err}"))
}

fn hash_password(sha256: bool) -> Result<(), String> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|err| format!("cannot read the password from standard input: {err}"))?;
    let secret = Secret::new(line.trim_end_matches(['\r', '\n']));
    if secret.is_empty() {
        return Err("the password is empty: write it to standard input, one line".into());
    }
    let hash = if sha256 {
        Hash::sha256(&secret)
    } else {
        Hash::argon2id(&secret)?
    };
    print(&format!("{hash}\n"))
}

/// Only our own words: libraries may log what they were given.
fn start_log(level: Level) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines)
        .with(Targets::new().with_target("droidrelay_bridge", level))
        .init();
}

fn block_on(task: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| format!("cannot start: {err}"))?;
    let result = runtime.block_on(task);
    // A name that does not resolve would hold a plain drop for seconds.
    runtime.shutdown_background();
    result
}

async fn run(path: PathBuf, mut config: Config) -> Result<(), String> {
    // Before anything listens, so that no signal is missed.
    let cannot_hear = |err| format!("cannot handle signals: {err}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_hear)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_hear)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_hear)?;
    let tls = config.tls.take().map(Arc::new);
    let doors = match (config.tls_listen, &tls) {
        (Some(listen), Some(tls)) => vec![(config.listen, None), (listen, Some(tls.clone()))],
        _ => vec![(config.listen, tls.clone())],
    };
    let mut listeners = Vec::new();
    for (listen, tls) in doors {
        let cannot_listen = |err| format!("cannot listen on {listen}: {err}");
        let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        if tls.is_none() && !address.ip().is_loopback() {
            warn!("credentials come in the clear: set [tls], or put a proxy with TLS in front");
        }
        listeners.push((listener, address, tls));
    }
    let bridge = Bridge::start(config, &Handle::current())?;
    bridge.spawn(housekeeping::run(bridge.clone()));
    let mut servers = JoinSet::new();
    for (listener, address, tls) in listeners {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (app, closing) = (app(bridge.clone()), bridge.closing());
        servers.spawn(serve(listener, tls, app, closing, DRAIN));
        info!("listening on {scheme}://{address}");
    }
    notify::ready();
    let mut look = interval(LOOK);
    let name = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => reload(&path, &bridge, tls.as_deref()),
            _ = look.tick() => {
                if let Some(tls) = tls.as_deref().filter(|tls| tls.has_changed()) {
                    reload_tls(tls);
                }
            }
            Some(ended) = servers.join_next() => return Err(format!("a server ended: {ended:?}")),
        }
    };
    info!("{name}: ending");
    notify::stopping();
    bridge.begin_close();
    // They end by themselves, within the drain.
    while servers.join_next().await.is_some() {}
    bridge.close().await;
    Ok(())
}

/// Reads the users anew, and the certificate; what is for the broker is read at its next try.
fn reload(path: &Path, bridge: &Bridge, tls: Option<&Tls>) {
    match Config::load(path) {
        Ok(config) if config.users.is_empty() != bridge.auth.is_open() => {
            error!(
                "not reloaded: with the first [[user]], or without the last one, restart the bridge"
            );
        }
        Ok(config) => {
            let count = config.users.len();
            bridge.auth.replace(config.users);
            info!("reloaded: {count} users");
        }
        Err(err) => error!("not reloaded: {err}"),
    }
    if let Some(tls) = tls {
        reload_tls(tls);
    }
    // Password, CA and certificate for the broker are read by each try.
    bridge.hurry();
}

fn reload_tls(tls: &Tls) {
    match tls.reload() {
        Ok(()) => info!("the certificate is read anew"),
        Err(err) => error!("the certificate stays as it was: {err}"),
    }
}
