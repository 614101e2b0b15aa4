// SPDX-License-Identifier: MPL-2.0

//! For MediaMTX: its external authentication, and its hooks.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use droidrelay_wire::{
    Command, Secret,
    words::hook::{Hook, HookEvent},
};
use serde::{Deserialize, Deserializer};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    auth::{Refused, link_of, refuse},
    request::{Caller, Payload, Shared, json},
};
use crate::{
    auth::{Credentials, Denial, Right, Role, User, readable},
    bridge::Bridge,
    failure::Failure,
    grants::{Grant, parameter},
    housekeeping::{demand, follow, keyframe},
    robots::Robot,
    view::RobotView,
    views::Admitted,
};

/// A robot that opens by itself may come to the media server before its state comes here. The
/// server asks one thing at a time, so nobody else is answered meanwhile.
const STATE_IS_LATE: Duration = Duration::from_millis(300);
/// From the question whether a viewer may look until it gets the stream.
const JOINING: Duration = Duration::from_millis(200);

/// MediaMTX's question, as of its version 1.20.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Question {
    ip: String,
    user: String,
    #[serde(deserialize_with = "secret")]
    password: Option<Secret>,
    #[serde(deserialize_with = "secret")]
    token: Option<Secret>,
    action: String,
    path: String,
    protocol: String,
    id: Option<String>,
    #[serde(deserialize_with = "secret")]
    query: Option<Secret>,
}

/// None: it is empty.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let secret = String::deserialize(deserializer).map(Secret::new)?;
    Ok(Some(secret).filter(|secret| !secret.is_empty()))
}

impl Question {
    fn parameter(&self, name: &str) -> Option<Secret> {
        parameter(self.query.as_ref()?, name)
    }

    /// MediaMTX repeats the password as the token; alone it is one.
    fn credentials(&self) -> Option<Credentials> {
        if !self.user.is_empty() {
            let password = self.password.clone().unwrap_or_else(|| "".into());
            return Some(Credentials::Basic(self.user.clone(), password));
        }
        let token = self.token.clone().or_else(|| self.password.clone());
        let token = token.or_else(|| self.parameter("token"))?;
        // HLS and WebRTC take "user:password" in place of a token.
        Some(match token.expose().split_once(':') {
            Some((user, password)) => Credentials::Basic(user.to_owned(), password.into()),
            None => Credentials::Bearer(token),
        })
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
    body: Payload,
) -> Result<Response, Failure> {
    check_caller(&caller)?;
    let question: Question = json(body)?;
    // Never the media server's own address: it is not limited for what its viewers do.
    let ip = readable(&question.ip);
    if question.action == "api" && bridge.is_own(question.credentials()) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let what = match question.action.as_str() {
        "publish" => "publish",
        "read" => "read",
        "playback" => "playback",
        "api" => "change",
        "metrics" | "pprof" => "operate",
        other => {
            return Err(Failure::bad_request(format!(
                "the action {other:?} is not known: publish, read, playback, api, metrics or pprof"
            )));
        }
    };
    let answer = answer(&bridge, &question, what, ip).await;
    bridge.metrics.mediamtx_asked(what, &answer);
    match answer {
        Ok(by) => {
            debug!(what, path = question.path, by, "let in");
            if what == "read" {
                admitted(&bridge, &caller, &question, by, ip);
            }
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(Refused::Denial(denial)) => {
            bridge.metrics.refused(denial);
            if denial != Denial::Missing {
                warn!(%ip, what, path = question.path, "refused: {denial:?}");
            }
            Ok(refuse(denial, true))
        }
        Err(Refused::Failure(failure)) => {
            warn!(%ip, what, path = question.path, "refused: {}", failure.reason);
            Err(failure)
        }
    }
}

/// The name of who may do it.
async fn answer(
    bridge: &Bridge,
    question: &Question,
    what: &str,
    ip: IpAddr,
) -> Result<String, Refused> {
    let robot = bridge.fleet.directory.by_path(&question.path);
    if let (true, Some(token)) = (what == "read", question.parameter("share")) {
        let link = link_of(bridge, &token, ip).await?;
        return match robot {
            Some(robot) if robot.name == link.robot => {
                bridge.grants.give(&question.id, Grant::Link(token));
                Ok(format!("share {}", link.id))
            }
            _ => Err(Failure::forbidden("this link is for another robot").into()),
        };
    }
    let user = match question.credentials() {
        _ if bridge.auth.is_open() => bridge.auth.check(None, ip).await,
        None => Err(Denial::Missing),
        credentials => bridge.auth.check_credentials(credentials, ip).await,
    }?;
    let name = user.name.clone();
    let forbidden = |reason: String| Err(Failure::forbidden(reason).into());
    if let "operate" | "change" = what {
        return match user.role {
            // What is in its own configuration, it may do to itself.
            Role::MediaMtx => Ok(name),
            Role::Admin if what == "operate" => Ok(name),
            // Who may change the configuration may have programs run on this host.
            Role::Admin => forbidden("the API is for the media server's own user".into()),
            _ => forbidden(format!("user {name:?} is no admin")),
        };
    }
    let robot = robot.ok_or_else(|| Failure::forbidden("no robot has this path"))?;
    let right = match what {
        "publish" => Right::Be,
        _ => Right::Look,
    };
    user.check(right, &robot.name)?;
    if what == "publish" && !is_wanted(bridge, &robot).await {
        return forbidden(format!(
            "nobody wants robot {:?} to stream: it may publish while a lease lives",
            robot.name
        ));
    }
    bridge.grants.give(&question.id, Grant::User(user));
    Ok(name)
}

/// Somebody holds a lease, by what was asked on the broker or by the robot's own word.
async fn is_wanted(bridge: &Bridge, robot: &Robot) -> bool {
    let fleet = &bridge.fleet;
    // Without the broker nobody knows; a robot that loses its stream then gets it back.
    if !fleet.is_up() || fleet.wanted.is_open(&robot.name) {
        return true;
    }
    let view = fleet.view(&robot.name);
    if view.is_open() {
        return true;
    }
    // It has said that it is closed, and would say otherwise ahead of publishing.
    if view.state.is_some() && view.availability.is_online() {
        return false;
    }
    // While one is waited for, the media server asks nothing else: not again and again.
    let Some(_question) = bridge.questions.begin(&robot.name) else {
        return false;
    };
    let mut watcher = fleet.watch(&robot.name);
    let opens = watcher.receiver.wait_for(RobotView::is_open);
    let has_opened = matches!(timeout(STATE_IS_LATE, opens).await, Ok(Ok(_)));
    has_opened
}

/// Somebody is let in to look.
fn admitted(bridge: &Arc<Bridge>, caller: &User, question: &Question, by: String, ip: IpAddr) {
    let Some(robot) = bridge.fleet.directory.by_path(&question.path) else {
        return;
    };
    // Without an id it is the look at a page, which asks again for the stream itself.
    if question.id.is_some() || question.protocol == "hls" {
        bridge.views.admit(Admitted {
            robot: robot.name.clone(),
            by,
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
        .directory
        .by_path(&told.path)
        .ok_or_else(|| Failure::not_found(format!("no robot has the path {:?}", told.path)))?;
    let reader = told.reader.clone().unwrap_or_default();
    let (name, by, now) = (&robot.name, &caller.name, bridge.fleet.now().wall);
    let is_news = || bridge.demands.is_news(name, by, &told);
    let id = Some(by.clone());
    let (what, command) = match told.event {
        HookEvent::Demand => {
            let lease = Some(bridge.mediamtx.lease);
            let start = is_news().then_some(Command::Start { id, lease });
            if start.is_some() && !bridge.fleet.wanted.is_open(name) {
                info!(robot = name, by, "a viewer waits: start");
            }
            ("demand", start)
        }
        HookEvent::Undemand => {
            let knows = knows_that_nobody_waits(&bridge, name, by, told.age);
            let stop = (is_news() && knows).then_some(Command::Stop { id });
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

/// Whether all is known that came after a hook which is so old: without that, a viewer who has come
/// meanwhile would lose the stream. What is not stopped here ends with its lease.
fn knows_that_nobody_waits(bridge: &Bridge, robot: &str, by: &str, age: Option<f64>) -> bool {
    let Some(age) = age else { return true };
    let fleet = &bridge.fleet;
    let lease = bridge.mediamtx.lease;
    let renewed = fleet.wanted.lease_of(robot, by).is_some_and(|until| {
        let since = (fleet.now().monotonic + lease).saturating_sub(until);
        since.as_secs_f64() < age
    });
    fleet.has_heard_all_since(age) && !renewed
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
