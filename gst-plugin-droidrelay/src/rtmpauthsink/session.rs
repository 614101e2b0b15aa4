// SPDX-License-Identifier: MPL-2.0

//! The task that keeps a publishing session alive while one is wanted.

use std::{future::Future, sync::Arc, time::Duration};

use droidrelay_rtmp::{
    Params, Progress,
    auth::{Demand, Method},
    location::Location,
};
use droidrelay_wire::{Backoff, PublishState, Secret, backoff::jitter, words::state::PublishPhase};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

pub use super::connection::Target;
use super::{
    bitrate::{BitrateControl, Range},
    connection::{Connection, End, Keeper, STABLE},
    publisher::MediaPublisher,
    servers::Trial,
    socket::{Gauge, NoConnection, Stream, connect},
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
/// So many sessions in a row that the server accepts and ends earlier than that are a refusal:
/// some servers look at the stream key only then.
const SHORT_SESSIONS: u32 = 3;
/// Connections that a login takes at most: without it, with a user by the way that the server
/// used to ask for, with a user by the way that it asks for now, with the answer.
const LOGIN_CONNECTIONS: u32 = 4;

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
        let rtmp = droidrelay_rtmp::Publisher::new(
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
        );
        let mut connection = Connection::new(
            self.publisher.clone(),
            rtmp,
            target.clone(),
            version.map(|(_, version)| version),
            gauge,
            control,
        );
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
}

impl<O: Owner> Keeper for SessionLoop<O> {
    fn accepted(&mut self, trial: &mut Trial) {
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

    fn lasts(&mut self) {
        self.reset();
        // This one.
        self.attempt = 1;
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

    fn set_bitrate(&self, bitrate: u64) {
        self.owner.set_bitrate(bitrate);
    }
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
