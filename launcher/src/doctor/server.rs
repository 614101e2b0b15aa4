// SPDX-License-Identifier: MPL-2.0

//! The servers at the other end: name, TCP, TLS, login, rights.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use droidrelay_rtmp::location::Location;
use droidrelay_wire::{
    BrokerUrl, Fault, FaultKind, PublishPhase, Secret, exit,
    mqtt::session::{Config, Event, RECEIVE_MAXIMUM, Session},
    net::{
        connect::{connect, look_up},
        tls::{self, TlsFiles},
        url::Authority,
    },
};
use gst::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use super::report::Report;
use crate::file::{launchfile::LaunchFile, pipeline};

/// For the name, and for its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// For a login, a handshake, an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
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
async fn reach(what: &str, host: &str, port: u16, report: &mut Report<'_>) -> Option<TcpStream> {
    let addresses = match look_up(host, port, CONNECT_TIMEOUT).await {
        Ok(addresses) => addresses,
        Err(text) => {
            report.missing(&format!("{what}: name"), &text, "");
            return None;
        }
    };
    let shown: Vec<String> = addresses.iter().map(|at| at.ip().to_string()).collect();
    report.ok(
        &format!("{what}: name"),
        &format!("{host} is {}", shown.join(", ")),
    );
    match connect(&addresses, CONNECT_TIMEOUT).await {
        Ok(stream) => {
            report.ok(&format!("{what}: TCP"), &format!("port {port} answers"));
            Some(stream)
        }
        Err(err) => {
            let saw = format!("cannot connect to {host}: {err}");
            report.missing(&format!("{what}: TCP"), &saw, "");
            None
        }
    }
}

/// The broker of a valve, as the valve would use it but under a client id of its own: a running
/// robot keeps its session, and hears nothing of it.
pub async fn broker(file: &LaunchFile, valve: &gst::Element, report: &mut Report<'_>) {
    let name = valve.name();
    let Some(written) = pipeline::property(file, &name, "broker") else {
        return report.note(
            &format!("{name}: broker"),
            "none",
            "opened only by --poll, --trigger and applications",
        );
    };
    let what = format!("{name}: broker");
    let (url, userinfo) = match BrokerUrl::parse(&written) {
        Ok(parsed) => parsed,
        Err(fault) => return report.failed(exit::DATA, &what, &fault, ""),
    };
    let what = format!("broker {url}");
    if let Err(fault) = url.scheme.check_built_in() {
        return report.missing(&what, &fault, "");
    }
    let Some(tcp) = reach(&what, &url.host, url.port, report).await else {
        return;
    };
    let files = TlsFiles {
        ca_file: path(valve, "ca-file"),
        cert_file: path(valve, "cert-file"),
        key_file: path(valve, "key-file"),
        ..TlsFiles::default()
    };
    let tls = match url.scheme.is_tls().then(|| files.client()).transpose() {
        Ok(tls) => tls,
        Err(fault) => return report.failed(exit::CONFIG, &format!("{what}: TLS"), &fault, ""),
    };
    if let Some(tls) = &tls {
        if !secure(&what, tls, &url.host, tcp, report).await {
            return;
        }
    } else {
        drop(tcp);
    }
    let username = text(valve, "username").or(userinfo.username);
    let password = pipeline::property(file, &name, "password")
        .map(Secret::new)
        .or(userinfo.password);
    let password_file = path(valve, "password-file");
    if let Some(Err(fault)) = password_file.as_ref().map(Secret::from_file) {
        return report.failed(exit::CONFIG, &format!("{what}: login"), &fault, "");
    }
    let who = username.clone().unwrap_or_else(|| "nobody".into());
    let topic = valve.property::<String>("topic");
    let config = Config {
        client_id: format!("droidrelay-doctor-{}", std::process::id()),
        broker: url,
        credentials: Box::new(move || {
            let password = match &password_file {
                Some(file) => Some(Secret::from_file(file)?),
                None => password.clone(),
            };
            Ok((username.clone(), password))
        }),
        tls,
        keep_alive: Duration::from_secs(10),
        session_expiry: Duration::ZERO,
        resumes: false,
        receive_maximum: RECEIVE_MAXIMUM,
        will: None,
        subscriptions: vec![topic.clone()],
    };
    match log_in(config).await {
        Some(Ok(())) => {
            report.ok(&format!("{what}: login"), &format!("as {who}"));
            report.ok(
                &format!("{what}: commands"),
                &format!("the broker lets {who} subscribe to {topic} (Mosquitto with an acl_file says so of any topic: to be sure, send a start)"),
            );
        }
        Some(Err(fault)) => {
            let what = format!("{what}: login as {who}");
            match fault.kind {
                FaultKind::Refused => report.forbidden(&what, &fault.text, ""),
                _ => report.missing(&what, &fault.text, ""),
            }
        }
        None => report.missing(
            &format!("{what}: login as {who}"),
            &format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
            "is that a broker?",
        ),
    }
}

/// What comes of the first try of a session; None: nothing, within [`ANSWER_TIMEOUT`].
async fn log_in(config: Config) -> Option<Result<(), Fault>> {
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let session = Session::spawn(&tokio::runtime::Handle::current(), config, move |event| {
        let outcome = match event {
            Event::Up => Ok(()),
            Event::Down(fault) => Err(fault),
            _ => return,
        };
        // Only the first one counts.
        let _ = sender.send(outcome);
    });
    let outcome = timeout(ANSWER_TIMEOUT, outcomes.recv()).await;
    session.stop(Vec::new()).await;
    outcome.ok().flatten()
}

/// A TLS session with what answers at `tcp`.
async fn secure(
    what: &str,
    tls: &tls::Client,
    host: &str,
    tcp: TcpStream,
    report: &mut Report<'_>,
) -> bool {
    let what = format!("{what}: TLS");
    match timeout(ANSWER_TIMEOUT, tls.connect(host, tcp)).await {
        Ok(Ok(_)) => {
            report.ok(
                &what,
                "the certificate is valid, for this name and at this time",
            );
            true
        }
        Ok(Err(fault)) => {
            report.missing(&what, &fault, "");
            false
        }
        Err(_) => {
            report.missing(&what, "no answer", "is that port the one with TLS?");
            false
        }
    }
}

/// The server of a sink, up to where a publisher would begin; true: it was reached.
pub async fn rtmp(sink: &gst::Element, report: &mut Report<'_>) -> bool {
    let what = format!("{}: server", sink.name());
    let Some(location) = text(sink, "location") else {
        report.failed(
            exit::DATA,
            &what,
            "no location, or one that is none",
            "write location=rtmp://host/app/stream",
        );
        return false;
    };
    let location = match Location::parse(&location) {
        Ok((location, _)) => location,
        Err(fault) => {
            report.failed(exit::DATA, &what, &fault, "");
            return false;
        }
    };
    let (host, port) = (location.host.as_str(), location.port);
    let scheme = if location.tls { "rtmps" } else { "rtmp" };
    let what = format!("server {scheme}://{}", Authority(host, port));
    if let Some(Err(fault)) = path(sink, "password-file").map(Secret::from_file) {
        report.failed(exit::CONFIG, &format!("{what}: password"), &fault, "");
        return false;
    }
    let Some(mut tcp) = reach(&what, host, port, report).await else {
        return false;
    };
    if !location.tls {
        return greet(&what, &mut tcp, report).await;
    }
    let flags = sink
        .property_value("tls-validation-flags")
        .transform::<String>()
        .ok()
        .and_then(|flags| flags.get::<String>().ok())
        .unwrap_or_default();
    let all = gst::ElementFactory::make("rtmpauthsink")
        .build()
        .ok()
        .and_then(|fresh| {
            let flags = fresh.property_value("tls-validation-flags");
            flags.transform::<String>().ok()?.get::<String>().ok()
        });
    if Some(&flags) != all.as_ref() {
        report.warning(
            &format!("{what}: TLS"),
            &format!("tls-validation-flags={flags} forgives faults of the certificate"),
            "anybody on the way may pose as the server: for tests only",
        );
        return true;
    }
    let files = TlsFiles {
        ca_file: path(sink, "ca-file"),
        ..TlsFiles::default()
    };
    match files.client() {
        Ok(tls) => secure(&what, &tls, host, tcp, report).await,
        Err(fault) => {
            report.failed(exit::CONFIG, &format!("{what}: TLS"), &fault, "");
            false
        }
    }
}

/// Says hello as RTMP begins, and goes.
async fn greet(what: &str, tcp: &mut TcpStream, report: &mut Report<'_>) -> bool {
    let mut hello = [0; HELLO];
    hello[0] = VERSION;
    let mut answer = [0];
    let greeted = timeout(ANSWER_TIMEOUT, async {
        tcp.write_all(&hello).await?;
        tcp.read_exact(&mut answer).await
    });
    let what = format!("{what}: RTMP");
    match greeted.await {
        Ok(Ok(_)) if answer[0] == VERSION => {
            report.ok(&what, "it speaks RTMP");
            true
        }
        Ok(_) => {
            report.missing(
                &what,
                "what answers there does not speak RTMP",
                "check the port; is it rtmps?",
            );
            false
        }
        Err(_) => {
            report.missing(
                &what,
                "it takes the connection and says nothing",
                "check the port; is it rtmps?",
            );
            false
        }
    }
}

/// Publishes a test picture by the line's own sink until the server has said what it thinks of it.
pub fn publish(sink: &gst::Element, report: &mut Report) {
    let what = format!("{}: credentials", sink.name());
    let encoder = ["x264enc", "openh264enc", "v4l2h264enc", "vah264enc"]
        .into_iter()
        .find(|name| gst::ElementFactory::find(name).is_some());
    let Some(encoder) = encoder else {
        return report.warning(
            &what,
            "not tried: no encoder for a test picture",
            "install gstreamer1.0-plugins-ugly",
        );
    };
    let Some(pipeline) = test_pipeline(sink, encoder) else {
        let saw = "not tried: the test picture does not fit the sink";
        return report.warning(&what, saw, "");
    };
    let outcome = publish_until_answered(&pipeline);
    // It cannot hang: these are elements of ours, and a test picture.
    let _ = pipeline.set_state(gst::State::Null);
    match outcome {
        Outcome::Published => report.ok(&what, "the server has accepted a test picture"),
        Outcome::Refused(reason) => report.forbidden(&what, &reason, ""),
        Outcome::Failed(reason) => report.missing(&what, &reason, ""),
        Outcome::Silent => report.missing(
            &what,
            &format!("no answer within {} s", PUBLISH_TIMEOUT.as_secs()),
            "look at the server's log",
        ),
    }
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

/// What a server has made of a publisher.
enum Outcome {
    Published,
    Refused(String),
    Failed(String),
    /// Nothing, within [`PUBLISH_TIMEOUT`].
    Silent,
}

fn publish_until_answered(pipeline: &gst::Pipeline) -> Outcome {
    let failed = |reason: &str| match reason {
        "" => Outcome::Silent,
        reason => Outcome::Failed(reason.to_owned()),
    };
    if pipeline.set_state(gst::State::Playing).is_err() {
        return failed("the sink does not start");
    }
    let bus = pipeline.bus().expect("every pipeline has a bus");
    let deadline = Instant::now() + PUBLISH_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = gst::ClockTime::try_from(left).unwrap_or_default();
        let wanted = [gst::MessageType::Element, gst::MessageType::Error];
        let Some(message) = bus.timed_pop_filtered(wait, &wanted) else {
            return Outcome::Silent;
        };
        if let gst::MessageView::Error(error) = message.view() {
            return failed(error.error().message());
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
            PublishPhase::Publishing => return Outcome::Published,
            PublishPhase::Refused => return Outcome::Refused(reason),
            PublishPhase::Backoff => return failed(&reason),
            _ => {}
        }
    }
}
