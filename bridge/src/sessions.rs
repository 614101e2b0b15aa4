// SPDX-License-Identifier: MPL-2.0

//! Sessions at the media server whose right has ended: it asks only when somebody comes, so they
//! are looked at, and ended, by its API.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::http::StatusCode;
use droidrelay_wire::{
    Secret,
    net::http::{KeptClient, Method, Query},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::{select, time::interval};
use tracing::{info, warn};

use crate::{
    auth::Right,
    bridge::Bridge,
    grants::{Grant, parameter},
};

/// A right that has ended holds for so long, and some more.
const LOOK: Duration = Duration::from_secs(2);
/// For an answer of the API.
const PATIENCE: Duration = Duration::from_secs(2);
/// Sessions of one answer, and answers of one kind.
const PAGE: usize = 100;
const MAX_PAGES: usize = 500;
/// As the API calls them.
const KINDS: [&str; 7] = [
    "rtspsessions",
    "rtspssessions",
    "webrtcsessions",
    "hlssessions",
    "rtmpconns",
    "rtmpsconns",
    "srtconns",
];

/// A session, as far as it matters here.
#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    state: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    query: Option<Secret>,
    #[serde(default)]
    user: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(Secret::new))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    page_count: usize,
    items: Vec<T>,
}

/// Looks at all sessions again and again, where there is an API.
pub async fn run(bridge: Arc<Bridge>) {
    let Some(api) = bridge.mediamtx.api.clone() else {
        return forget(&bridge).await;
    };
    let mut api = KeptClient::new(api);
    let mut closing = bridge.closing();
    let mut look = interval(LOOK);
    let mut is_well = true;
    loop {
        select! {
            _ = look.tick() => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        let looked = end_those_without_right(&bridge, &mut api).await;
        if let (Err(err), true) = (&looked, is_well) {
            warn!("sessions whose right has ended go on: MediaMTX's API: {err}");
        }
        is_well = looked.is_ok();
    }
}

/// Without an API nobody tells what is over.
async fn forget(bridge: &Bridge) {
    let mut closing = bridge.closing();
    let mut look = interval(LOOK * 30);
    loop {
        select! {
            _ = look.tick() => bridge.grants.forget_old(),
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

async fn end_those_without_right(bridge: &Bridge, api: &mut KeptClient) -> Result<(), String> {
    let mut listed = HashSet::new();
    for kind in KINDS {
        for page in 0..MAX_PAGES {
            let path = format!("/v3/{kind}/list?itemsPerPage={PAGE}&page={page}");
            let Some(Page { page_count, items }) = ask::<Page<Listed>>(api, path).await? else {
                break;
            };
            for session in items {
                if let Some(reason) = why_ended(bridge, &session) {
                    end(bridge, api, kind, &session, reason).await?;
                }
                listed.insert(session.id);
            }
            if page + 1 >= page_count {
                break;
            }
        }
    }
    bridge.grants.keep(&listed);
    Ok(())
}

/// None: there is nothing of this kind.
async fn ask<T: DeserializeOwned>(api: &mut KeptClient, path: String) -> Result<Option<T>, String> {
    let answer = api.send(&Query::get(path), PATIENCE).await?;
    match answer.status {
        StatusCode::OK => serde_json::from_slice(&answer.body)
            .map(Some)
            // Where, and not what: it holds secrets.
            .map_err(|err| format!("not understood in column {}", err.column())),
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(None),
        status => Err(status.to_string()),
    }
}

async fn end(
    bridge: &Bridge,
    api: &mut KeptClient,
    kind: &str,
    session: &Listed,
    reason: &str,
) -> Result<(), String> {
    let query = Query {
        method: Method::POST,
        ..Query::get(format!("/v3/{kind}/kick/{}", session.id))
    };
    let answer = api.send(&query, PATIENCE).await?;
    // Not found: it has ended by itself.
    if answer.status.is_success() {
        let robot = bridge.fleet.directory.by_path(&session.path);
        let robot = robot.map(|robot| robot.name);
        info!(?robot, kind, "ended a session: {reason}");
    }
    Ok(())
}

/// Why this session may not go on; None: it may, or nothing is known of it.
fn why_ended(bridge: &Bridge, session: &Listed) -> Option<&'static str> {
    let robot = bridge.fleet.directory.by_path(&session.path)?;
    let right = match session.state.as_deref() {
        Some("publish") => Right::Be,
        Some("read") | None => Right::Look,
        Some(_) => return None,
    };
    let gone = "its user has been taken away";
    let link = |token: &Secret| {
        if !bridge.fleet.knows_links() {
            return None;
        }
        let link = bridge.fleet.check_share(token.expose());
        let holds = link.is_some_and(|link| link.robot == robot.name);
        (!holds).then_some("its link has ended")
    };
    let user = match bridge.grants.of(&session.id) {
        Some(Grant::Link(token)) => return link(&token),
        Some(Grant::User(user)) => bridge.auth.still(&user).ok_or(gone),
        // Let in before this bridge was there: only where it was asked at all.
        None if !bridge.is_asked() => return None,
        None => {
            let parameter = |name| parameter(session.query.as_ref()?, name);
            if let (Some(token), Right::Look) = (parameter("share"), right) {
                return link(&token);
            }
            let name = session.user.as_deref().filter(|name| !name.is_empty());
            match (name, parameter("token")) {
                (Some(name), _) => bridge.auth.user(name).ok_or(gone),
                (None, Some(token)) => bridge.auth.holder(token).ok_or(gone),
                (None, None) => return None,
            }
        }
    };
    match user {
        Ok(user) if user.may(right, &robot.name) => None,
        Ok(_) => Some("its user has no right to this robot any more"),
        Err(reason) => Some(reason),
    }
}
