// SPDX-License-Identifier: MPL-2.0

//! The task that keeps a publishing session alive while one is wanted.

use std::{future::Future, io, sync::Arc, time::Duration};

use droidrelay_wire::{
    Backoff, PublishState, Secret,
    backoff::jitter,
    net::{tls, url::UserInfo},
    words::state::PublishPhase,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    bitrate::{BitrateControl, Range},
    meter::Meter,
    publisher::{Body, MediaPublisher},
    queue::{Frame, Next, Track},
    servers::Trial,
    socket::{Gauge, NoConnection, Stream, connect},
    uplink::Uplink,
};
use droidrelay_rtmp::{
    Event, Params, Progress, RefusalKind,
    auth::{Demand, Method},
    location::{CredentialMode, Location},
};

const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A server that refuses a password is asked less often from the beginning.
const REFUSED_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Without a network, the next try is told by that; this long is waited for it at most.
const UNREACHABLE: Duration = Duration::from_secs(5);
/// A try that somebody asks for, or a network that has changed, comes no sooner after the last one.
const PAUSE: Duration = Duration::from_millis(500);
/// While one try lasts, so many changes of the network are followed.
const NETWORKS: u32 = 5;
/// Publishing that lasted this long with frames makes the next wait the shortest again.
const STABLE: Duration = Duration::from_secs(1);
/// So many sessions in a row that the server accepts and ends earlier than that are a refusal:
/// some servers look at the stream key only then.
const SHORT_SESSIONS: u32 = 3;
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
/// Connections that a login takes at most: without it, with a user by the way that the server
/// used to ask for, with a user by the way that it asks for now, with the answer.
const LOGIN_CONNECTIONS: u32 = 4;

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

/// What the element does for the task.
pub trait Owner: Send + Sync + 'static {
    /// The settings for the next session, with the files that they name.
    fn target(&mut self) -> impl Future<Output = Result<Target, String>> + Send;
    /// The state changed. Tells nobody in this thread.
    fn state_changed(&self, publish: &PublishState);
    /// The bitrate changed, the state did not. Tells nobody in this thread.
    fn bitrate_changed(&self, publish: &PublishState);
    /// The bounds of the encoder's bitrate in the next session, and where it begins; None where
    /// the encoder is left alone.
    fn bitrates(&self) -> impl Future<Output = Option<Range>> + Send;
    /// The encoder is to make so many bits per second from now on.
    fn set_bitrate(&self, bitrate: u64);
}

/// Why a session ended.
enum End {
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

/// Runs until the publisher has ended; `network` notifies where that has changed for the better.
pub async fn run(publisher: Arc<MediaPublisher>, network: Arc<Notify>, owner: impl Owner) {
    let mut sessions = SessionLoop {
        publisher,
        network,
        version: None,
        owner,
        backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        refused_backoff: Backoff::new(REFUSED_BACKOFF.0, REFUSED_BACKOFF.1),
        attempt: 0,
        was_lost: false,
        short_sessions: 0,
        is_cautious: false,
        login_method: None,
    };
    loop {
        while !sessions.publisher.is_wanted() {
            sessions.reset();
            sessions.say(PublishPhase::Idle, None, None);
            if sessions.publisher.has_ended() {
                return;
            }
            sessions.publisher.changed.notified().await;
        }
        sessions.attempt += 1;
        sessions.say(PublishPhase::Connecting, None, None);
        let end = sessions.session().await;
        sessions.publisher.set_published(false);
        match end {
            End::Unwanted => sessions.reset(),
            // Each try takes its own.
            End::Renew | End::Otherwise | End::Login(_) | End::Redirected(_) => {}
            End::Failed(reason) | End::Unreached(reason) => {
                sessions.was_lost = true;
                let wait = sessions.backoff.next(jitter());
                sessions.wait(PublishPhase::Backoff, reason, wait).await;
            }
            End::Unreachable(reason) => {
                let wait = UNREACHABLE.mul_f64(1.0 - 0.2 * jitter());
                sessions.wait(PublishPhase::Backoff, reason, wait).await;
            }
            End::Refused(reason) | End::Denied(reason) => {
                sessions.was_lost = true;
                let wait = sessions.refused_backoff.next(jitter());
                sessions.wait(PublishPhase::Refused, reason, wait).await;
            }
        }
        sessions.publisher.count(|stats| {
            stats.bitrate = 0;
            stats.target_bitrate = None;
        });
    }
}

struct SessionLoop<O> {
    publisher: Arc<MediaPublisher>,
    network: Arc<Notify>,
    owner: O,
    backoff: Backoff,
    refused_backoff: Backoff,
    attempt: u32,
    /// The last try ended while it was wanted.
    was_lost: bool,
    /// Sessions in a row that the server accepted and ended at once.
    short_sessions: u32,
    /// The server failed in every manner: nothing is learnt of it, and it is not asked twice each
    /// time.
    is_cautious: bool,
    /// How the server asked for a login the last time.
    login_method: Option<Method>,
    /// A location, and what its server has called itself.
    version: Option<(String, String)>,
}

impl<O: Owner> SessionLoop<O> {
    fn reset(&mut self) {
        self.backoff.reset();
        self.refused_backoff.reset();
        self.attempt = 0;
        self.short_sessions = 0;
    }

    fn say(&self, state: PublishPhase, reason: Option<String>, next_try: Option<Duration>) {
        let publish = PublishState {
            state,
            reason,
            attempt: self.attempt,
            next_try: next_try.map(|wait| (wait.as_secs_f64() * 1000.0).round() / 1000.0),
            ..PublishState::default()
        };
        if self.publisher.set_publish_state(&publish) {
            self.owner.state_changed(&publish);
        }
    }

    /// Waits for the next try, as long as somebody wants one. It comes sooner where somebody asks
    /// for it, or the network has changed: that makes no password right.
    async fn wait(&self, state: PublishPhase, reason: String, wait: Duration) {
        self.publisher
            .count(|stats| stats.last_error = Some(reason.clone()));
        let follows_network = state == PublishPhase::Backoff;
        let began = Instant::now();
        let asked = self.publisher.retry.notified();
        let network = self.network.notified();
        tokio::pin!(asked, network);
        // From here on none is missed.
        asked.as_mut().enable();
        network.as_mut().enable();
        self.say(state, Some(reason), Some(wait));
        let hurried = async {
            tokio::select! {
                () = asked => {}
                () = network, if follows_network => {}
            }
            sleep_until(began + PAUSE).await;
        };
        let next = async {
            tokio::select! {
                () = hurried => {}
                () = sleep(wait) => {}
            }
        };
        unless_unwanted(&self.publisher, next).await;
    }

    /// One try: a session to its end, where the server says that it is to be.
    async fn session(&mut self) -> End {
        let target = match unless_unwanted(&self.publisher, self.owner.target()).await {
            Some(Ok(target)) => Arc::new(target),
            Some(Err(reason)) => return End::Failed(reason),
            None => return End::Unwanted,
        };
        let url = match self.session_with(&target).await {
            End::Redirected(url) => url,
            end => return end,
        };
        let other = match target.location.redirected(&url) {
            Ok(location) => Target {
                location,
                ..(*target).clone()
            },
            Err(reason) => return End::Refused(reason),
        };
        match self.session_with(&Arc::new(other)).await {
            End::Redirected(_) => End::Refused(format!(
                "{} redirects to a server that redirects again: set location to the one that takes the stream",
                target.location
            )),
            end => end,
        }
    }

    /// A session to its end, with a server that may take it in one manner only.
    async fn session_with(&mut self, target: &Arc<Target>) -> End {
        let mut trial = Trial::new(&target.location, self.is_cautious);
        let end = loop {
            let at_port = Target {
                location: target.location.at_port(trial.port()),
                ..(**target).clone()
            };
            match self.logged_in(&Arc::new(at_port), &mut trial).await {
                End::Otherwise => {}
                End::Unreached(reason) => {
                    if let Err(reasons) = trial.unreached(reason) {
                        break End::Failed(reasons);
                    }
                }
                end => break end,
            }
        };
        self.is_cautious |= trial.is_undecided();
        if !trial.is_accepted() {
            self.short_sessions = 0;
        }
        end
    }

    /// A session to its end, with the connections that a login takes.
    async fn logged_in(&mut self, target: &Arc<Target>, trial: &mut Trial) -> End {
        let location = &target.location;
        let Some((user, password)) = &target.login else {
            return match self.connection(target, None, true, trial).await {
                End::Login(demand) => End::Refused(format!(
                    "{location} asks for RTMP's own login (authmod={}): set credential-mode=rtmp, user and password-file",
                    demand.method().name()
                )),
                end => end,
            };
        };
        let known = self.login_method.take();
        let mut query = known.map(|method| Secret::new(method.introduce(user)));
        let mut answered = false;
        for _ in 0..LOGIN_CONNECTIONS {
            // Before the answer nothing but a demand is expected.
            let demand = match self.connection(target, query, answered, trial).await {
                End::Login(demand) if !answered => demand,
                End::Login(_) => break,
                end => return end,
            };
            self.login_method = Some(demand.method());
            query = Some(match demand {
                Demand::User(method) => Secret::new(method.introduce(user)),
                Demand::Answer(challenge) => {
                    answered = true;
                    let nonce = fastrand::u32(..);
                    challenge.answer(&location.app, user, password, nonce)
                }
            });
        }
        End::Refused(format!(
            "{location} asks for the login again and again: check user and password (or password-file)"
        ))
    }

    /// From connecting to the connection's end.
    async fn connection(
        &mut self,
        target: &Arc<Target>,
        login: Option<Secret>,
        may_pipeline: bool,
        trial: &mut Trial,
    ) -> End {
        let manner = trial.manner();
        let Some(bitrates) = unless_unwanted(&self.publisher, self.owner.bitrates()).await else {
            return End::Unwanted;
        };
        let control = bitrates.map(BitrateControl::new);
        self.publisher.count(|stats| {
            stats.target_bitrate = control.as_ref().map(BitrateControl::target);
        });
        let location = &target.location;
        let connecting = connect_again(target, &self.network);
        let (stream, gauge) = match unless_unwanted(&self.publisher, connecting).await {
            None => return End::Unwanted,
            Some(Err(NoConnection::Unreachable(reason))) => return End::Unreachable(reason),
            Some(Err(NoConnection::Failed(reason))) => return End::Unreached(reason),
            Some(Ok(connected)) => connected,
        };
        let name = location.to_string();
        let version = self.version.take().filter(|(of, _)| *of == name);
        self.publisher.restart_queue();
        // Filler for the handshake, which asks for no more than variety (section 5.2.3).
        let noise = [(); 64].map(|()| fastrand::u8(..));
        let names = location.names(&target.credentials, target.credential_mode);
        let has_list = manner.four_cc_list && self.publisher.is_hevc();
        let mut connection = Connection {
            publisher: self.publisher.clone(),
            rtmp: droidrelay_rtmp::Publisher::new(
                Params {
                    tc_url: location.tc_url(&names),
                    app: names.app,
                    stream: names.stream,
                    login,
                    pipelined: manner.pipelined && may_pipeline,
                    hevc: has_list,
                    pauses: !manner.pipelined,
                },
                &noise,
            ),
            target: target.clone(),
            known_version: version.map(|(_, version)| version),
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
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let end = connection.run(&mut reader, &mut writer, self, trial).await;
        self.publisher.queue(|queue| queue.set_ahead([None; 2]));
        self.version = connection.version().map(|version| (name, version));
        self.publisher.set_in_flight(false);
        match end {
            End::Unwanted | End::Renew => {
                connection.goodbye(&mut writer).await;
                end
            }
            End::Failed(_) | End::Refused(_) => match connection.published_at {
                Some(at) if at.elapsed() < STABLE => self.ended_at_once(location, end),
                Some(_) => end,
                None if !connection.rtmp.has_asked() => match end {
                    End::Failed(reason) => End::Unreached(reason),
                    end => end,
                },
                None => {
                    let at_connect = connection.rtmp.progress() == Progress::Connect;
                    match trial.goes_on(has_list && at_connect) {
                        true => End::Otherwise,
                        false => end,
                    }
                }
            },
            end => end,
        }
    }

    /// The server has ended a session as soon as it had accepted it.
    fn ended_at_once(&mut self, location: &Location, end: End) -> End {
        self.short_sessions += 1;
        match end {
            End::Failed(reason) if self.short_sessions >= SHORT_SESSIONS => End::Refused(format!(
                "{location} accepts the publisher and ends the session at once, {} times in a row: is the stream name (the stream key) right, and the format one that it takes? ({reason})",
                self.short_sessions
            )),
            end => end,
        }
    }

    fn published(&mut self, trial: &mut Trial) {
        trial.accepted();
        self.publisher.set_published(true);
        self.publisher.count(|stats| {
            stats.sessions += 1;
            stats.reconnects += u64::from(self.was_lost);
        });
        self.was_lost = false;
        self.is_cautious = false;
        self.say(PublishPhase::Publishing, None, None);
    }

    fn measured(&self, bitrate: u64, target: Option<u64>) {
        self.publisher.count(|stats| stats.bitrate = bitrate);
        let publish = PublishState {
            bitrate: Some(bitrate),
            target_bitrate: target,
            ..self.publisher.publish_state()
        };
        if self.publisher.set_publish_state(&publish) {
            self.owner.bitrate_changed(&publish);
        }
    }
}

/// Whether a server of this version may hold a stream back until it has seen two seconds of it.
/// Those that call themselves a Flash Media Server (nginx-rtmp, SRS, lal, node-media-server) do not;
/// MediaMTX, which does, calls itself otherwise.
fn looks_at_the_beginning(version: &str) -> bool {
    !version.starts_with("FMS/")
}

/// Connects; anew where the network changes while nobody answers: what was sent is lost.
async fn connect_again(
    target: &Target,
    network: &Notify,
) -> Result<(Box<dyn Stream>, Gauge), NoConnection> {
    for _ in 0..NETWORKS {
        let connecting = connect(&target.location, target.tls.as_ref(), target.timeout);
        let changed = async {
            sleep(PAUSE).await;
            network.notified().await;
        };
        tokio::select! {
            biased;
            connected = connecting => return connected,
            () = changed => {}
        }
    }
    connect(&target.location, target.tls.as_ref(), target.timeout).await
}

/// The future's output, or None as soon as nobody wants a session any more.
async fn unless_unwanted<F: Future>(publisher: &MediaPublisher, future: F) -> Option<F::Output> {
    tokio::pin!(future);
    while publisher.is_wanted() {
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            () = publisher.changed.notified() => {}
        }
    }
    None
}

/// A session on an open connection.
struct Connection {
    publisher: Arc<MediaPublisher>,
    rtmp: droidrelay_rtmp::Publisher,
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
    published_at: Option<Instant>,
    /// Handed to the socket.
    audio_bytes: u64,
}

impl Connection {
    async fn run<O: Owner>(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        sessions: &mut SessionLoop<O>,
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
            self.watch(&sessions.owner);
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
                                sessions.published(trial);
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
                                    sessions.measured(bitrate, target);
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
                sessions.reset();
                // This one.
                sessions.attempt = 1;
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
    fn version(&self) -> Option<String> {
        let version = self.rtmp.server_version().map(str::to_owned);
        version.or_else(|| self.known_version.clone())
    }

    /// Looks at what has arrived, for what may wait and for what the encoder is to make.
    fn watch(&mut self, owner: &impl Owner) {
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
            owner.set_bitrate(target);
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
    async fn goodbye(&mut self, writer: &mut (impl AsyncWrite + Unpin)) {
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
