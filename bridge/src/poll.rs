// SPDX-License-Identifier: MPL-2.0

//! Robots without MQTT: they ask what is wanted of them and tell their state by HTTP. Everybody
//! else sees them as any other robot.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection},
    http::StatusCode,
};
use droidrelay_wire::{
    RobotState,
    mqtt::session::Properties,
    words::poll::MAX_STATE,
    words::topics::{OFFLINE, ONLINE, availability_topic, state_topic},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    select,
    time::{Instant, interval, sleep_until, timeout_at},
};
use tracing::{info, warn};

use crate::{
    app::Bridge,
    auth::{Right, Role, User},
    commands::{Parameters, parameters, wait_from_seconds},
    failure::Failure,
    fleet::Link,
    robots::{Robot, wanted_topic},
    share,
    wanted::ON_BEHALF,
};

/// How often views are looked at that may be over.
const LOOK: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollQuery {
    since: Option<u64>,
    wait: Option<f64>,
}

/// What is wanted of the robot, and what it said last: at once, or when what is wanted is not
/// `since` any more.
pub async fn poll(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Path(name): Path<String>,
    query: Parameters<PollQuery>,
) -> Result<Json<Value>, Failure> {
    let is_robot = user.role == Role::Robot;
    let right = if is_robot { Right::Be } else { Right::Look };
    let robot = bridge.robot(&user, right, &name)?;
    let query = parameters(query)?;
    let wait = query.wait.map_or(Ok(Duration::ZERO), wait_from_seconds)?;
    let deadline = Instant::now() + wait;
    bridge.check_link(bridge.broker_deadline()).await?;
    // An answer without what is retained would close a stream that somebody looks at.
    bridge.fleet.settled().await;
    // Who tries a robot's endpoint by hand is not the robot, unless he has spoken as it.
    if is_robot || (user.may(Right::Be, &name) && bridge.fleet.wanted.polls(&name)) {
        present(&bridge, &robot, wait).await?;
    }
    if let Some(since) = query.since {
        let _waiting = bridge.metrics.waiting.count();
        let mut watcher = bridge.fleet.wanted.watch(&name);
        let mut closing = bridge.closing.subscribe();
        let mut link = bridge.fleet.watch_link();
        let changed = async {
            select! {
                _ = watcher.version.wait_for(|version| *version != since) => {}
                _ = closing.wait_for(|closing| *closing) => {}
                _ = link.wait_for(|link| matches!(link, Link::Down(_))) => {}
            }
        };
        // Unchanged is an answer too.
        let _ = timeout_at(deadline, changed).await;
        bridge.check_link(Instant::now()).await?;
    }
    let answer = bridge.fleet.wanted.answer(&name, bridge.fleet.now());
    let view = bridge.fleet.view(&name);
    Ok(Json(json!({
        "robot": name,
        "version": answer.version,
        "wanted": answer.wanted,
        "keyframe": answer.keyframe,
        "online": view.online.unwrap_or(false),
        "state": view.state.as_deref(),
    })))
}

/// The robot's state, as it would say it on its state topic.
pub async fn report(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
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
    bridge.publish(&topic, body, on_behalf()).await?;
    present(&bridge, &robot, Duration::ZERO).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Notes that the robot is there, and may be silent for `wait` from now on.
async fn present(bridge: &Bridge, robot: &Robot, wait: Duration) -> Result<(), Failure> {
    let fleet = &bridge.fleet;
    if fleet.wanted.heard(&robot.name, wait, fleet.now()) {
        announce(bridge, robot, ONLINE).await?;
    }
    Ok(())
}

async fn announce(bridge: &Bridge, robot: &Robot, payload: &str) -> Result<(), Failure> {
    let topic = availability_topic(&robot.topic);
    bridge.publish(&topic, payload, on_behalf()).await
}

fn on_behalf() -> Properties {
    Properties {
        correlation: Some(ON_BEHALF.to_vec()),
        ..retained()
    }
}

fn retained() -> Properties {
    Properties {
        retain: true,
        ..Properties::default()
    }
}

/// Writes notes, ends leases in time, says of robots that they do not poll any more.
pub async fn keep(bridge: Arc<Bridge>) {
    let fleet = &bridge.fleet;
    let mut link = fleet.watch_link();
    let mut look = interval(LOOK);
    loop {
        // While the broker is away, nobody is told anything.
        if link
            .wait_for(|link| matches!(link, Link::Up(_)))
            .await
            .is_err()
        {
            return;
        }
        keep_once(&bridge).await;
        let deadline = fleet.wanted.next_deadline();
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(fleet.instant(deadline)).await,
                None => std::future::pending().await,
            }
        };
        select! {
            _ = look.tick() => {
                let is_live = |name: &str| fleet.view(name).is_live();
                bridge.views.end_dark(is_live, fleet.now().wall);
            }
            () = due => {}
            () = fleet.wanted.wake.notified() => {}
            _ = link.changed() => {}
        }
    }
}

async fn keep_once(bridge: &Bridge) {
    let fleet = &bridge.fleet;
    for name in fleet.wanted.expire(fleet.now()) {
        let Some(robot) = fleet.directory.robot(&name) else {
            continue;
        };
        info!(robot = name, "polls no more: offline");
        if let Err(failure) = announce(bridge, &robot, OFFLINE).await {
            // It stays online to others until it is heard of again.
            warn!(robot = name, "not announced as offline: {}", failure.reason);
        } else if !fleet.wanted.is_open(&name) {
            // Nothing is wanted of it: the note goes. One that stays does no harm.
            let _ = bridge
                .publish(&wanted_topic(&robot.topic), "", retained())
                .await;
        }
    }
    for name in fleet.wanted.unannounced() {
        let Some(robot) = fleet.directory.robot(&name) else {
            continue;
        };
        if let Err(failure) = announce(bridge, &robot, ONLINE).await {
            warn!(robot = name, "not announced as online: {}", failure.reason);
        }
    }
    for (name, revoked) in fleet.shares.unwritten() {
        let Some(robot) = fleet.directory.robot(&name) else {
            continue;
        };
        if let Err(failure) = share::write(bridge, &robot, &revoked).await {
            warn!(
                robot = name,
                "revoked links are not kept: {}", failure.reason
            );
        }
    }
    for (name, note) in fleet.wanted.unwritten(fleet.now()) {
        let Some(robot) = fleet.directory.robot(&name) else {
            continue;
        };
        let payload = serde_json::to_vec(&note).unwrap_or_default();
        let topic = wanted_topic(&robot.topic);
        if let Err(failure) = bridge.publish(&topic, payload, retained()).await {
            warn!(
                robot = name,
                "what is wanted is not noted: {}", failure.reason
            );
            if !matches!(fleet.link(), Link::Up(_)) {
                fleet.wanted.write_again(name);
            }
        }
    }
}
