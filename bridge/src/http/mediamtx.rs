// SPDX-License-Identifier: MPL-2.0

//! For MediaMTX: its external authentication, and its hooks.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension,
    extract::{ConnectInfo, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use droidrelay_wire::{
    Command, Secret,
    net::url::percent_decode,
    words::hook::{Hook, HookEvent},
};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    auth::refuse,
    request::{Caller, Payload, Shared, json},
};
use crate::{
    auth::{Credentials, Denial, Right, Role, User},
    bridge::Bridge,
    demand::{Notice, Started},
    failure::Failure,
    housekeeping::{demand, follow, keyframe},
    robots::Robot,
    share::ShareLink,
    view::RobotView,
    views::Admitted,
};

/// A robot that opens by itself may come to the media server before its state comes here. The
/// server asks one thing at a time, so nobody else is answered meanwhile.
const STATE_IS_LATE: Duration = Duration::from_millis(300);
/// From the question whether a viewer may look until it gets the stream.
const JOINING: Duration = Duration::from_millis(200);

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
    Link(ShareLink),
}

impl Who {
    fn name(&self) -> String {
        match self {
            Who::User(user) => user.name.clone(),
            Who::Link(link) => format!("share {}", link.id),
        }
    }
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

/// Answers external authentication.
pub async fn auth(
    State(bridge): Shared,
    Extension(caller): Caller,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Payload,
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
    bridge.metrics.mediamtx_asked(what, result);
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
    let robot = bridge.fleet.robot_at(&question.path);
    if let (true, Some(token)) = (what == "read", question.parameter("share")) {
        bridge.auth.admit(ip).map_err(Refused::Denial)?;
        // What was revoked is still on its way.
        bridge.fleet.settled().await;
        let Some(link) = bridge.fleet.check_share(token.expose()) else {
            bridge.auth.charge(ip);
            return Err(Refused::Denial(Denial::Wrong));
        };
        return match robot {
            Some(robot) if robot.name == link.robot => Ok(Who::Link(link)),
            _ => Err(Refused::Right("this link is for another robot".into())),
        };
    }
    let user = match question.credentials() {
        _ if bridge.auth.is_open() => bridge.auth.check(None, ip).await,
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
    if !fleet.is_up() || fleet.wanted.is_open(&robot.name) {
        return true;
    }
    let mut watcher = fleet.watch(&robot.name);
    let opens = watcher.receiver.wait_for(RobotView::is_open);
    let has_opened = matches!(timeout(STATE_IS_LATE, opens).await, Ok(Ok(_)));
    has_opened
}

/// Somebody is let in to look.
fn admitted(bridge: &Arc<Bridge>, caller: &User, question: &Question, who: &Who, ip: IpAddr) {
    let Some(robot) = bridge.fleet.robot_at(&question.path) else {
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
    if !bridge.mediamtx.read_starts {
        return;
    }
    // The server waits for our answer, and everybody else for the server.
    let (owner, by) = (bridge, caller.name.clone());
    let bridge = owner.clone();
    owner.spawn(async move {
        let is_live = bridge.fleet.view(&robot.name).is_live();
        let is_new = bridge.demands.seen(&robot.name, &by);
        demand(&bridge, &robot, &by).await;
        if is_live {
            sleep(JOINING).await;
            keyframe(&bridge, &robot).await;
        }
        if is_new {
            follow(&bridge, &robot, &by).await;
        }
    });
}

/// Handles a hook.
pub async fn hook(
    State(bridge): Shared,
    Extension(caller): Caller,
    body: Payload,
) -> Result<StatusCode, Failure> {
    check_caller(&caller)?;
    let told: Hook = json(body)?;
    let robot = bridge
        .fleet
        .robot_at(&told.path)
        .ok_or_else(|| Failure::not_found(format!("no robot has the path {:?}", told.path)))?;
    let reader = told.reader.unwrap_or_default();
    let started = told.at.map(|at| Started {
        clock: &told.clock,
        at,
    });
    let (name, by, now) = (&robot.name, &caller.name, bridge.fleet.now().wall);
    let is_news = |notice| bridge.demands.is_news(name, by, notice, started);
    let (what, command) = match told.event {
        HookEvent::Demand => {
            let start = Command::Start {
                id: Some(by.clone()),
                lease: Some(bridge.mediamtx.lease),
            };
            let start = is_news(Notice::Wanted).then_some(start);
            if start.is_some() && !bridge.fleet.wanted.is_open(name) {
                info!(robot = name, by, "a viewer waits: start");
            }
            ("demand", start)
        }
        HookEvent::Undemand => {
            let stop = Command::Stop {
                id: Some(by.clone()),
            };
            let stop = is_news(Notice::Unwanted).then_some(stop);
            if stop.is_some() {
                bridge.views.end_all_of(name, now);
                info!(robot = name, by, "no viewer is left: stop");
            }
            ("undemand", stop)
        }
        HookEvent::Read => {
            bridge.views.begin(name, &reader.id, &reader.r#type, now);
            ("join", Some(Command::Keyframe))
        }
        HookEvent::Unread => {
            bridge.views.end(&reader.id, now);
            ("leave", None)
        }
    };
    let done = match command {
        Some(command) => bridge.command(&robot, &command).await,
        None => Ok(()),
    };
    bridge.metrics.mediamtx_told(what, &done);
    done.map(|()| StatusCode::NO_CONTENT)
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
}
