//! Command line of the bridge.

mod notify;

use std::{
    future::IntoFuture,
    io::{self, BufRead, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use axum::serve::ListenerExt;
use clap::{Parser, Subcommand};
use droidrelay_bridge::{app, auth::Hash, config, Bridge, Config};
use droidrelay_wire::Secret;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    signal::unix::{signal, SignalKind},
    sync::oneshot,
    time::timeout,
};
use tracing::{error, info, Level};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// EX_CONFIG of sysexits.h.
const EXIT_CONFIG: u8 = 78;
/// Requests in progress get this long at the end.
const DRAIN: Duration = Duration::from_millis(500);

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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Subcommands::HashPassword { sha256 }) = arguments.command {
        return report(hash_password(sha256), ExitCode::FAILURE);
    }
    if arguments.print_config_template {
        return report(print(config::TEMPLATE), ExitCode::FAILURE);
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(err) => return report(Err(err.to_string()), ExitCode::from(EXIT_CONFIG)),
    };
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    start_log(arguments.log_level);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            error!("{err}");
            ExitCode::FAILURE
        }
    }
}

fn report(result: Result<(), String>, failure: ExitCode) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // Nothing is left to tell where standard error is closed.
            let _ = writeln!(io::stderr(), "droidrelay-bridge: {err}");
            failure
        }
    }
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

fn serve(config: Config) -> Result<(), String> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| format!("cannot start: {err}"))?;
    let result = runtime.block_on(run(config));
    // A name that does not resolve would hold a plain drop for seconds.
    runtime.shutdown_background();
    result
}

async fn run(config: Config) -> Result<(), String> {
    // Before anything listens, so that no signal is missed.
    let cannot_hear = |err| format!("cannot handle signals: {err}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_hear)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_hear)?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|err| format!("cannot listen on {listen}: {err}"))?;
    let address = listener
        .local_addr()
        .map_err(|err| format!("cannot listen on {listen}: {err}"))?;
    let listener = listener.tap_io(|stream| {
        // Slower without, not wrong.
        let _ = stream.set_nodelay(true);
    });
    let bridge = Bridge::start(config, &Handle::current())?;
    let service = app(bridge.clone()).into_make_service_with_connect_info::<SocketAddr>();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(
        axum::serve(listener, service)
            .with_graceful_shutdown(async {
                // A dropped sender is the signal.
                let _ = stopped.await;
            })
            .into_future(),
    );
    info!("listening on http://{address}");
    notify::ready();
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        ended = &mut server => return Err(format!("the server ended: {ended:?}")),
    };
    info!("{name}: ending");
    notify::stopping();
    bridge.begin_close();
    drop(stop);
    if timeout(DRAIN, &mut server).await.is_err() {
        server.abort();
    }
    bridge.close().await;
    Ok(())
}
