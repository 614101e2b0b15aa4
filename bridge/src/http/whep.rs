// SPDX-License-Identifier: MPL-2.0

//! WHEP's signalling, handed on to MediaMTX: the page needs no other address than the bridge's, and
//! no other sign-in. Media itself goes straight to MediaMTX.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{ConnectInfo, Path, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, LINK, LOCATION},
    },
    response::{IntoResponse, Response},
};
use droidrelay_wire::net::http::Query;
use serde::Deserialize;
use tracing::warn;

use super::{
    auth::client,
    request::{Caller, Shared},
};
use crate::{auth::Right, failure::Failure};

/// MediaMTX answers when the robot is live: it may wait for that longer than any robot takes.
const PATIENCE: Duration = Duration::from_secs(60);
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// What MediaMTX needs of a request, and whoever has asked of its answer.
const ASKED: [HeaderName; 4] = [ACCEPT, AUTHORIZATION, CONTENT_TYPE, IF_MATCH];
const ANSWERED: [HeaderName; 4] = [CONTENT_TYPE, ETAG, LINK, ACCEPT_PATCH];

#[derive(Deserialize)]
pub struct Place {
    robot: String,
    /// None: it is to be made.
    session: Option<String>,
}

/// Hands one request on, for a viewer of the robot.
pub async fn whep(
    State(bridge): Shared,
    Extension(user): Caller,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(Place {
        robot: name,
        session,
    }): Path<Place>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    let Some(media) = &bridge.mediamtx.webrtc else {
        return Err(Failure::not_found(
            "WHEP is not handed on here: set mediamtx.webrtc, or ask the media server itself",
        ));
    };
    let mut path = format!("/{}/whep", robot.path);
    if let Some(session) = session {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if session.len() > 64 || !session.bytes().all(is_plain) {
            return Err(Failure::not_found("there is no such session"));
        }
        path = format!("{path}/{session}");
    }
    let mut handed: HeaderMap = ASKED
        .into_iter()
        .filter_map(|name| Some((name.clone(), headers.get(name)?.clone())))
        .collect();
    // Whom the media server tells the bridge of when it asks who may.
    let ip = client(&bridge.proxies, peer.ip(), &headers).to_string();
    if let Ok(ip) = HeaderValue::from_str(&ip) {
        handed.insert(FORWARDED, ip);
    }
    let query = Query {
        method,
        path,
        headers: handed,
        body,
    };
    let answer = media.send(&query, PATIENCE).await.map_err(|err| {
        warn!(robot = name, "WHEP is not handed on: {err}");
        Failure::new(
            StatusCode::BAD_GATEWAY,
            "the media server is out of reach of the bridge",
        )
    })?;
    let mut response = (answer.status, answer.body).into_response();
    let told = response.headers_mut();
    told.remove(CONTENT_TYPE);
    for name in ANSWERED {
        for value in answer.headers.get_all(&name) {
            told.append(&name, value.clone());
        }
    }
    // Relative to what was asked, so that it holds behind any proxy.
    let location = answer.headers.get(LOCATION).and_then(|it| it.to_str().ok());
    if let Some((_, session)) = location.and_then(|location| location.rsplit_once("/whep/"))
        && let Ok(location) = HeaderValue::from_str(&format!("whep/{session}"))
    {
        told.insert(LOCATION, location);
    }
    Ok(response)
}
