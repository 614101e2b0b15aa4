// SPDX-License-Identifier: MPL-2.0

//! The servers at the other end: name, TCP, TLS, login, rights.

use std::{
    fmt::Display,
    net::UdpSocket,
    path::PathBuf,
    time::{Duration, Instant},
};

use droidrelay_rtmp::location::Location;
use droidrelay_wire::{
    BrokerUrl, FaultKind, PublishPhase, RobotState, Secret,
    exit::{self, Failure},
    mqtt::session::{Capabilities, Config, Event, RECEIVE_MAXIMUM, Session},
    net::{
        connect::{connect, look_up},
        tls::{self, TlsFiles},
        url::Authority,
    },
    words::topics::state_topic,
};
use gst::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::mpsc,
    time::timeout,
};

use super::report::{Report, failed, forbidden, missing};
use crate::file::{launchfile::LaunchFile, pipeline};

/// For the name, and for its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// For a login, a handshake, an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a retained state, which comes right behind the subscription.
const STATE_TIMEOUT: Duration = Duration::from_secs(1);
/// For a publishing session, whose first try may be lost.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);
/// C0 and C1 of RTMP: the version, and as many bytes as the specification wants.
const HELLO: usize = 1 + 1536;
const VERSION: u8 = 3;

fn text(element: &gst::Element, property: &str) -> Option<String> {
    element
        .property::<Option<String>>(property)
        .filter(|text| !text.is_empty())
}

fn path(element: &gst::Element, property: &str) -> Option<PathBuf> {
    text(element, property).map(PathBuf::from)
}

/// Name and TCP; what is connected.
async fn reach(
    what: &str,
    host: &str,
    port: u16,
    report: &Report<'_>,
) -> Result<TcpStream, Failure> {
    let addresses =
        look_up(host, port, CONNECT_TIMEOUT)
            .await
            .map_err(|fault| match has_network() {
                true => missing(format_args!("{what}: name"), fault, ""),
                false => no_network(&format!("{what}: name")),
            })?;
    let shown: Vec<String> = addresses.iter().map(|at| at.ip().to_string()).collect();
    report.ok(
        format_args!("{what}: name"),
        format_args!("{host} is {}", shown.join(", ")),
    );
    let what = format!("{what}: TCP");
    let stream = connect(&addresses, CONNECT_TIMEOUT).await.map_err(|err| {
        match err.is_unreachable() && !has_network() {
            true => no_network(&what),
            false => missing(&what, format_args!("cannot connect to {host}: {err}"), ""),
        }
    })?;
    report.ok(what, format_args!("port {port} answers"));
    Ok(stream)
}

/// Whether there is a way to somewhere else. Nothing is sent.
fn has_network() -> bool {
    // Addresses for documentation, of both kinds.
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .any(|(from, to)| UdpSocket::bind(from).is_ok_and(|socket| socket.connect(to).is_ok()))
}

fn no_network(what: &str) -> Failure {
    missing(
        what,
        "this machine has no network: it knows no way there",
        "plug the cable in, or join the wireless network (ip route shows the ways that there are)",
    )
}

/// The broker of a valve, as the valve would use it but under a client id of its own: a running
/// robot keeps its session, and hears nothing of it.
pub async fn broker(
    file: &LaunchFile,
    valve: &gst::Element,
    report: &Report<'_>,
) -> Result<(), Failure> {
    let name = valve.name();
    let what = format!("{name}: broker");
    let Some(written) = pipeline::property(file, &name, "broker") else {
        report.note(
            what,
            "none",
            "opened only by --poll, --trigger and applications",
        );
        return Ok(());
    };
    let (url, userinfo) =
        BrokerUrl::parse(&written).map_err(|fault| failed(exit::DATA, what, fault, ""))?;
    let what = format!("broker {url}");
    url.scheme
        .check_built_in()
        .map_err(|fault| missing(&what, fault, ""))?;
    let tcp = reach(&what, &url.host, url.port, report).await?;
    let files = TlsFiles {
        ca_file: path(valve, "ca-file"),
        cert_file: path(valve, "cert-file"),
        key_file: path(valve, "key-file"),
        ..TlsFiles::default()
    };
    let tls = url.scheme.is_tls().then(|| tls::Source::new(files));
    let tls = tls
        .transpose()
        .map_err(|fault| failed(exit::CONFIG, format_args!("{what}: TLS"), fault, ""))?;
    match &tls {
        Some(tls) => {
            let tls = tls
                .client()
                .map_err(|fault| failed(exit::CONFIG, format_args!("{what}: TLS"), fault, ""))?;
            secure(&what, &tls, &url.host, tcp, report).await?;
        }
        None => drop(tcp),
    }
    let username = text(valve, "username").or(userinfo.username);
    let password = match path(valve, "password-file") {
        Some(file) => Some(read_secret(file, format_args!("{what}: login"))?),
        None => pipeline::property(file, &name, "password")
            .map(Secret::new)
            .or(userinfo.password),
    };
    let who = username.clone().unwrap_or_else(|| "nobody".into());
    let topic = valve.property::<String>("topic");
    let config = |topic: &str| {
        let (username, password) = (username.clone(), password.clone());
        Config {
            client_id: format!("droidrelay-doctor-{}", std::process::id()),
            broker: url.clone(),
            credentials: Box::new(move || Ok((username.clone(), password.clone()))),
            tls: tls.clone(),
            keep_alive: Duration::from_secs(10),
            session_expiry: Duration::ZERO,
            resumes: false,
            receive_maximum: RECEIVE_MAXIMUM,
            will: None,
            subscriptions: vec![topic.to_owned()],
            live: Vec::new(),
        }
    };
    let capabilities = log_in(config(&topic), &format!("{what}: login as {who}")).await?;
    report.ok(
        format_args!("{what}: login"),
        format_args!("as {who}, with MQTT {}", capabilities.version),
    );
    for lack in capabilities.lacks() {
        report.warning(&what, lack, "");
    }
    report.ok(
        format_args!("{what}: commands"),
        format_args!("the broker lets {who} subscribe to {topic} (Mosquitto with an acl_file says so of any topic: to be sure, send a start)"),
    );
    let state_topic = text(valve, "state-topic").unwrap_or_else(|| state_topic(&topic));
    if let Some(fault) = last_fault(config(&state_topic)).await {
        let saw = format!("the robot that has run there last told of this: {fault}");
        report.warning(format_args!("{what}: state"), saw, "");
    }
    Ok(())
}

/// What the retained state tells of a fault, where this login may read it.
async fn last_fault(config: Config) -> Option<String> {
    let (sender, mut states) = mpsc::unbounded_channel();
    let session = Session::spawn(&Handle::current(), config, move |event| {
        let state = match event {
            Event::Message(message) => serde_json::from_slice::<RobotState>(&message.payload).ok(),
            Event::Down(_) => None,
            _ => return,
        };
        // Only the first one counts.
        let _ = sender.send(state);
    });
    let state = timeout(STATE_TIMEOUT, states.recv()).await;
    session.stop(Vec::new()).await;
    state.ok()???.last_error
}

fn read_secret(file: PathBuf, what: impl Display) -> Result<Secret, Failure> {
    Secret::from_file(file).map_err(|fault| failed(exit::CONFIG, what, fault, ""))
}

/// The first try of a session.
async fn log_in(config: Config, what: &str) -> Result<Capabilities, Failure> {
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let session = Session::spawn(&Handle::current(), config, move |event| {
        let outcome = match event {
            Event::Up(capabilities) => Ok(capabilities),
            Event::Down(fault) => Err(fault),
            _ => return,
        };
        // Only the first one counts.
        let _ = sender.send(outcome);
    });
    let outcome = timeout(ANSWER_TIMEOUT, outcomes.recv()).await;
    session.stop(Vec::new()).await;
    match outcome.ok().flatten() {
        Some(Ok(capabilities)) => Ok(capabilities),
        Some(Err(fault)) if fault.kind == FaultKind::Refused => Err(forbidden(what, fault, "")),
        Some(Err(fault)) => Err(missing(what, fault, "")),
        None => {
            let saw = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(missing(what, saw, "is that a broker?"))
        }
    }
}

/// A TLS session with what answers at `tcp`.
async fn secure(
    what: &str,
    tls: &tls::Client,
    host: &str,
    tcp: TcpStream,
    report: &Report<'_>,
) -> Result<(), Failure> {
    let what = format!("{what}: TLS");
    timeout(ANSWER_TIMEOUT, tls.connect(host, tcp))
        .await
        .map_err(|_| missing(&what, "no answer", "is that port the one with TLS?"))?
        .map_err(|fault| missing(&what, fault, ""))?;
    report.ok(
        what,
        "the certificate is valid, for this name and at this time",
    );
    Ok(())
}

/// The server of a sink, up to where a publisher would begin.
pub async fn rtmp(sink: &gst::Element, report: &Report<'_>) -> Result<(), Failure> {
    let what = format!("{}: server", sink.name());
    let location = text(sink, "location").ok_or_else(|| {
        failed(
            exit::DATA,
            &what,
            "no location, or one that is none",
            "write location=rtmp://host/app/stream",
        )
    })?;
    let (location, _) =
        Location::parse(&location).map_err(|fault| failed(exit::DATA, &what, fault, ""))?;
    if let Some(file) = path(sink, "password-file") {
        read_secret(file, format_args!("{what}: password"))?;
    }
    let mut ports = location.ports().into_iter().peekable();
    while let Some(port) = ports.next() {
        match (rtmp_at(sink, &location, port, report).await, ports.peek()) {
            (Err(failure), Some(next)) => report.note(
                failure.text,
                format_args!("the location names no port, so that {next} is tried as well"),
                "write the port into location",
            ),
            (reached, _) => return reached,
        }
    }
    Ok(())
}

async fn rtmp_at(
    sink: &gst::Element,
    location: &Location,
    port: u16,
    report: &Report<'_>,
) -> Result<(), Failure> {
    let host = location.host.as_str();
    let scheme = if location.tls { "rtmps" } else { "rtmp" };
    let what = format!("server {scheme}://{}", Authority(host, port));
    let mut tcp = reach(&what, host, port, report).await?;
    if !location.tls {
        return greet(&what, &mut tcp, report).await;
    }
    let shown = |flags: &glib::Value| {
        let text = flags.transform::<String>().ok();
        text.and_then(|text| text.get::<String>().ok())
            .unwrap_or_default()
    };
    let flags = shown(&sink.property_value("tls-validation-flags"));
    let all = sink
        .find_property("tls-validation-flags")
        .map(|spec| shown(spec.default_value()));
    if all.as_ref() != Some(&flags) {
        report.warning(
            format_args!("{what}: TLS"),
            format_args!("tls-validation-flags={flags} forgives faults of the certificate"),
            "anybody on the way may pose as the server: for tests only",
        );
        return Ok(());
    }
    let files = TlsFiles {
        ca_file: path(sink, "ca-file"),
        ..TlsFiles::default()
    };
    let tls = files
        .client()
        .map_err(|fault| failed(exit::CONFIG, format_args!("{what}: TLS"), fault, ""))?;
    secure(&what, &tls, host, tcp, report).await
}

/// Says hello as RTMP begins, and goes.
async fn greet(what: &str, tcp: &mut TcpStream, report: &Report<'_>) -> Result<(), Failure> {
    let mut hello = [0; HELLO];
    hello[0] = VERSION;
    let mut answer = [0];
    let greeted = timeout(ANSWER_TIMEOUT, async {
        tcp.write_all(&hello).await?;
        tcp.read_exact(&mut answer).await
    });
    let what = format!("{what}: RTMP");
    let saw = match greeted.await {
        Ok(Ok(_)) if answer[0] == VERSION => {
            report.ok(what, "it speaks RTMP");
            return Ok(());
        }
        Ok(_) => "what answers there does not speak RTMP",
        Err(_) => "it takes the connection and says nothing",
    };
    Err(missing(what, saw, "check the port; is it rtmps?"))
}

/// Publishes a test picture by the line's own sink until the server has said what it thinks of it.
pub fn publish(what: &str, sink: &gst::Element, report: &Report) -> Result<(), Failure> {
    let encoder = ["x264enc", "openh264enc", "v4l2h264enc", "vah264enc"]
        .into_iter()
        .find(|name| gst::ElementFactory::find(name).is_some());
    let Some(encoder) = encoder else {
        report.warning(
            what,
            "not tried: no encoder for a test picture",
            "install gstreamer1.0-plugins-ugly",
        );
        return Ok(());
    };
    let Some(pipeline) = test_pipeline(sink, encoder) else {
        let saw = "not tried: the test picture does not fit the sink";
        report.warning(what, saw, "");
        return Ok(());
    };
    let published = publish_until_answered(what, &pipeline);
    // It cannot hang: these are elements of ours, and a test picture.
    let _ = pipeline.set_state(gst::State::Null);
    published?;
    report.ok(what, "the server has accepted a test picture");
    Ok(())
}

/// A test picture, encoded by `encoder`, into the sink of a line.
fn test_pipeline(sink: &gst::Element, encoder: &str) -> Option<gst::Pipeline> {
    if let Some(bin) = sink.parent().and_downcast::<gst::Bin>() {
        // A bin lets go of what is linked, too.
        let _ = bin.remove(sink);
    }
    let line = format!(
        "videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 ! {encoder} name=encoder"
    );
    let pipeline = gst::parse::launch(&line).ok()?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().ok()?;
    pipeline.add(sink).ok()?;
    pipeline.by_name("encoder")?.link(sink).ok()?;
    Some(pipeline)
}

fn publish_until_answered(what: &str, pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let silent = || {
        let saw = format!("no answer within {} s", PUBLISH_TIMEOUT.as_secs());
        missing(what, saw, "look at the server's log")
    };
    let failed = |reason: &str| match reason {
        "" => silent(),
        reason => missing(what, reason, ""),
    };
    pipeline
        .set_state(gst::State::Playing)
        .map_err(|_| failed("the sink does not start"))?;
    let bus = pipeline.bus().expect("every pipeline has a bus");
    let deadline = Instant::now() + PUBLISH_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = gst::ClockTime::try_from(left).unwrap_or_default();
        let wanted = [gst::MessageType::Element, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(wait, &wanted).ok_or_else(silent)?;
        if let gst::MessageView::Error(error) = message.view() {
            return Err(failed(error.error().message()));
        }
        let Some(structure) = message
            .structure()
            .filter(|s| s.name() == "rtmpauthsink-state")
        else {
            continue;
        };
        let field = |name| structure.get::<Option<String>>(name).ok().flatten();
        let reason = field("reason").unwrap_or_default();
        match PublishPhase::from(field("state").unwrap_or_default()) {
            PublishPhase::Publishing => return Ok(()),
            PublishPhase::Refused => return Err(forbidden(what, reason, "")),
            PublishPhase::Backoff => return Err(failed(&reason)),
            _ => {}
        }
    }
}
