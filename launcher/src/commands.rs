// SPDX-License-Identifier: MPL-2.0

//! The commands of the command line: each ends in an exit code.

use std::{
    ffi::OsString,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use droidrelay_wire::{
    exit::{self, Failure},
    net::{
        http::{Client, KeptClient, Login, Policy as UrlPolicy, Url},
        tls::TlsFiles,
    },
};

use crate::{
    cli::{Action, Cli, Doctor, Enrollment, OnEos, Poll, Run},
    doctor,
    file::{opening, pipeline, source::Source},
    help,
    log::Log,
    remote::{metrics, net::Net, poll},
    run::{
        elements::Elements,
        events::{Event, Inbox},
        follow::BridgeLink,
        keep::Keeper,
        observe::Observer,
        successor::Inherited,
        supervisor::{Policy, Supervisor},
    },
    v4l2,
};

/// Runs the command line and returns the exit code.
pub fn main() -> u8 {
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
            Action::Check(source) => check(source, &log),
            Action::Run(options) => run(*options, &log),
            Action::Doctor(Doctor {
                file,
                settings,
                publish,
            }) => Ok(doctor::look(file, settings, publish, &log)),
            Action::Enroll(Enrollment { words }) => enrollment("enroll", words),
            Action::Leave(Enrollment { words }) => enrollment("leave", words),
            Action::Completions { shell } => completions(shell),
            Action::Man => manual_page(),
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

fn check(source: Source, log: &Log) -> Result<u8, Failure> {
    let (_, pipeline) = source.load(log)?;
    if let Some(text) = opening::lacking(&pipeline) {
        let text = format!("{}: {text}", source.file.display());
        return Err(Failure::new(exit::DATA, text));
    }
    println!(
        "{}: ok, {} elements",
        source.file.display(),
        pipeline::elements(&pipeline)
    );
    Ok(exit::OK)
}

fn run(options: Run, log: &Log) -> Result<u8, Failure> {
    let inherited = Inherited::look();
    keep_little();
    v4l2::close_devices();
    let source = options.source;
    let loaded = source.load(log)?;
    let policy = Policy {
        restart_on_eos: options.on_eos == OnEos::Restart,
        give_up_after: options.give_up_after,
        stall_timeout: Duration::from_secs(options.stall_timeout.into()),
        retention: options.keep_free,
    };
    let listener = options.metrics.map(|at| listen(at, log)).transpose()?;
    let clients = clients(options.poll)?;
    let elements = Elements::of(&loaded.1);
    if elements.valves.is_empty() && (!options.trigger.is_empty() || clients.is_some()) {
        log.warning("there is no mqttvalve in the line: --trigger and --poll open nothing");
    }
    if elements.has_broker() && clients.is_some() {
        log.warning("--poll beside a broker: commands of both are obeyed; leave out broker=");
    }
    // A bridge that is polled remembers by itself.
    let keeper = Keeper::new().filter(|_| clients.is_none());
    let bridge = clients.is_some().then(|| BridgeLink::new(log.clone()));
    let (inbox, events) = Inbox::new();
    let net = net(listener, clients, bridge.as_ref(), &inbox)?;
    let observer = Observer::new(options.trigger, keeper, bridge, log.clone());
    let queue = (inbox, events);
    let of_process = (net, inherited);
    let log = log.clone();
    let supervisor = Supervisor::new(source, loaded, policy, observer, of_process, queue, log);
    Ok(supervisor.run())
}

/// What serves metrics and polls a bridge, where that is asked for.
fn net(
    listener: Option<TcpListener>,
    clients: Option<(KeptClient, KeptClient)>,
    bridge: Option<&BridgeLink>,
    inbox: &Inbox,
) -> Result<Net, Failure> {
    if listener.is_none() && clients.is_none() {
        return Ok(Net::default());
    }
    let poll = clients.zip(bridge.map(BridgeLink::states));
    let inbox = inbox.clone();
    Net::spawn(move |tasks, stop| {
        if let Some(listener) = listener {
            let inbox = inbox.clone();
            let scrape = move |answer| inbox.put(Event::Scrape(answer));
            tasks.spawn(metrics::serve(listener, stop.clone(), scrape));
        }
        if let Some((clients, states)) = poll {
            let on_event = move |event| inbox.put(Event::Poll(event));
            tasks.spawn(poll::run(clients, poll::SILENCE, states, stop, on_event));
        }
    })
    .map_err(|err| Failure::new(exit::UNAVAILABLE, format!("cannot start a thread: {err}")))
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
    if !address.ip().is_loopback() {
        log.warning("the metrics can be read by everybody who reaches this address");
    }
    Ok(listener)
}

/// One client for questions, one for reports: a question waits for its answer.
fn clients(options: Poll) -> Result<Option<(KeptClient, KeptClient)>, Failure> {
    let Some(url) = options.url else {
        return Ok(None);
    };
    let url = Url::parse(&url, UrlPolicy::Public)
        .map_err(|text| Failure::new(exit::USAGE, format!("--poll: {text}")))?;
    let login = match (options.user, options.password_file, options.token_file) {
        (Some(user), Some(password_file), _) => Login::Basic {
            user,
            password_file,
        },
        (_, _, Some(token_file)) => Login::Bearer { token_file },
        _ => Login::None,
    };
    let trust = TlsFiles {
        ca_file: options.ca_file,
        ..TlsFiles::default()
    };
    let agent = concat!("droidrelay/", env!("CARGO_PKG_VERSION"));
    let client = Client::new(url.clone(), login, &trust, agent)
        .and_then(|client| client.check().map(|()| client))
        .map_err(|text| Failure::new(exit::CONFIG, format!("--poll {url}: {text}")))?;
    Ok(Some((
        KeptClient::new(client.clone()),
        KeptClient::new(client),
    )))
}

/// Becomes the program that sets robots up; back only where that cannot be.
fn enrollment(what: &str, words: Vec<OsString>) -> Result<u8, Failure> {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("/"));
    // As it is built, and as it is installed.
    let places = [
        folder.join("droidrelay-enroll"),
        folder.join("../lib/droidrelay/droidrelay-enroll"),
    ];
    let program = places.iter().find(|place| place.exists());
    let program = program.unwrap_or(&places[1]);
    let failed = Command::new(program).arg(what).args(words).exec();
    let text = format!(
        "{}: {failed}; install the package droidrelay anew",
        program.display()
    );
    Err(Failure::new(exit::UNAVAILABLE, text))
}

fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "droidrelay", &mut text);
    print(&text)
}

fn manual_page() -> Result<u8, Failure> {
    let mut text = Vec::new();
    help::manual_page(Cli::command(), &mut text)
        .map_err(|err| Failure::new(exit::SOFTWARE, err.to_string()))?;
    print(&text)
}

fn print(text: &[u8]) -> Result<u8, Failure> {
    std::io::stdout()
        .write_all(text)
        .map_err(|err| Failure::new(exit::UNAVAILABLE, format!("cannot write to stdout: {err}")))?;
    Ok(exit::OK)
}

/// Sets the allocator for a pipeline that is idle most of the time: lets glibc's allocator give back what is free at the end of each of its arenas, beyond 128 KiB.
/// By itself it keeps twice the largest block that was ever freed: megabytes of pictures in each.
/// What the environment has chosen stays.
fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 128 * 1024;
        let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
        if std::env::var_os("MALLOC_TRIM_THRESHOLD_").is_some()
            || tunables.contains("malloc.trim_threshold")
        {
            return;
        }
        // SAFETY: sets a number of the allocator's, in its own lock.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
    }
}
