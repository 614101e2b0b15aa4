// SPDX-License-Identifier: MPL-2.0

//! A publishing session on one connection, from the handshake to its end.

use std::{io, sync::Arc, time::Duration};

use droidrelay_rtmp::{
    Event, Progress, RefusalKind,
    auth::Demand,
    location::{CredentialMode, Location},
};
use droidrelay_wire::{
    Secret,
    net::{tls, url::UserInfo},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use super::{
    bitrate::BitrateControl,
    meter::Meter,
    publisher::{Body, MediaPublisher},
    queue::{Frame, Next, Track},
    servers::Trial,
    socket::Gauge,
    uplink::Uplink,
};

/// Publishing that lasted this long with frames makes the next wait the shortest again.
pub const STABLE: Duration = Duration::from_secs(1);
/// Between C2 and `connect`, for servers that lose what they read together with C2.
const AFTER_HANDSHAKE: Duration = Duration::from_millis(250);
/// Time for a server's decision about the publisher, where `timeout` is shorter: some servers delay
/// the answer to wrong credentials on purpose (MediaMTX by up to 4 s), and it would never come.
const DECISION: Duration = Duration::from_secs(5);
/// Time for the last commands of a session that ends.
const GOODBYE: Duration = Duration::from_millis(50);
/// How often to look whether the last of a stream that ends has arrived.
const ARRIVAL: Duration = Duration::from_millis(2);
/// What is sent ahead of media time ends a server's analysis of the first two seconds.
const START_OFFSET_MS: i64 = 2000;
/// One session's settings; made anew for each, so that a rotated secret needs no restart.
#[derive(Clone)]
pub struct Target {
    pub location: Location,
    pub credentials: UserInfo,
    /// How they get to the server.
    pub credential_mode: CredentialMode,
    /// User and password, for servers that want them at connect, and not with the stream name.
    pub login: Option<(String, Secret)>,
    /// Set for `rtmps`.
    pub tls: Option<tls::Client>,
    pub timeout: Duration,
    pub start_offset: bool,
}

/// Why a session ended.
pub enum End {
    /// Nobody wants it any more.
    Unwanted,
    /// Other headers are needed: at once again.
    Renew,
    /// The server may not have understood: at once again, in another manner.
    Otherwise,
    /// The server wants a login: at once again, with it.
    Login(Demand),
    /// Another server is to be published to: at once.
    Redirected(String),
    /// Nothing that speaks RTMP was reached.
    Unreached(String),
    Failed(String),
    /// There is no network to try it on.
    Unreachable(String),
    Refused(String),
    /// The server has understood and says no: another manner changes nothing.
    Denied(String),
}

/// What a session tells the one who keeps it.
pub trait Keeper {
    /// The server has accepted it.
    fn accepted(&mut self, trial: &mut Trial);
    /// It has lasted for a moment, with media.
    fn lasts(&mut self);
    /// The server takes so many bits per second, and the encoder is told to make so many.
    fn measured(&self, bitrate: u64, target: Option<u64>);
    /// The encoder is to make so many bits per second from now on.
    fn set_bitrate(&self, bitrate: u64);
}

/// A session on an open connection.
pub struct Connection {
    publisher: Arc<MediaPublisher>,
    pub rtmp: droidrelay_rtmp::Publisher,
    target: Arc<Target>,
    /// What the server has called itself in the session before.
    known_version: Option<String>,
    /// Time of the first frame, in nanoseconds of running time.
    base: Option<i64>,
    /// Added to each frame's time.
    offset_ms: i64,
    /// Time of each track's last frame, in the session's milliseconds.
    last: [i64; 2],
    /// The headers were sent.
    is_open: bool,
    /// All media of this session was sent, what comes is of another one.
    is_over: bool,
    gauge: Gauge,
    uplink: Uplink,
    control: Option<BitrateControl>,
    begin: Instant,
    /// The server has accepted the stream.
    pub published_at: Option<Instant>,
    /// Handed to the socket.
    audio_bytes: u64,
}

impl Connection {
    pub fn new(
        publisher: Arc<MediaPublisher>,
        rtmp: droidrelay_rtmp::Publisher,
        target: Arc<Target>,
        known_version: Option<String>,
        gauge: Gauge,
        control: Option<BitrateControl>,
    ) -> Self {
        Connection {
            publisher,
            rtmp,
            target,
            known_version,
            base: None,
            offset_ms: 0,
            last: [0; 2],
            is_open: false,
            is_over: false,
            gauge,
            uplink: Uplink::default(),
            control,
            begin: Instant::now(),
            published_at: None,
            audio_bytes: 0,
        }
    }

    pub async fn run(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        keeper: &mut impl Keeper,
        trial: &mut Trial,
    ) -> End {
        let mut input = vec![0; 8 * 1024];
        let mut needs_flush = false;
        // When the server last came a step further, until it has accepted; then when the socket took
        // something. What trickles in between is neither.
        let mut progress = Instant::now();
        let mut connect_at = None;
        let mut is_stable = false;
        let begin = self.begin;
        let mut meter = Meter::default();
        loop {
            if !self.publisher.is_wanted() {
                return End::Unwanted;
            }
            if self.rtmp.awaits_connect() && self.rtmp.output().is_empty() && !needs_flush {
                let at = *connect_at.get_or_insert_with(|| Instant::now() + AFTER_HANDSHAKE);
                if Instant::now() >= at {
                    self.rtmp.connect();
                }
            }
            // In one go: what TLS still holds could not be dropped either.
            if !needs_flush {
                self.feed();
            }
            self.watch(keeper);
            let writing = !self.rtmp.output().is_empty();
            if self.is_over && !writing && !needs_flush {
                return End::Renew;
            }
            let arrives =
                writing || needs_flush || self.gauge.acknowledged() < self.gauge.written();
            let is_awaited = self.is_open && self.publisher.set_in_flight(arrives);
            let waiting = self.published_at.is_none() || writing || needs_flush;
            let stalled = progress + self.patience();
            let wake = [
                waiting.then_some(stalled),
                connect_at.filter(|_| self.rtmp.awaits_connect()),
                self.publisher.idle_deadline().map(Instant::from_std),
                self.publisher
                    .opening_deadline()
                    .filter(|_| !self.is_open)
                    .map(Instant::from_std)
                    .filter(|at| *at > Instant::now()),
                is_awaited.then(|| Instant::now() + ARRIVAL),
            ]
            .into_iter()
            .flatten()
            .min();
            tokio::select! {
                read = reader.read(&mut input) => {
                    match read {
                        Ok(0) => return self.closed(None),
                        Ok(n) => {
                            let step = self.rtmp.progress();
                            if let Err(err) = self.rtmp.input(&input[..n]) {
                                return End::Failed(format!("{}: {err}", self.target.location));
                            }
                            if self.rtmp.progress() != step {
                                progress = Instant::now();
                            }
                        }
                        Err(err) => return self.closed(Some(&err)),
                    }
                    let acknowledged = self.rtmp.acknowledged_bytes();
                    self.publisher.count(|stats| {
                        stats.acknowledged = acknowledged.unwrap_or_default();
                    });
                    while let Some(event) = self.rtmp.next_event() {
                        match event {
                            Event::Published => {
                                self.published_at = Some(Instant::now());
                                meter = Meter::new(begin.elapsed());
                                keeper.accepted(trial);
                            }
                            Event::StreamIdMismatch => {
                                return End::Failed(format!(
                                    "{}: the first stream's id is not 1",
                                    self.target.location
                                ));
                            }
                            Event::LoginDemanded(demand) => return End::Login(demand),
                            Event::Redirected(url) => return End::Redirected(url),
                            Event::Refused { code, description, kind } => {
                                return self.refusal(kind, &code, &description);
                            }
                        }
                    }
                }
                sent = send(writer, self.rtmp.output()), if writing || needs_flush => {
                    if self.published_at.is_some() {
                        progress = Instant::now();
                    }
                    match sent {
                        Ok(0) if writing => return self.closed(None),
                        Ok(n) => {
                            needs_flush = writing;
                            self.rtmp.consume(n);
                            if !needs_flush && self.rtmp.output().is_empty() {
                                self.uplink.written(self.gauge.written());
                            }
                            self.publisher.count(|stats| stats.bytes += n as u64);
                            if self.published_at.is_some()
                                && let Some(bitrate) = meter.sent(n, begin.elapsed()) {
                                    let target = self.control.as_ref().map(BitrateControl::target);
                                    keeper.measured(bitrate, target);
                                }
                        }
                        Err(err) => return self.closed(Some(&err)),
                    }
                }
                () = self.publisher.changed.notified() => {
                    if !waiting {
                        // What comes now has waited for nothing yet.
                        progress = Instant::now();
                    }
                }
                () = sleep_until(wake.unwrap_or(progress)), if wake.is_some() => {
                    if waiting && Instant::now() >= stalled {
                        return End::Failed(format!(
                            "{} has been silent for {} s{}",
                            self.target.location,
                            self.patience().as_secs_f64(),
                            match self.rtmp.progress() {
                                Progress::Publish => " instead of accepting the publisher",
                                _ => "",
                            }
                        ));
                    }
                }
            }
            let lasts = self.published_at.is_some_and(|at| at.elapsed() >= STABLE);
            if lasts && self.base.is_some() && !is_stable {
                is_stable = true;
                keeper.lasts();
            }
        }
    }

    /// Hands waiting media to the protocol, one message at a time: what is behind it can
    /// still be dropped.
    fn feed(&mut self) {
        if !self.rtmp.ready_for_media() || self.is_over {
            return;
        }
        if !self.is_open {
            let Some(headers) = self.publisher.open() else {
                return;
            };
            self.rtmp.metadata(&headers.metadata);
            if let Some(video) = &headers.video {
                self.rtmp.video(0, &[video]);
            }
            if let Some(audio) = &headers.audio {
                self.rtmp.audio(0, &[audio]);
            }
            // A server that stops looking at the first frame would not see a track that has no
            // header and comes later.
            let looks = self
                .version()
                .is_none_or(|version| looks_at_the_beginning(&version));
            if self.target.start_offset && headers.announce_all() && looks {
                self.offset_ms = START_OFFSET_MS;
            }
            self.is_open = true;
            // The first frame leaves in the same write.
        } else if !self.rtmp.output().is_empty() {
            return;
        }
        match self.publisher.next() {
            (Next::Frame(frame), behind) => self.send(&frame, behind),
            (Next::Renew, _) => self.is_over = true,
            (Next::Nothing, _) => {}
        }
    }

    /// What the server calls itself, as far as that is known.
    pub fn version(&self) -> Option<String> {
        let version = self.rtmp.server_version().map(str::to_owned);
        version.or_else(|| self.known_version.clone())
    }

    /// Looks at what has arrived, for what may wait and for what the encoder is to make.
    fn watch(&mut self, keeper: &impl Keeper) {
        let now = self.begin.elapsed();
        let acknowledged = self.gauge.acknowledged();
        self.uplink.acknowledged(acknowledged, now);
        let (queued, in_history) = self.publisher.queue(|queue| {
            let seen = (queue.queued(), queue.in_history());
            queue.set_ahead(self.uplink.waits_from());
            seen
        });
        let Some(control) = self
            .control
            .as_mut()
            .filter(|_| self.published_at.is_some() && !in_history)
        else {
            return;
        };
        let queued = Duration::from_nanos(queued.try_into().unwrap_or_default());
        let wait = self.uplink.wait(queued, now);
        let audio = self.audio_bytes as f64 * 8.0 / now.as_secs_f64();
        if control.update(now, wait, acknowledged, audio as u64) {
            let target = control.target();
            self.publisher
                .count(|stats| stats.target_bitrate = Some(target));
            keeper.set_bitrate(target);
        }
    }

    fn send(&mut self, frame: &Frame<Body>, behind: Duration) {
        let now = self.begin.elapsed();
        self.uplink.handed(frame.track, frame.time, behind, now);
        let base = *self.base.get_or_insert(frame.time);
        let time = frame.time.saturating_sub(base) / 1_000_000;
        // Frames that are reordered and have no time of decoding would go back.
        let last = &mut self.last[frame.track as usize];
        *last = time.saturating_add(self.offset_ms).max(*last);
        // RTMP's clock wraps at 32 bits (section 5.3.1).
        let time = *last as u32;
        let parts = frame.body.parts();
        match frame.track {
            Track::Video => self.rtmp.video(time, &parts),
            Track::Audio => {
                self.audio_bytes +=
                    frame.body.parts().map(<[u8]>::len).iter().sum::<usize>() as u64;
                self.rtmp.audio(time, &parts);
            }
        }
        self.publisher.count(|stats| stats.frames += 1);
    }

    /// How long the server may be silent.
    fn patience(&self) -> Duration {
        match self.rtmp.progress() {
            Progress::Publish => self.target.timeout.max(DECISION),
            _ => self.target.timeout,
        }
    }

    /// The server closed the connection; what that means depends on how far it had come.
    fn closed(&self, error: Option<&io::Error>) -> End {
        let location = &self.target.location;
        match (self.rtmp.progress(), error) {
            (Progress::Publish, _) => End::Refused(format!(
                "{location} closed the connection instead of accepting the publisher: user, password or stream name is wrong, or the path is taken"
            )),
            (Progress::Published, None) => End::Failed(format!("{location} closed the connection")),
            (Progress::Published, Some(err)) => {
                End::Failed(format!("the connection to {location} was lost: {err}"))
            }
            (_, None) => End::Failed(format!(
                "{location} closed the connection before it accepted the publisher"
            )),
            (_, Some(err)) => End::Failed(format!("{location}: {err}")),
        }
    }

    fn refusal(&self, kind: RefusalKind, code: &str, description: &str) -> End {
        let location = &self.target.location;
        let answer = format!("({code}: {description})");
        match kind {
            RefusalKind::Credentials => End::Denied(format!(
                "{location} refuses the credentials: check user and password (or password-file) {answer}"
            )),
            RefusalKind::Application => End::Denied(format!(
                "{location} refuses the connection: check the location's application ({}), user and password (or password-file) {answer}",
                self.target.location.app
            )),
            RefusalKind::PathTaken => End::Denied(format!(
                "{location} has another publisher: stop that one or choose another stream name {answer}"
            )),
            // Perhaps of what it has not understood.
            RefusalKind::Other => {
                End::Refused(format!("{location} refuses the publisher {answer}"))
            }
        }
    }

    /// Tells the server that this is the end, as far as it listens.
    pub async fn goodbye(&mut self, writer: &mut (impl AsyncWrite + Unpin)) {
        self.rtmp.unpublish();
        // However far it gets: closing the connection says the same.
        let _ = timeout(GOODBYE, async {
            writer.write_all(self.rtmp.output()).await?;
            writer.shutdown().await
        })
        .await;
    }
}

/// Writes some of `output`, or flushes where there is none. Safe to drop half-way.
async fn send(writer: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> io::Result<usize> {
    if output.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    writer.write(output).await
}

/// Whether a server of this version may hold a stream back until it has seen two seconds of it.
/// Those that call themselves a Flash Media Server (nginx-rtmp, SRS, lal, node-media-server) do not;
/// MediaMTX, which does, calls itself otherwise.
fn looks_at_the_beginning(version: &str) -> bool {
    !version.starts_with("FMS/")
}
