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
use crate::{auth::Right, clock::utc, failure::Failure, share::MAX_FOR};

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
    bridge.fleet.shares.key()?;
    // Without what was revoked, a new link might be one of them.
    bridge.check_link(bridge.broker_deadline()).await?;
    if !bridge.fleet.settled(bridge.broker_deadline()).await {
        let reason = "which links are revoked is not known yet: try again in a second";
        return Err(Failure::unavailable(reason));
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
        let mark = if url.contains(['?', '#']) { '&' } else { '?' };
        *url = format!("{url}{mark}share={}", token.expose());
    }
    Ok(Json(json!({
        "robot": name,
        "id": link.id,
        "token": token.expose(),
        "expires": expires,
        "watch": watch,
    })))
}

/// Which links are revoked.
#[derive(Deserialize)]
pub struct Revoked {
    robot: String,
    /// None: all of the robot's.
    id: Option<String>,
}

/// Revokes one link, or all of a robot.
pub async fn revoke(
    State(bridge): Shared,
    Extension(user): Caller,
    Path(Revoked { robot: name, id }): Path<Revoked>,
) -> Result<StatusCode, Failure> {
    let robot = bridge.robot(&user, Right::Share, &name)?;
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_id = |id: &String| id.len() == 16 && id.bytes().all(is_digit);
    if !id.as_ref().is_none_or(is_id) {
        return Err(Failure::bad_request(
            "this is no link's id: it has 16 hexadecimal digits, and was told when the link was made",
        ));
    }
    let shares = &bridge.fleet.shares;
    shares.key()?;
    let revoked = shares.revoke(&name, id.as_deref(), bridge.fleet.now().wall);
    // Here it holds from now on; the answer is about all bridges, and the time after a restart.
    bridge.keep_revoked(&robot, &revoked).await?;
    let id = id.as_deref().unwrap_or("*");
    info!(robot = name, by = user.name, id, "share revoked");
    Ok(StatusCode::NO_CONTENT)
}
