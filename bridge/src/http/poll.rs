// SPDX-License-Identifier: MPL-2.0

//! Robots without MQTT: they ask what is wanted of them and tell their state by HTTP. Everybody
//! else sees them as any other robot.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use droidrelay_wire::{
    RobotState,
    words::{
        poll::{Answer, Query},
        state::MAX_STATE,
        topics::{ONLINE, state_topic},
    },
};
use tokio::{
    select,
    time::{Instant, timeout_at},
};

use super::request::{Caller, Parameters, Payload, Shared, parameters, wait_from_seconds};
use crate::{
    auth::{Right, Role},
    bridge::Bridge,
    failure::Failure,
    fleet::BrokerLink,
    robots::Robot,
};

/// What is wanted of the robot, and what it said last: at once, or when what is wanted is not
/// `since` any more.
pub async fn poll(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
    query: Parameters<Query>,
) -> Result<Json<Answer>, Failure> {
    let is_robot = user.role == Role::Robot;
    let right = if is_robot { Right::Be } else { Right::Look };
    let robot = bridge.robot(&user, right, &name)?;
    let query = parameters(query)?;
    let wait = query.wait.map_or(Ok(Duration::ZERO), wait_from_seconds)?;
    let deadline = Instant::now() + wait;
    bridge.check_link(bridge.broker_deadline()).await?;
    // An answer without what is retained would close a stream that somebody looks at.
    if !bridge.fleet.settled(bridge.broker_deadline()).await {
        let reason = "what is wanted is not known yet: the broker has not told all that it keeps";
        return Err(Failure::unavailable(reason));
    }
    // An admin who tries a robot's endpoint by hand is not the robot, but one who speaks as it is.
    if is_robot || (user.may(Right::Be, &name) && bridge.fleet.wanted.polls(&name)) {
        present(&bridge, &robot, wait).await?;
    }
    if let Some(since) = query.since {
        let _waiting = bridge.metrics.waiting.count();
        let mut watcher = bridge.fleet.wanted.watch(&name);
        let mut closing = bridge.closing();
        let mut link = bridge.fleet.watch_link();
        let mut users = bridge.auth.users();
        let changed = async {
            select! {
                _ = users.changed() => {}
                _ = watcher.receiver.wait_for(|version| *version != since) => {}
                _ = closing.wait_for(|closing| *closing) => {}
                _ = link.wait_for(|link| matches!(link, BrokerLink::Down(_))) => {}
            }
        };
        // Unchanged is an answer too.
        let _ = timeout_at(deadline, changed).await;
        bridge.check_link(Instant::now()).await?;
        if bridge.auth.still(&user).is_none() {
            return Err(Failure::forbidden("this user has been taken away"));
        }
    }
    if bridge.fleet.wanted.polls_here(&name) {
        let noted = bridge.fleet.wanted.is_noted(&name);
        if timeout_at(bridge.broker_deadline(), noted).await.is_err() {
            let reason = "the broker does not keep what is wanted";
            return Err(Failure::unavailable(reason));
        }
    }
    let view = bridge.fleet.view(&name);
    Ok(Json(Answer {
        online: view.availability.is_online(),
        state: view
            .state
            .as_deref()
            .and_then(|state| serde_json::to_value(state).ok()),
        ..bridge.fleet.wanted.answer(&name, bridge.fleet.now())
    }))
}

/// The robot's state, as it would say it on its state topic.
pub async fn report(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
    body: Payload,
) -> Result<StatusCode, Failure> {
    let robot = bridge.robot(&user, Right::Be, &name)?;
    let too_large = || {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a state has at most {MAX_STATE} bytes"),
        )
    };
    let body = body.map_err(|_| too_large())?;
    if body.len() > MAX_STATE {
        return Err(too_large());
    }
    serde_json::from_slice::<RobotState>(&body)
        .map_err(|err| Failure::bad_request(format!("the body is not a robot's state: {err}")))?;
    let topic = state_topic(&robot.topic);
    bridge.retain_on_behalf(&topic, body).await?;
    present(&bridge, &robot, Duration::ZERO).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Notes that the robot is there, and may be silent for `wait` from now on.
async fn present(bridge: &Bridge, robot: &Robot, wait: Duration) -> Result<(), Failure> {
    let fleet = &bridge.fleet;
    if fleet.wanted.polled(&robot.name, wait, fleet.now()) {
        bridge.announce(robot, ONLINE).await?;
    }
    Ok(())
}
