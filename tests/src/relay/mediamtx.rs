use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use super::{free_ports, launch, Events, Logins, PUBLISHER, VIEWER};
use crate::{Folder, Process};

pub(super) struct MediaMtx {
    program: PathBuf,
    pub rtmp_port: u16,
    pub rtsp_port: u16,
}

impl MediaMtx {
    pub fn new(program: PathBuf, folder: &Folder, logins: &Logins) -> Self {
        let [rtmp_port, rtsp_port] = free_ports();
        // With a demand hook, a reader that comes before the stream is held until it is there.
        let config = format!(
            r#"logLevel: info
logDestinations: [stdout]
authInternalUsers:
  - user: {PUBLISHER}
    pass: "{}"
    permissions: [{{action: publish, path: live/stream}}]
  - user: {VIEWER}
    pass: "{}"
    permissions: [{{action: read, path: live/stream}}]
rtspAddress: "127.0.0.1:{rtsp_port}"
rtspTransports: [tcp]
rtmpAddress: "127.0.0.1:{rtmp_port}"
hls: false
webrtc: false
srt: false
moq: false
paths:
  "~^live/(stream)$":
    runOnDemand: /bin/true
    runOnDemandStartTimeout: 60s
    runOnDemandCloseAfter: 5s
"#,
            logins.publisher, logins.viewer
        );
        folder.write("mediamtx.yml", &config);
        MediaMtx {
            program,
            rtmp_port,
            rtsp_port,
        }
    }

    pub fn launch(&self, folder: &Folder, events: &Arc<Events>) -> Result<Process, String> {
        let mut command = Command::new(&self.program);
        command.arg(folder.join("mediamtx.yml"));
        // A variable named after a configuration key would change the configuration.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MTX_") {
                command.env_remove(name);
            }
        }
        let (rtsp_port, rtmp_port) = (self.rtsp_port, self.rtmp_port);
        let told = events.clone();
        let on_line = move |line: &str| note(&told, line);
        launch(command, on_line, &folder.join("logs"), |process| {
            let log = process.stdout();
            log.contains("[RTSP] ") && log.contains("[RTMP] ") && {
                let rtmp = SocketAddr::from(([127, 0, 0, 1], rtmp_port));
                answers_options(rtsp_port) && TcpStream::connect(rtmp).is_ok()
            }
        })
    }
}

/// `… INF [RTMP] [conn 127.0.0.1:4711] is publishing to path 'live/stream', …` and
/// `… INF [RTMP] [conn 127.0.0.1:4711] closed: …`.
fn note(events: &Events, line: &str) {
    let Some((_, rest)) = line.split_once("[RTMP] [conn ") else {
        return;
    };
    let Some((connection, what)) = rest.split_once("] ") else {
        return;
    };
    if what.starts_with("is publishing to path") {
        events.published(connection);
    } else if what.starts_with("closed") {
        events.ended(connection);
    }
}

fn answers_options(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = format!("OPTIONS rtsp://{address}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    let mut answer = [0; 8];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"RTSP/1.0"
}
