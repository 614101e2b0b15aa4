// SPDX-License-Identifier: MPL-2.0

//! MediaMTX, where it is installed; its log tells who comes and goes.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context, Result};

use super::common::{Event, Options, Ports, answers_rtmp, answers_rtsp};
use crate::{
    certs::{Login, write_private},
    journal::Journal,
    process::{Process, program},
};

/// The program that `MEDIAMTX` names, or `mediamtx` in PATH.
pub fn find() -> Option<PathBuf> {
    match env::var_os("MEDIAMTX") {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => program("mediamtx"),
    }
}

pub fn launch(
    folder: &Path,
    ports: Ports,
    options: &Options,
    (publisher, viewer): (&Login, &Login),
    events: &Journal<Event>,
) -> Result<Process> {
    let tls = match &options.tls {
        None => String::new(),
        Some(identity) => {
            identity.write(folder, "server")?;
            format!(
                "rtmpEncryption: optional\nrtmpsAddress: \"127.0.0.1:{}\"\n\
                 rtmpServerCert: server.pem\nrtmpServerKey: server.key\n",
                ports.rtmps
            )
        }
    };
    let host = if options.far { "" } else { "127.0.0.1" };
    // Any hook makes readers wait for a publisher; what starts the robot is not its task here.
    let config = format!(
        r#"logLevel: info
logDestinations: [stdout]
authInternalUsers:
  - user: {publisher}
    pass: "{publisher_hash}"
    permissions: [{{action: publish, path: live/stream}}]
  - user: {viewer}
    pass: "{viewer_hash}"
    permissions: [{{action: read, path: live/stream}}]
rtspAddress: "127.0.0.1:{rtsp}"
rtspTransports: [tcp]
rtmpAddress: "{host}:{rtmp}"
{tls}hls: false
webrtc: false
srt: false
moq: false
paths:
  "~^live/(stream)$":
    overridePublisher: {overrides}
    runOnDemand: /bin/true
    runOnDemandStartTimeout: 60s
    runOnDemandCloseAfter: 10s
"#,
        publisher = publisher.user,
        publisher_hash = publisher.hash(),
        viewer = viewer.user,
        viewer_hash = viewer.hash(),
        rtsp = ports.other,
        rtmp = ports.rtmp,
        overrides = !options.exclusive,
    );
    let config = write_private(folder, "mediamtx.yml", &config)?;
    let log = Journal::default();
    let (clients, events) = (Mutex::new(Clients::default()), events.clone());
    log.listen(move |_, line: &String| {
        let Ok(mut clients) = clients.lock() else {
            return;
        };
        if let Some(event) = clients.read(line) {
            events.push(event);
        }
    });
    let mut command = Command::new(find().context(ABSENT)?);
    command.arg(config).current_dir(folder);
    let mut process = Process::spawn_into("mediamtx", &mut command, log)?;
    process.wait_ready(|| answers_rtmp(ports.rtmp) && answers_rtsp(ports.other))?;
    Ok(process)
}

pub const ABSENT: &str =
    "MediaMTX not found: put `mediamtx` into PATH, or its path into the variable MEDIAMTX";

/// Who is who in the log.
#[derive(Default)]
struct Clients {
    publisher: Option<String>,
}

impl Clients {
    fn read(&mut self, line: &str) -> Option<Event> {
        let (_, client) = line.split_once('[')?;
        if client.starts_with("path ") {
            return client
                .contains("runOnDemand command started")
                .then_some(Event::Reader);
        }
        let (protocol, rest) = client.split_once("] [")?;
        let (name, what) = rest.split_once("] ")?;
        if what.starts_with("failed to authenticate") {
            return Some(match protocol {
                "RTMP" | "RTMPS" => Event::PublishRefused,
                _ => Event::ReaderRefused,
            });
        }
        if what.starts_with("is publishing") {
            self.publisher = Some(name.to_owned());
            return Some(Event::Published);
        }
        if what.starts_with("is reading") {
            return Some(Event::Reader);
        }
        if what.starts_with("closed") && self.publisher.as_deref() == Some(name) {
            self.publisher = None;
            return Some(Event::Unpublished);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_who_comes_and_goes() {
        let log = [
            "2026/11/23 21:40:00 INF [path live/stream] runOnDemand command started",
            "2026/11/23 21:40:01 INF [RTMP] [conn 127.0.0.1:35776] opened",
            "2026/11/23 21:40:01 INF [RTMP] [conn 127.0.0.1:35776] is publishing to path 'live/stream'",
            "2026/11/23 21:40:01 WAR [RTMP] [conn 127.0.0.1:4] failed to authenticate: authentication failed",
            "2026/11/23 21:40:01 INF [RTMP] [conn 127.0.0.1:4] closed: authentication failed",
            "2026/11/23 21:40:01 INF [RTSP] [session 27e0] is reading from path 'live/stream', with TCP, 1 track (H264)",
            "2026/11/23 21:40:01 INF [RTSP] [conn 127.0.0.1:47546] closed: EOF",
            "2026/11/23 21:40:01 INF [RTMP] [conn 127.0.0.1:35776] closed: EOF",
        ];
        let mut clients = Clients::default();
        let events: Vec<_> = log.iter().filter_map(|line| clients.read(line)).collect();
        assert_eq!(
            events,
            [
                Event::Reader,
                Event::Published,
                Event::PublishRefused,
                Event::Reader,
                Event::Unpublished
            ]
        );
    }
}
