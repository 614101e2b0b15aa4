// SPDX-License-Identifier: MPL-2.0

//! For MediaMTX: it asks who may publish and look, its hooks tell who waits, comes and leaves.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    body::Bytes,
    extract::{ConnectInfo, State, rejection::BytesRejection},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
};
use droidrelay_wire::{Command, Secret, StreamState, net::url::percent_decode};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::{
    app::{Bridge, refuse},
    auth::{Credentials, Denial, Right, Role, User},
    client::{Client, Url},
    failure::Failure,
    fleet::{Link, View},
    robots::Robot,
    share,
    views::Admitted,
};

/// A robot that opens by itself may come to the media server before its state comes here. The
/// server asks one thing at a time, so nobody else is answered meanwhile.
const STATE_IS_LATE: Duration = Duration::from_millis(300);
/// From the question whether he may look until a viewer gets the stream.
const JOINING: Duration = Duration::from_millis(200);
/// How long a demand holds where the configuration does not say.
pub const LEASE: Duration = Duration::from_secs(20);
/// For an answer of MediaMTX's API.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// What the configuration says of MediaMTX.
#[derive(Clone)]
pub struct Settings {
    /// A viewer who is let in starts the robot.
    pub read_starts: bool,
    /// How long a demand holds.
    pub lease: Duration,
    /// Who is asked whether somebody looks, where no hook tells it.
    pub api: Option<(Client, Url)>,
}

/// Demands so far; by robot and by who told them.
#[derive(Default)]
pub struct Demands(Mutex<HashMap<(String, String), Demand>>);

#[derive(Default)]
struct Demand {
    /// The clock of the times below.
    clock: String,
    /// When the newest hook was started that told of demand, and of none.
    wanted_at: f64,
    unwanted_at: f64,
    /// A viewer asked, or was seen to look; while the media server's API is followed.
    seen: Option<Instant>,
}

impl Demands {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Demand>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what a hook tells is news: hooks are processes that may overtake each other, and
    /// of two that were started at the same time the demand counts.
    fn is_news(&self, robot: &str, by: &str, is_wanted: bool, at: Option<(&str, f64)>) -> bool {
        let mut demands = self.lock();
        let demand = demands
            .entry((robot.to_owned(), by.to_owned()))
            .or_default();
        let Some((clock, at)) = at else { return true };
        if demand.clock != clock {
            *demand = Demand {
                clock: clock.to_owned(),
                seen: demand.seen,
                ..Demand::default()
            };
        }
        if is_wanted {
            let is_news = at >= demand.unwanted_at;
            demand.wanted_at = demand.wanted_at.max(at);
            is_news
        } else {
            let is_news = at > demand.wanted_at;
            demand.unwanted_at = demand.unwanted_at.max(at);
            is_news
        }
    }

    /// Notes that somebody looks or wants to; returns whether nobody follows this robot yet.
    fn seen(&self, robot: &str, by: &str) -> bool {
        let mut demands = self.lock();
        let demand = demands
            .entry((robot.to_owned(), by.to_owned()))
            .or_default();
        demand.seen.replace(Instant::now()).is_none()
    }

    /// Whether somebody was seen in the time that a lease lasts; if not, it is followed no more.
    fn is_seen(&self, robot: &str, by: &str, lease: Duration) -> bool {
        let mut demands = self.lock();
        let Some(demand) = demands.get_mut(&(robot.to_owned(), by.to_owned())) else {
            return false;
        };
        demand.seen = demand.seen.filter(|seen| seen.elapsed() < lease);
        demand.seen.is_some()
    }
}

/// MediaMTX's question, as of its version 1.20.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Question {
    ip: String,
    user: String,
    #[serde(deserialize_with = "secret")]
    password: Secret,
    #[serde(deserialize_with = "secret")]
    token: Secret,
    action: String,
    path: String,
    protocol: String,
    id: Option<String>,
    #[serde(deserialize_with = "secret")]
    query: Secret,
}

impl Default for Question {
    fn default() -> Self {
        let nothing = || Secret::new("");
        Question {
            ip: String::new(),
            user: String::new(),
            password: nothing(),
            token: nothing(),
            action: String::new(),
            path: String::new(),
            protocol: String::new(),
            id: None,
            query: nothing(),
        }
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

impl Question {
    /// The decoded value of the query's parameter, if it has exactly one of this name.
    fn parameter(&self, name: &str) -> Option<Secret> {
        let pairs = self.query.expose().split('&');
        let mut values = pairs.filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        });
        let (value, None) = (values.next()?, values.next()) else {
            return None;
        };
        percent_decode(value).ok().map(Secret::new)
    }

    /// MediaMTX repeats the password as the token; alone it is one.
    fn credentials(&self) -> Option<Credentials> {
        if !self.user.is_empty() {
            return Some(Credentials::Basic(self.user.clone(), self.password.clone()));
        }
        let token = [&self.token, &self.password]
            .into_iter()
            .find(|token| !token.is_empty())
            .cloned()
            .or_else(|| self.parameter("token"))?;
        // HLS and WebRTC take "user:password" in place of a token.
        Some(match token.expose().split_once(':') {
            Some((user, password)) => Credentials::Basic(user.to_owned(), password.into()),
            None => Credentials::Bearer(token),
        })
    }
}

/// Who is let in.
enum Who {
    User(Arc<User>),
    Link(share::Link),
}

impl Who {
    fn name(&self) -> String {
        match self {
            Who::User(user) => user.name.clone(),
            Who::Link(link) => format!("share {}", link.id),
        }
    }
}

/// A body of JSON, or what is wrong with it.
fn json<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    let body = body.map_err(|err| Failure::new(err.status(), err.body_text()))?;
    serde_json::from_slice(&body)
        // Where, and not what: it may be a password.
        .map_err(|err| {
            let (line, column) = (err.line(), err.column());
            Failure::bad_request(format!(
                "the body is not the JSON that is expected here (line {line}, column {column})"
            ))
        })
}

fn check_caller(user: &User) -> Result<(), Failure> {
    if matches!(user.role, Role::MediaMtx | Role::Admin) {
        return Ok(());
    }
    Err(Failure::forbidden(format!(
        "user {:?} is not the media server: that has role = \"mediamtx\"",
        user.name
    )))
}

/// May they?
pub async fn auth(
    State(bridge): State<Arc<Bridge>>,
    Extension(caller): Extension<Arc<User>>,
    ConnectInfo(peer): ConnectInfo<std::net::SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    check_caller(&caller)?;
    let question: Question = json(body)?;
    let ip = question.ip.parse().unwrap_or(peer.ip());
    let what = match question.action.as_str() {
        "publish" => "publish",
        "read" => "read",
        "playback" => "playback",
        "api" | "metrics" | "pprof" => "operate",
        other => {
            return Err(Failure::bad_request(format!(
                "the action {other:?} is not known: publish, read, playback, api, metrics or pprof"
            )));
        }
    };
    let answer = answer(&bridge, &question, what, ip).await;
    let (result, response) = match answer {
        Ok(who) => {
            if what == "read" {
                admitted(&bridge, &caller, &question, &who, ip);
            }
            debug!(what, path = question.path, by = who.name(), "let in");
            ("allowed", Ok(StatusCode::NO_CONTENT.into_response()))
        }
        Err(Refused::Denial(denial)) => {
            bridge.metrics.refused(denial);
            if denial != Denial::Missing {
                warn!(%ip, what, path = question.path, "refused: {denial:?}");
            }
            ("refused", Ok(refuse(denial, true)))
        }
        Err(Refused::Right(reason)) => {
            warn!(%ip, what, path = question.path, "refused: {reason}");
            ("refused", Err(Failure::forbidden(reason)))
        }
    };
    bridge.metrics.mediamtx(what, result);
    response
}

enum Refused {
    Denial(Denial),
    Right(String),
}

async fn answer(
    bridge: &Bridge,
    question: &Question,
    what: &str,
    ip: IpAddr,
) -> Result<Who, Refused> {
    let robot = bridge.fleet.directory.by_path(&question.path);
    if let (true, Some(token)) = (what == "read", question.parameter("share")) {
        bridge.auth.admit(ip).map_err(Refused::Denial)?;
        // What was revoked is still on its way.
        bridge.fleet.settled().await;
        let link = bridge
            .fleet
            .shares
            .check(token.expose(), bridge.fleet.now().wall);
        let Some(link) = link.filter(|_| bridge.fleet.has_been_up()) else {
            bridge.auth.charge(ip);
            return Err(Refused::Denial(Denial::Wrong));
        };
        return match robot {
            Some(robot) if robot.name == link.robot => Ok(Who::Link(link)),
            _ => Err(Refused::Right("this link is for another robot".into())),
        };
    }
    let user = match question.credentials() {
        _ if bridge.is_open() => bridge.auth.check(None, ip).await,
        None => Err(Denial::Missing),
        credentials => bridge.auth.check_credentials(credentials, ip).await,
    };
    let user = user.map_err(Refused::Denial)?;
    if what == "operate" {
        return match user.role {
            // What is in its own configuration, it may do to itself.
            Role::Admin | Role::MediaMtx => Ok(Who::User(user)),
            _ => Err(Refused::Right(format!("user {:?} is no admin", user.name))),
        };
    }
    let robot = robot.ok_or_else(|| Refused::Right("no robot has this path".into()))?;
    let right = match what {
        "publish" => Right::Be,
        _ => Right::Look,
    };
    user.check(right, &robot.name)
        .map_err(|failure| Refused::Right(failure.reason))?;
    if what == "publish" && !is_wanted(bridge, &robot).await {
        return Err(Refused::Right(format!(
            "nobody wants robot {:?} to stream: it may publish while a lease lives",
            robot.name
        )));
    }
    Ok(Who::User(user))
}

/// Somebody holds a lease, by what was asked on the broker or by the robot's own word.
async fn is_wanted(bridge: &Bridge, robot: &Robot) -> bool {
    let fleet = &bridge.fleet;
    // Without the broker nobody knows; a robot that loses its stream then gets it back.
    if !matches!(fleet.link(), Link::Up(_)) || fleet.wanted.is_open(&robot.name) {
        return true;
    }
    let is_open = |view: &View| {
        let open = |state: &StreamState| *state != StreamState::Idle;
        view.state.as_ref().is_some_and(|state| open(&state.state))
    };
    let mut watcher = fleet.watch(&robot.name);
    let opens = watcher.receiver.wait_for(is_open);
    let has_opened = matches!(timeout(STATE_IS_LATE, opens).await, Ok(Ok(_)));
    has_opened
}

/// Somebody is let in to look.
fn admitted(bridge: &Arc<Bridge>, caller: &User, question: &Question, who: &Who, ip: IpAddr) {
    let Some(robot) = bridge.fleet.directory.by_path(&question.path) else {
        return;
    };
    // Without an id it is the look at a page, which asks again for the stream itself.
    if question.id.is_some() || question.protocol == "hls" {
        bridge.views.admit(Admitted {
            robot: robot.name.clone(),
            by: who.name(),
            protocol: question.protocol.clone(),
            address: ip.to_string(),
            id: question.id.clone(),
        });
    }
    let Some(settings) = bridge
        .mediamtx
        .clone()
        .filter(|settings| settings.read_starts)
    else {
        return;
    };
    // The server waits for our answer, and everybody else for the server.
    let (owner, by) = (bridge, caller.name.clone());
    let bridge = owner.clone();
    owner.spawn(async move {
        let is_live = bridge.fleet.view(&robot.name).is_live();
        let is_new = bridge.demands.seen(&robot.name, &by);
        demand(&bridge, &robot, &by, settings.lease).await;
        if is_live {
            sleep(JOINING).await;
            keyframe(&bridge, &robot).await;
        }
        if is_new {
            follow(&bridge, &robot, &by, &settings).await;
        }
    });
}

/// Renews the demand while MediaMTX has readers of this robot, and ends with the last of them.
async fn follow(bridge: &Bridge, robot: &Robot, by: &str, settings: &Settings) {
    let mut closing = bridge.closing();
    while bridge.demands.is_seen(&robot.name, by, settings.lease) {
        tokio::select! {
            () = sleep(settings.lease / 3) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        let Some((client, api)) = &settings.api else {
            continue;
        };
        match has_readers(client, api, &robot.path).await {
            Ok(true) => {
                bridge.demands.seen(&robot.name, by);
                demand(bridge, robot, by, settings.lease).await;
            }
            Ok(false) => {}
            Err(err) => warn!(robot = robot.name, "MediaMTX does not say who looks: {err}"),
        }
    }
}

async fn has_readers(client: &Client, api: &Url, path: &str) -> Result<bool, String> {
    #[derive(Deserialize)]
    struct Path {
        readers: Vec<serde::de::IgnoredAny>,
    }
    let url = api.join(&format!("/v3/paths/get/{path}"))?;
    let (status, body) = client
        .send(Method::GET, &url, HeaderMap::new(), "", API_TIMEOUT)
        .await?;
    match status {
        StatusCode::OK => serde_json::from_slice(&body)
            .map(|path: Path| !path.readers.is_empty())
            .map_err(|err| err.to_string()),
        StatusCode::NOT_FOUND => Ok(false),
        status => Err(format!("{url}: {status}")),
    }
}

/// What a hook tells.
#[derive(Deserialize)]
struct Told {
    event: Happening,
    path: String,
    at: Option<f64>,
    #[serde(default)]
    clock: String,
    reader: Option<Reader>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Happening {
    Demand,
    Undemand,
    Read,
    Unread,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Reader {
    r#type: String,
    id: String,
}

/// Somebody waits, comes, leaves.
pub async fn told(
    State(bridge): State<Arc<Bridge>>,
    Extension(caller): Extension<Arc<User>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Failure> {
    check_caller(&caller)?;
    let told: Told = json(body)?;
    let robot = bridge
        .fleet
        .directory
        .by_path(&told.path)
        .ok_or_else(|| Failure::not_found(format!("no robot has the path {:?}", told.path)))?;
    let by = &caller.name;
    let at = told.at.map(|at| (told.clock.as_str(), at));
    let now = bridge.fleet.now().wall;
    let reader = told.reader.unwrap_or_default();
    let done = match told.event {
        Happening::Demand => {
            if bridge.demands.is_news(&robot.name, by, true, at) {
                let start = Command::Start {
                    id: Some(by.clone()),
                    lease: Some(bridge.demand_lease()),
                };
                if !bridge.fleet.wanted.is_open(&robot.name) {
                    info!(robot = robot.name, by, "a viewer waits: start");
                }
                bridge.command(&robot, &start).await
            } else {
                Ok(())
            }
        }
        Happening::Undemand => {
            if bridge.demands.is_news(&robot.name, by, false, at) {
                bridge.views.end_all_of(&robot.name, now);
                info!(robot = robot.name, by, "no viewer is left: stop");
                let stop = Command::Stop {
                    id: Some(by.clone()),
                };
                bridge.command(&robot, &stop).await
            } else {
                Ok(())
            }
        }
        Happening::Read => {
            bridge
                .views
                .begin(&robot.name, &reader.id, &reader.r#type, now);
            bridge.command(&robot, &Command::Keyframe).await
        }
        Happening::Unread => {
            bridge.views.end(&reader.id, now);
            Ok(())
        }
    };
    let what = match told.event {
        Happening::Demand => "demand",
        Happening::Undemand => "undemand",
        Happening::Read => "join",
        Happening::Unread => "leave",
    };
    bridge
        .metrics
        .mediamtx(what, if done.is_ok() { "done" } else { "failed" });
    done.map(|()| StatusCode::NO_CONTENT)
}

async fn demand(bridge: &Bridge, robot: &Robot, by: &str, lease: Duration) {
    let start = Command::Start {
        id: Some(by.to_owned()),
        lease: Some(lease),
    };
    if let Err(failure) = bridge.command(robot, &start).await {
        warn!(
            robot = robot.name,
            "a viewer waits, not started: {}", failure.reason
        );
    }
}

async fn keyframe(bridge: &Bridge, robot: &Robot) {
    if let Err(failure) = bridge.command(robot, &Command::Keyframe).await {
        warn!(
            robot = robot.name,
            "no key frame asked for: {}", failure.reason
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str) -> Question {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn credentials_are_found_wherever_mediamtx_puts_them() {
        let shown = |text: &str| match question(text).credentials() {
            None => "none".to_owned(),
            Some(Credentials::Basic(user, password)) => format!("{user}/{}", password.expose()),
            Some(Credentials::Bearer(token)) => token.expose().to_owned(),
        };
        for (text, expected) in [
            (r#"{"ip":"1.2.3.4","id":null,"query":"","new":[1]}"#, "none"),
            (
                r#"{"user":"pub","password":"pp","token":"pp","query":"user=pub&pass=pp"}"#,
                "pub/pp",
            ),
            (r#"{"user":"","password":"","token":"t0ken"}"#, "t0ken"),
            (r#"{"token":"app:hunter2"}"#, "app/hunter2"),
            (r#"{"query":"x=1&token=a%2Fb"}"#, "a/b"),
            (r#"{"query":"token=a&token=b"}"#, "none"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn a_hook_that_was_overtaken_changes_nothing() {
        let demands = Demands::default();
        let news = |is_wanted, at| demands.is_news("r1", "m", is_wanted, Some(("boot 1", at)));
        assert!(news(true, 10.0));
        assert!(news(true, 15.0));
        assert!(news(false, 16.0));
        assert!(
            !news(true, 15.5),
            "a heartbeat that was on its way at the end"
        );
        assert!(news(true, 17.0));
        assert!(!news(false, 16.5), "the end before this demand");
        assert!(!news(false, 17.0), "at the same time: the demand counts");
        assert!(demands.is_news("r1", "other", false, Some(("boot 1", 1.0))));
        assert!(demands.is_news("r1", "m", false, Some(("boot 2", 1.0))));
        assert!(demands.is_news("r1", "m", false, None));
    }
}
