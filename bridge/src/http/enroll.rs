// SPDX-License-Identifier: MPL-2.0

//! A robot fetches its bundle, and asks whether it is seen.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use droidrelay_wire::{
    Secret,
    words::enroll::{Seen, Status},
};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{
    auth::{client, refuse},
    request::Shared,
};
use crate::{
    auth::{Credentials, Denial},
    bridge::Bridge,
    clock::utc,
    enroll::{self, Refused},
    failure::Failure,
};

/// Gives out the bundle.
pub async fn enroll(
    State(bridge): Shared,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let bundle = asked(&bridge, peer, &headers, enroll::take).await;
    bundle.map_or_else(
        |refused| refused,
        |bundle| {
            info!(peer = %peer.ip(), "a robot has its bundle");
            let json = [(CONTENT_TYPE, "application/json")];
            (json, bundle.expose().to_owned()).into_response()
        },
    )
}

/// Whether the robots of a bundle that was given out are there.
pub async fn status(
    State(bridge): Shared,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let names = match asked(&bridge, peer, &headers, enroll::robots).await {
        Ok(names) => names,
        Err(refused) => return refused,
    };
    let seen = |name: String| {
        let view = bridge.fleet.view(&name);
        let state = view.state.as_ref();
        Seen {
            online: view.availability.is_online(),
            state: state.map(|state| state.state.as_str().to_owned()),
            name,
        }
    };
    let robots = names.into_iter().map(seen).collect();
    Json(Status { robots }).into_response()
}

/// What the request's token gives at `ask`, which reads and writes files; or the answer to it.
async fn asked<T: Send + 'static>(
    bridge: &Bridge,
    peer: SocketAddr,
    headers: &HeaderMap,
    ask: fn(&std::path::Path, &Secret, u64) -> Result<T, Refused>,
) -> Result<T, Response> {
    let ip = client(&bridge.proxies, peer.ip(), headers);
    bridge
        .auth
        .admit(ip)
        .map_err(|denial| refuse(denial, true))?;
    let header = headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok());
    let Some(Credentials::Bearer(token)) = header.and_then(Credentials::parse) else {
        return Err(refuse(Denial::Missing, true));
    };
    let folder: PathBuf = bridge.enroll_folder.clone();
    let now = bridge.fleet.now().wall.as_secs();
    let done = spawn_blocking(move || ask(&folder, &token, now)).await;
    let refused = match done {
        Ok(Ok(given)) => return Ok(given),
        Ok(Err(refused)) => refused,
        // It is aborted at the end only.
        Err(_) => Refused::Folder("the bridge ends".into()),
    };
    let again = "ask for a new command: droidrelay-bridge robot enroll NAME";
    let failure = match refused {
        Refused::Unknown => {
            bridge.auth.charge(ip);
            warn!(%ip, "refused: a token for no robot");
            let reason = format!("this command is not known here: copy it whole, or {again}");
            Failure::new(StatusCode::UNAUTHORIZED, reason)
        }
        Refused::Expired(until) => {
            let until = utc(Duration::from_secs(until));
            Failure::new(
                StatusCode::GONE,
                format!("this command was valid until {until}: {again}"),
            )
        }
        Refused::Used => Failure::new(
            StatusCode::GONE,
            format!(
                "this command was used already: {again}; if nobody here has used it, first `robot remove` and `robot add`, for somebody else has the passwords"
            ),
        ),
        Refused::Folder(reason) => {
            warn!("{reason}");
            Failure::unavailable("the bridge cannot give out bundles now: its log says why")
        }
    };
    Err(failure.into_response())
}
