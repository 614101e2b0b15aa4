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
    auth::{Hash, give_memory_back},
    cli::{enroll, hook, notify, robot},
    config,
    connections::Connections,
    housekeeping,
    log::log,
    serve::{self, Tls, connections_by_files, serve},
    sessions,
};
use droidrelay_wire::{Secret, exit};
use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::interval,
};
use tracing::{Level, error, info, warn};
use tracing_subscriber::util::SubscriberInitExt;

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
    /// Make the robot's broker users with their rights and its publisher's credential; print the
    /// command to be typed on the robot.
    Add(robot::Options),
    /// Print a new command for a robot that is there: after 15 minutes, for another machine, or to
    /// renew what it has.
    Enroll {
        /// Name of the robot.
        name: String,
        #[command(flatten)]
        way: enroll::Way,
    },
    /// List the robots with their topics and paths.
    List,
    /// Take away what `add` gave.
    Remove(robot::Options),
}

fn main() -> ExitCode {
    give_memory_back();
    let arguments = Arguments::parse();
    let path = arguments.config;
    let done = match arguments.command {
        Some(Subcommands::HashPassword { sha256 }) => hash_password(sha256),
        Some(Subcommands::Hook(options)) => block_on(hook::run(&options)),
        Some(Subcommands::Robot { what }) => match what {
            RobotCommand::Add(options) => robot::add(&options, &path),
            RobotCommand::Enroll { name, way } => robot::enroll(&name, &way, &path),
            RobotCommand::List => enroll::list(&path),
            RobotCommand::Remove(options) => {
                let streams = robot::streams(&options.name, &path);
                robot::remove(&options, &path).map(|told| {
                    // Its files are gone, whatever the broker says.
                    told + &block_on(robot::clear(&streams, &path)).unwrap_or_else(|err| err)
                })
            }
        }
        .and_then(|told| print(&told)),
        None if arguments.print_config_template => print(config::TEMPLATE),
        None => match Config::load(&path) {
            Ok(_) if arguments.check => Ok(()),
            Ok(config) => {
                log(arguments.log_level, io::stderr, io::stderr().is_terminal()).init();
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

fn block_on<T>(task: impl Future<Output = Result<T, String>>) -> Result<T, String> {
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
    let mut doors = match (config.tls_listen, &tls) {
        (Some(listen), Some(tls)) => vec![(config.listen, None), (listen, Some(tls.clone()))],
        _ => vec![(config.listen, tls.clone())],
    };
    doors.extend(config.mediamtx_listen.map(|listen| (listen, None)));
    let mut listeners = Vec::new();
    for (listen, tls) in doors {
        let cannot_listen = |err| format!("cannot listen on {listen}: {err}");
        let listener = serve::listen(listen).map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        if tls.is_none() && !address.ip().is_loopback() {
            warn!("credentials come in the clear: set [tls], or put a proxy with TLS in front");
        }
        listeners.push((listener, address, tls));
    }
    let limits = connections_by_files(config.connections, listeners.len());
    let bridge = Bridge::start(config, &Handle::current())?;
    bridge.spawn(housekeeping::run(bridge.clone()));
    bridge.spawn(sessions::run(bridge.clone()));
    let mut servers = JoinSet::new();
    for (listener, address, tls) in listeners {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (app, closing) = (app(bridge.clone()), bridge.closing());
        // Each door has its own: whoever fills one keeps nobody out of the other.
        let connections = Connections::new(limits, bridge.proxies.clone());
        servers.spawn(serve(listener, tls, app, connections, closing, DRAIN));
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
            bridge.replace_users(config.users);
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
