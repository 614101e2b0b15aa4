// SPDX-License-Identifier: MPL-2.0

//! Start, stop, key frame: what a viewer may ask of a robot.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use droidrelay_wire::{
    Command, StreamState,
    words::command::{check_id, lease_from_seconds},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{
    select,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::request::{Caller, Parameters, Shared, parameters, wait_from_seconds};
use crate::{
    auth::{Right, User},
    bridge::Bridge,
    failure::Failure,
    fleet::BrokerLink,
    robots::Robot,
    view::{Availability, RobotView},
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandQuery {
    viewer: Option<String>,
    lease: Option<f64>,
    wait: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Keyframe,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Keyframe => "keyframe",
        }
    }
}

type Answer = Result<Json<Value>, Failure>;

pub async fn start(bridge: Shared, by: Caller, query: Parameters<CommandQuery>) -> Answer {
    default_command(bridge, by, Verb::Start, query).await
}

pub async fn stop(bridge: Shared, by: Caller, query: Parameters<CommandQuery>) -> Answer {
    default_command(bridge, by, Verb::Stop, query).await
}

pub async fn start_robot(
    bridge: Shared,
    by: Caller,
    robot: Path<String>,
    query: Parameters<CommandQuery>,
) -> Answer {
    robot_command(bridge, by, robot, Verb::Start, query).await
}

pub async fn stop_robot(
    bridge: Shared,
    by: Caller,
    robot: Path<String>,
    query: Parameters<CommandQuery>,
) -> Answer {
    robot_command(bridge, by, robot, Verb::Stop, query).await
}

pub async fn keyframe_robot(bridge: Shared, by: Caller, robot: Path<String>) -> Answer {
    let nothing = CommandQuery::default();
    robot_command(bridge, by, robot, Verb::Keyframe, Ok(Query(nothing))).await
}

/// The endpoints of the published system: their answer has nothing but `msg` as long as there
/// is nothing that the caller must know.
async fn default_command(
    State(bridge): Shared,
    Extension(user): Caller,
    verb: Verb,
    query: Parameters<CommandQuery>,
) -> Answer {
    let robot = bridge.fleet.default_robot().ok_or_else(|| {
        Failure::not_found(
            "there is no default robot: name one, /robots/NAME/stream/start, or set robots.default",
        )
    })?;
    user.check(Right::Command, &robot.name)?;
    let mut answer = command(&bridge, &user, &robot, verb, query).await?;
    if answer.get("online") == Some(&Value::Bool(true)) {
        answer.remove("online");
    }
    Ok(Json(answer.into()))
}

async fn robot_command(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(robot): Path<String>,
    verb: Verb,
    query: Parameters<CommandQuery>,
) -> Answer {
    let robot = bridge.robot(&user, Right::Command, &robot)?;
    let mut answer = command(&bridge, &user, &robot, verb, query).await?;
    answer.insert("robot".into(), robot.name.into());
    Ok(Json(answer.into()))
}

async fn command(
    bridge: &Bridge,
    user: &User,
    robot: &Robot,
    verb: Verb,
    query: Parameters<CommandQuery>,
) -> Result<Map<String, Value>, Failure> {
    let query = parameters(query)?;
    if let Some(id) = &query.viewer {
        check_id(id).map_err(|err| Failure::bad_request(format!("viewer: {err}")))?;
    }
    let lease = query
        .lease
        .map(lease_from_seconds)
        .transpose()
        .map_err(|err| Failure::bad_request(err.to_string()))?;
    let wait = query.wait.map(wait_from_seconds).transpose()?;
    let word = match verb {
        Verb::Start => Command::Start {
            id: query.viewer.clone(),
            lease,
        },
        Verb::Stop => Command::Stop {
            id: query.viewer.clone(),
        },
        Verb::Keyframe => Command::Keyframe,
    };
    let published = bridge.command(robot, &word).await;
    let (by, viewer) = (&user.name, query.viewer.as_deref().unwrap_or("*"));
    if let Err(failure) = published {
        warn!(
            robot = robot.name,
            ?by,
            ?viewer,
            "not published {}: {}",
            verb.as_str(),
            failure.reason
        );
        return Err(failure);
    }
    info!(
        robot = robot.name,
        ?by,
        ?viewer,
        "published {}",
        verb.as_str()
    );

    let mut answer = Map::new();
    answer.insert("msg".into(), format!("Published {}", verb.as_str()).into());
    let waited = match (verb, wait) {
        (Verb::Start, Some(wait)) => Some(until_live(bridge, robot, wait).await),
        _ => None,
    };
    let view = bridge.fleet.settled_view(&robot.name).await;
    let online = view.availability.is_online();
    answer.insert("online".into(), online.into());
    if !online {
        let note = match view.availability {
            Availability::Unknown => {
                "the broker knows of no such robot: it has never announced itself"
            }
            Availability::Online | Availability::Offline => "the robot is offline",
        };
        let effect = match verb {
            Verb::Start => format!(
                "the start is good for {} s, should it come back by then",
                bridge.start_expiry.as_secs()
            ),
            Verb::Stop => "it gets the stop when it comes back".to_owned(),
            Verb::Keyframe => "there is no picture now".to_owned(),
        };
        answer.insert("note".into(), format!("{note}; {effect}").into());
    }
    if let Some(outcome) = waited {
        answer.insert("live".into(), outcome.is_ok().into());
        let state = view.state.as_ref().map(|state| state.state.as_str());
        answer.insert("state".into(), state.into());
        if let Err(reason) = outcome {
            answer.insert("reason".into(), reason.into());
        }
    }
    Ok(answer)
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
    if let BrokerLink::Down(reason) = bridge.fleet.link() {
        return format!("the MQTT broker is out of reach: {reason}");
    }
    let view = bridge.fleet.view(&robot.name);
    match (view.availability, view.state) {
        (Availability::Offline, _) => "the robot is offline".into(),
        (Availability::Unknown, None) => "the robot has never announced itself".into(),
        (_, None) => "the robot does not tell its state".into(),
        (_, Some(state)) => {
            let detail = state
                .publish
                .as_ref()
                .and_then(|publish| publish.reason.clone())
                .or_else(|| state.last_error.clone())
                .map(|detail| format!(": {detail}"))
                .unwrap_or_default();
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
