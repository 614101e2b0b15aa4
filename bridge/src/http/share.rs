// SPDX-License-Identifier: MPL-2.0

//! Share links: made, revoked.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::request::{Caller, Parameters, Shared, parameters};
use crate::{
    auth::{Right, User},
    bridge::Bridge,
    clock::utc,
    failure::Failure,
    robots::Robot,
    share::MAX_FOR,
};

const DEFAULT_FOR: u64 = 3600;
/// Longest link a viewer may create, in seconds: a player can send no credentials but in its URL,
/// and needs them only to begin.
const VIEWER_FOR: u64 = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareQuery {
    #[serde(rename = "for")]
    lasts: Option<u64>,
}

/// Makes a link.
pub async fn share(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
    query: Parameters<ShareQuery>,
) -> Result<Json<Value>, Failure> {
    let lasts = parameters(query)?.lasts.unwrap_or(DEFAULT_FOR);
    let right = if lasts > VIEWER_FOR {
        Right::Share
    } else {
        Right::Look
    };
    let robot = bridge.robot(&user, right, &name)?;
    if !(1..=MAX_FOR).contains(&lasts) {
        return Err(Failure::bad_request(format!(
            "for {lasts}: give whole seconds from 1 to {MAX_FOR}"
        )));
    }
    let (link, token) = bridge
        .fleet
        .shares
        .make(&name, lasts, bridge.fleet.now().wall)?;
    let expires = utc(Duration::from_secs(link.ends));
    info!(
        robot = name,
        by = user.name,
        id = link.id,
        expires,
        "shared"
    );
    let mut watch = bridge.fleet.watch_urls.fill(&robot);
    for url in watch.values_mut() {
        if let Value::String(url) = url {
            let mark = if url.contains('?') { '&' } else { '?' };
            *url = format!("{url}{mark}share={}", token.expose());
        }
    }
    Ok(Json(json!({
        "robot": name,
        "id": link.id,
        "token": token.expose(),
        "expires": expires,
        "watch": watch,
    })))
}

/// Revokes one link.
pub async fn revoke(
    State(bridge): Shared,
    Extension(user): Caller,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let robot = bridge.robot(&user, Right::Share, &name)?;
    if id.len() != 16
        || !id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(Failure::bad_request(
            "this is no link's id: it has 16 hexadecimal digits, and was told when the link was made",
        ));
    }
    revoke_some(&bridge, &user, &robot, Some(&id)).await
}

/// Revokes all links of a robot.
pub async fn revoke_all(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let robot = bridge.robot(&user, Right::Share, &name)?;
    revoke_some(&bridge, &user, &robot, None).await
}

async fn revoke_some(
    bridge: &Bridge,
    user: &User,
    robot: &Robot,
    id: Option<&str>,
) -> Result<StatusCode, Failure> {
    let shares = &bridge.fleet.shares;
    shares.key()?;
    let revoked = shares.revoke(&robot.name, id, bridge.fleet.now().wall);
    // Here it holds from now on; the answer is about all bridges, and the time after a restart.
    bridge.keep_revoked(robot, &revoked).await?;
    info!(
        robot = robot.name,
        by = user.name,
        id = id.unwrap_or("*"),
        "share revoked"
    );
    Ok(StatusCode::NO_CONTENT)
}
