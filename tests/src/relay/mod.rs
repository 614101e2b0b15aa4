//! The media server: nginx-rtmp or MediaMTX, both with the same users.

mod mediamtx;
mod nginx;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use crate::{
    free_port, random_secret, system_program, try_wait_for, Folder, Process, DEADLINE, PORT_TRIES,
};
use mediamtx::MediaMtx;
use nginx::Nginx;

pub(crate) const PUBLISHER: &str = "mypublisher";
pub(crate) const VIEWER: &str = "myviewer";

/// What the server says of its one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEvent {
    Published,
    Unpublished,
}

/// A media server on loopback with the stream `live/stream`, published by `mypublisher` and
/// read by `myviewer`.
pub struct Relay {
    server: Server,
    process: Process,
    events: Arc<Events>,
    logins: Logins,
    folder: Folder,
}

enum Server {
    Nginx(Nginx),
    MediaMtx(MediaMtx),
}

#[derive(Clone)]
pub(crate) struct Logins {
    pub publisher: String,
    pub viewer: String,
}

impl Relay {
    /// nginx with the RTMP module, which asks this process whether a login is right.
    pub fn nginx() -> Self {
        Self::start(|folder, logins, events| {
            Server::Nginx(Nginx::new(folder, logins.clone(), events))
        })
    }

    /// MediaMTX from `$MEDIAMTX` or the PATH; None, said loudly, where there is none.
    pub fn mediamtx() -> Option<Self> {
        let program = mediamtx_program()?;
        Some(Self::start(|folder, logins, _| {
            Server::MediaMtx(MediaMtx::new(program.clone(), folder, logins))
        }))
    }

    fn start(server: impl Fn(&Folder, &Logins, Arc<Events>) -> Server) -> Self {
        for _ in 0..PORT_TRIES {
            let folder = Folder::new();
            let logins = Logins {
                publisher: random_secret(),
                viewer: random_secret(),
            };
            folder.write("publisher.pass", &format!("{}\n", logins.publisher));
            let events = Arc::<Events>::default();
            let server = server(&folder, &logins, events.clone());
            if let Ok(process) = server.launch(&folder, &events) {
                return Relay {
                    server,
                    process,
                    events,
                    logins,
                    folder,
                };
            }
        }
        panic!("the media server does not start on any of {PORT_TRIES} free ports");
    }

    /// `nginx-rtmp` or `MediaMTX`.
    pub fn name(&self) -> &'static str {
        match self.server {
            Server::Nginx(_) => "nginx-rtmp",
            Server::MediaMtx(_) => "MediaMTX",
        }
    }

    /// For `rtmpauthsink location=`, without credentials.
    pub fn publish_location(&self) -> String {
        let port = match &self.server {
            Server::Nginx(nginx) => nginx.port,
            Server::MediaMtx(mediamtx) => mediamtx.rtmp_port,
        };
        format!("rtmp://127.0.0.1:{port}/live/stream")
    }

    pub fn publisher(&self) -> &'static str {
        PUBLISHER
    }

    pub fn publisher_password(&self) -> &str {
        &self.logins.publisher
    }

    /// The password alone in a file that only its owner reads.
    pub fn publisher_password_file(&self) -> PathBuf {
        self.folder.join("publisher.pass")
    }

    /// With the viewer's credentials, as a player takes it.
    pub fn viewer_url(&self) -> String {
        let password = &self.logins.viewer;
        match &self.server {
            Server::Nginx(_) => {
                format!("{}?user={VIEWER}&pass={password}", self.publish_location())
            }
            Server::MediaMtx(mediamtx) => format!(
                "rtsp://{VIEWER}:{password}@127.0.0.1:{}/live/stream",
                mediamtx.rtsp_port
            ),
        }
    }

    pub fn viewer_password(&self) -> &str {
        &self.logins.viewer
    }

    /// All that was published and unpublished, in order.
    pub fn events(&self) -> Vec<(RelayEvent, Instant)> {
        self.events.list.lock().unwrap().clone()
    }

    pub fn is_published(&self) -> bool {
        self.events
            .last()
            .is_some_and(|(event, _)| event == RelayEvent::Published)
    }

    /// Publishing sessions that the server has accepted so far.
    pub fn published_count(&self) -> usize {
        let list = self.events.list.lock().unwrap();
        list.iter()
            .filter(|(event, _)| *event == RelayEvent::Published)
            .count()
    }

    /// Waits until the stream is published; since when.
    pub fn wait_published(&self, deadline: Duration) -> Instant {
        self.wait_event(RelayEvent::Published, deadline)
    }

    /// Waits until the stream is no longer published; since when.
    pub fn wait_unpublished(&self, deadline: Duration) -> Instant {
        self.wait_event(RelayEvent::Unpublished, deadline)
    }

    /// Waits for the `count`th publishing session (from 1); when it began.
    pub fn wait_published_count(&self, count: usize, deadline: Duration) -> Instant {
        self.events
            .wait(deadline, |list| {
                list.iter()
                    .filter(|(event, _)| *event == RelayEvent::Published)
                    .nth(count - 1)
                    .map(|(_, at)| *at)
            })
            .unwrap_or_else(|| {
                panic!(
                    "{} publishing sessions, waiting for {count}; {}",
                    self.published_count(),
                    self.name()
                )
            })
    }

    fn wait_event(&self, wanted: RelayEvent, deadline: Duration) -> Instant {
        self.events
            .wait(deadline, |list| {
                let (event, at) = list.last()?;
                (*event == wanted).then_some(*at)
            })
            .unwrap_or_else(|| panic!("{wanted:?}: not within {deadline:?} at {}", self.name()))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        let file = self.folder.join("logs/error.log");
        self.process.log() + &std::fs::read_to_string(file).unwrap_or_default()
    }

    /// SIGKILL: whatever was published is gone.
    pub fn kill(&self) {
        self.process.kill();
        self.events.cleared();
    }

    /// Back on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.process = self
            .server
            .launch(&self.folder, &self.events)
            .unwrap_or_else(|log| panic!("{} does not come back: {log}", self.name()));
    }

    pub fn pause(&self) {
        self.process.pause();
    }

    pub fn resume(&self) {
        self.process.resume();
    }
}

impl Server {
    /// Running and answering, or its log.
    fn launch(&self, folder: &Folder, events: &Arc<Events>) -> Result<Process, String> {
        match self {
            Server::Nginx(nginx) => nginx.launch(folder),
            Server::MediaMtx(mediamtx) => mediamtx.launch(folder, events),
        }
    }
}

fn mediamtx_program() -> Option<PathBuf> {
    let found = match std::env::var_os("MEDIAMTX") {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
        None => system_program("mediamtx"),
    };
    if found.is_none() {
        eprintln!(
            "!!! NOT RUN AGAINST MediaMTX: no such program. Set MEDIAMTX=/path/to/mediamtx or put \
             it on the PATH (https://github.com/bluenviron/mediamtx/releases)"
        );
    }
    found
}

/// Starts `command` and waits until `ready` says so, or its log where it ends before.
fn launch(
    command: Command,
    on_line: impl Fn(&str) + Send + Sync + 'static,
    log: &Path,
    ready: impl Fn(&Process) -> bool,
) -> Result<Process, String> {
    let process = Process::spawn(command, on_line);
    let all = || process.log() + &std::fs::read_to_string(log).unwrap_or_default();
    let started = try_wait_for(DEADLINE, || match process.exit_status() {
        Some(_) => Some(false),
        None => ready(&process).then_some(true),
    });
    match started {
        Some(true) => Ok(process),
        Some(false) => Err(all()),
        None => panic!("the media server does not answer: {}", all()),
    }
}

#[derive(Default)]
pub(crate) struct Events {
    list: Mutex<Vec<(RelayEvent, Instant)>>,
    /// The server's names for the connections that publish now.
    publishers: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Events {
    fn published(&self, connection: &str) {
        self.publishers.lock().unwrap().push(connection.to_owned());
        self.push(RelayEvent::Published);
    }

    /// `connection` has ended; it may be one that never published.
    fn ended(&self, connection: &str) {
        let mut publishers = self.publishers.lock().unwrap();
        let before = publishers.len();
        publishers.retain(|name| name != connection);
        let last_left = before > 0 && publishers.is_empty();
        drop(publishers);
        if last_left {
            self.push(RelayEvent::Unpublished);
        }
    }

    fn cleared(&self) {
        let publishers = std::mem::take(&mut *self.publishers.lock().unwrap());
        if !publishers.is_empty() {
            self.push(RelayEvent::Unpublished);
        }
    }

    fn push(&self, event: RelayEvent) {
        self.list.lock().unwrap().push((event, Instant::now()));
        self.changed.notify_all();
    }

    fn last(&self) -> Option<(RelayEvent, Instant)> {
        self.list.lock().unwrap().last().copied()
    }

    fn wait<T>(
        &self,
        deadline: Duration,
        look: impl Fn(&[(RelayEvent, Instant)]) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + deadline;
        let mut list = self.list.lock().unwrap();
        loop {
            if let Some(found) = look(&list) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            list = self.changed.wait_timeout(list, left).unwrap().0;
        }
    }
}

/// Free ports, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    let mut ports = [0; N];
    for index in 0..N {
        ports[index] = loop {
            let port = free_port();
            if !ports.contains(&port) {
                break port;
            }
        };
    }
    ports
}
