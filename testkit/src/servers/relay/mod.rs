// SPDX-License-Identifier: MPL-2.0

//! The media server between robot and viewers: nginx-rtmp or MediaMTX, the real ones.

mod common;
mod mediamtx;
mod nginx;

use std::{
    fmt,
    io::{self, Write},
    net::SocketAddr,
    thread,
};

use anyhow::Result;
use tempfile::TempDir;

pub use common::{Event, Options, answers_rtmp};
pub use mediamtx::find as find_mediamtx;

use common::Ports;

use crate::{
    certs::{Identity, Login},
    journal::Journal,
    net::http,
    process::{Process, Signal, free_port, on_free_ports},
};

/// Path of the one stream.
pub const PATH: &str = "live/stream";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    MediaMtx,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nginx => "nginx-rtmp",
            Kind::MediaMtx => "MediaMTX",
        })
    }
}

impl Kind {
    /// Whether a test must do without this server; says so past the test harness's capture.
    /// nginx-rtmp comes with Debian and is never missing without an error.
    pub fn notice_if_absent(self) -> bool {
        let absent = self == Kind::MediaMtx && find_mediamtx().is_none();
        if absent {
            let test = thread::current();
            let test = test.name().unwrap_or_default();
            let _ = writeln!(io::stderr(), "SKIPPED {test}: {}", mediamtx::ABSENT);
        }
        absent
    }
}

/// A running server that knows one publisher and one viewer.
pub struct Relay {
    kind: Kind,
    process: Process,
    folder: TempDir,
    ports: Ports,
    options: Options,
    events: Journal<Event>,
    questions: Journal<http::Query>,
    callbacks: Option<http::Server>,
    pub publisher: Login,
    pub viewer: Login,
}

impl Relay {
    pub fn start(kind: Kind) -> Result<Self> {
        Self::start_with(kind, Options::default())
    }

    pub fn start_with(kind: Kind, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("relay-").tempdir()?;
        let mut publisher = Login::generate("mypublisher")?;
        if let Some(password) = &options.password {
            publisher.password.clone_from(password);
        }
        let viewer = Login::generate("myviewer")?;
        let events = Journal::default();
        let questions = Journal::default();
        let callbacks = match kind {
            Kind::Nginx => Some(nginx::callbacks(&publisher, &viewer, &events, &questions)?),
            Kind::MediaMtx => None,
        };
        let (process, ports) = on_free_ports(|| {
            let ports = Ports {
                rtmp: free_port()?,
                other: free_port()?,
                rtmps: free_port()?,
            };
            let process = match (kind, &callbacks) {
                (Kind::Nginx, Some(callbacks)) => {
                    nginx::launch(folder.path(), ports, &options, callbacks.address())?
                }
                _ => {
                    let logins = (&publisher, &viewer);
                    mediamtx::launch(folder.path(), ports, &options, logins, &events)?
                }
            };
            Ok((process, ports))
        })?;
        Ok(Relay {
            kind,
            process,
            folder,
            ports,
            options,
            events,
            questions,
            callbacks,
            publisher,
            viewer,
        })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn events(&self) -> &Journal<Event> {
        &self.events
    }

    /// nginx alone: all that it asked of who comes and goes.
    pub fn questions(&self) -> &Journal<http::Query> {
        &self.questions
    }

    /// Where the robot publishes, without credentials.
    pub fn publish_url(&self) -> String {
        self.publish_url_at("127.0.0.1", self.ports.rtmp)
    }

    /// As [`Relay::publish_url`], by another way.
    pub fn publish_url_at(&self, host: &str, port: u16) -> String {
        format!("rtmp://{host}:{port}/{PATH}")
    }

    pub fn rtmp_port(&self) -> u16 {
        self.ports.rtmp
    }

    /// As [`Relay::publish_url`], with TLS, by the name `host`.
    pub fn secure_publish_url(&self, host: &str) -> String {
        format!("rtmps://{host}:{}/{PATH}", self.ports.rtmps)
    }

    pub fn rtmps_port(&self) -> u16 {
        self.ports.rtmps
    }

    /// What it shows from its next start on.
    pub fn set_identity(&mut self, identity: Identity) {
        self.options.tls = Some(identity);
    }

    /// Where a viewer reads, without credentials.
    pub fn watch_url(&self) -> String {
        match self.kind {
            Kind::Nginx => self.publish_url(),
            Kind::MediaMtx => format!("rtsp://127.0.0.1:{}/{PATH}", self.ports.other),
        }
    }

    /// MediaMTX alone: where RTSP is.
    pub fn rtsp_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.other))
    }

    /// What to type into a player, with the viewer's credentials.
    pub fn viewer_url(&self) -> String {
        let Login { user, password } = &self.viewer;
        match self.kind {
            Kind::Nginx => format!("{}?user={user}&pass={password}", self.publish_url()),
            Kind::MediaMtx => format!(
                "rtsp://{user}:{password}@127.0.0.1:{}/{PATH}",
                self.ports.other
            ),
        }
    }

    /// nginx alone: publishers and readers at this moment.
    pub fn clients(&self) -> Result<usize> {
        nginx::clients(self.ports)
    }

    /// As a power cut would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// As its service manager ends it.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.end(Signal::TERM)?;
        Ok(())
    }

    /// Back on the same ports.
    pub fn restart(&mut self) -> Result<()> {
        self.process = on_free_ports(|| match &self.callbacks {
            Some(callbacks) => nginx::launch(
                self.folder.path(),
                self.ports,
                &self.options,
                callbacks.address(),
            ),
            None => mediamtx::launch(
                self.folder.path(),
                self.ports,
                &self.options,
                (&self.publisher, &self.viewer),
                &self.events,
            ),
        })?;
        Ok(())
    }

    /// Stands still, connections open, until [`Relay::thaw`].
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}
