// SPDX-License-Identifier: MPL-2.0

//! Robots as their viewers see them; start, stop, key frame: what they may ask of one.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use droidrelay_wire::{
    Command, StreamState,
    words::command::{check_id, lease_from_seconds},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    select,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::request::{Caller, Parameters, Shared, parameters, wait_from_seconds};
use crate::{
    auth::Right,
    bridge::{Bridge, word},
    failure::Failure,
    robots::Robot,
    view::{Availability, RobotView},
};

/// All robots that the user may see.
pub async fn list(State(bridge): Shared, Extension(user): Caller) -> Json<Value> {
    let names = bridge.fleet.names();
    let robots: Vec<Value> = names
        .iter()
        .filter(|name| user.may(Right::Look, name))
        .filter_map(|name| bridge.fleet.directory.robot(name))
        .map(|robot| bridge.fleet.describe(&robot))
        .collect();
    Json(json!({ "robots": robots, "broker": bridge.fleet.broker() }))
}

/// One robot.
pub async fn one(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    // Right after the connection the retained topics are still on their way.
    bridge.fleet.settled_view(&robot.name).await;
    let mut answer = bridge.fleet.describe(&robot);
    answer["broker"] = bridge.fleet.broker();
    Ok(Json(answer))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandQuery {
    viewer: Option<String>,
    lease: Option<f64>,
    wait: Option<f64>,
}

/// What the route asks (`asked`) of the robot in its path, or else of the default one.
pub async fn command(
    State(bridge): Shared,
    Extension(user): Caller,
    named: Option<Path<String>>,
    Extension(asked): Extension<Command>,
    query: Parameters<CommandQuery>,
) -> Result<Json<Value>, Failure> {
    let robot = match &named {
        Some(Path(name)) => bridge.robot(&user, Right::Command, name)?,
        None => {
            let robot = bridge.fleet.directory.default_robot().ok_or_else(|| {
                Failure::not_found(
                    "there is no default robot: name one, /robots/NAME/stream/start, or set robots.default",
                )
            })?;
            user.check(Right::Command, &robot.name)?;
            robot
        }
    };
    let query = match asked {
        // It takes none.
        Command::Keyframe => CommandQuery::default(),
        Command::Start { .. } | Command::Stop { .. } => parameters(query)?,
    };
    if let Some(id) = &query.viewer {
        check_id(id).map_err(|err| Failure::bad_request(format!("viewer: {err}")))?;
    }
    let lease = query
        .lease
        .map(lease_from_seconds)
        .transpose()
        .map_err(|err| Failure::bad_request(err.to_string()))?;
    let wait = query.wait.map(wait_from_seconds).transpose()?;
    let id = query.viewer.clone();
    let command = match asked {
        Command::Start { .. } => Command::Start { id, lease },
        Command::Stop { .. } => Command::Stop { id },
        Command::Keyframe => Command::Keyframe,
    };
    let (by, viewer) = (&user.name, query.viewer.as_deref().unwrap_or("*"));
    let (name, word) = (&robot.name, word(&command));
    let published = bridge.command(&robot, &command).await;
    published.inspect_err(|Failure { reason, .. }| {
        warn!(robot = name, ?by, ?viewer, "not published {word}: {reason}");
    })?;
    info!(robot = name, ?by, ?viewer, "published {word}");

    let mut answer = json!({ "msg": format!("Published {word}") });
    let waited = match (&command, wait) {
        (Command::Start { .. }, Some(wait)) => Some(until_live(&bridge, &robot, wait).await),
        _ => None,
    };
    let view = bridge.fleet.settled_view(name).await;
    let online = view.availability.is_online();
    // The endpoints of the published system answer with nothing but `msg` as long as there is
    // nothing that the caller must know.
    if named.is_some() {
        answer["robot"] = name.as_str().into();
    }
    if named.is_some() || !online {
        answer["online"] = online.into();
    }
    if !online {
        let note = match view.availability {
            Availability::Unknown => {
                "the broker knows of no such robot: it has never announced itself"
            }
            Availability::Online | Availability::Offline => "the robot is offline",
        };
        let effect = match command {
            Command::Start { .. } => format!(
                "the start is good for {} s, should it come back by then",
                bridge.start_expiry.as_secs()
            ),
            Command::Stop { .. } => "it gets the stop when it comes back".to_owned(),
            Command::Keyframe => "there is no picture now".to_owned(),
        };
        answer["note"] = format!("{note}; {effect}").into();
    }
    if let Some(outcome) = waited {
        answer["live"] = outcome.is_ok().into();
        let state = view.state.as_ref().map(|state| state.state.as_str());
        answer["state"] = state.into();
        if let Err(reason) = outcome {
            answer["reason"] = reason.into();
        }
    }
    Ok(Json(answer))
}

/// Waits until frames reach the server; says why they do not where time is up.
async fn until_live(bridge: &Bridge, robot: &Robot, wait: Duration) -> Result<(), String> {
    let deadline = Instant::now() + wait;
    let _waiting = bridge.metrics.waiting.count();
    let mut watcher = bridge.fleet.watch(&robot.name);
    let mut closing = bridge.closing();
    let live = async {
        select! {
            _ = watcher.receiver.wait_for(RobotView::is_live) => true,
            _ = closing.wait_for(|closing| *closing) => false,
        }
    };
    match timeout_at(deadline, live).await {
        Ok(true) => Ok(()),
        Ok(false) => Err("the bridge is shutting down".into()),
        Err(_) => Err(why_not_live(bridge, robot)),
    }
}

fn why_not_live(bridge: &Bridge, robot: &Robot) -> String {
    if let Some(fault) = bridge.fleet.link().fault() {
        return fault;
    }
    let view = bridge.fleet.view(&robot.name);
    match (view.availability, view.state) {
        (Availability::Offline, _) => "the robot is offline".into(),
        (Availability::Unknown, None) => "the robot has never announced itself".into(),
        (_, None) => "the robot does not tell its state".into(),
        (_, Some(state)) => {
            let reason = state.reason().map(|reason| format!(": {reason}"));
            let detail = reason.unwrap_or_default();
            let what = match &state.state {
                StreamState::Live => return "the robot became live just now".into(),
                StreamState::Idle => "the robot has not opened its stream",
                StreamState::Starting => "the robot is still starting",
                StreamState::Backoff => "the robot cannot reach the media server",
                StreamState::Refused => "the media server refuses the robot",
                StreamState::Error => "the robot cannot deliver",
                StreamState::Other(_) => "the robot is in a state that is not known here",
            };
            format!("{what}{detail}")
        }
    }
}
