// SPDX-License-Identifier: MPL-2.0

//! WHEP's signalling and HLS, handed on to MediaMTX: the page needs no other address than the
//! bridge's, and no other sign-in. WebRTC's media goes straight to MediaMTX.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, LINK, LOCATION,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use droidrelay_wire::net::http::{Answer, Client, Incoming, Query};
use futures_util::stream::try_unfold;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::warn;

use super::{
    auth::client,
    request::{Caller, Shared},
};
use crate::{auth::Right, bridge::Bridge, failure::Failure, requests::InProgress};

/// MediaMTX answers when the robot is live: it may wait for that longer than any robot takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// For the next bytes of an answer that has begun.
const STALL: Duration = Duration::from_secs(20);
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// What MediaMTX needs of a request, and whoever has asked of its answer. No cookie is among them:
/// without one, MediaMTX names its HLS session in the addresses of a playlist.
const ASKED: [HeaderName; 4] = [ACCEPT, AUTHORIZATION, CONTENT_TYPE, IF_MATCH];
const ANSWERED: [HeaderName; 5] = [CONTENT_TYPE, CONTENT_LENGTH, ETAG, LINK, ACCEPT_PATCH];

#[derive(Deserialize)]
pub struct Place {
    robot: String,
    /// None: it is to be made.
    session: Option<String>,
}

/// Hands one request of WHEP on, for a viewer of the robot.
pub async fn whep(
    State(bridge): Shared,
    Extension(user): Caller,
    Extension(held): Extension<Arc<InProgress>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(Place {
        robot: name,
        session,
    }): Path<Place>,
    request: Request,
) -> Result<Response, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    let Some(media) = &bridge.mediamtx.webrtc else {
        return Err(Failure::not_found(
            "WHEP is not handed on here: set mediamtx.webrtc, or ask the media server itself",
        ));
    };
    let mut path = format!("/{}/whep", robot.path);
    if let Some(session) = session {
        if !is_plain(&session, b"-") {
            return Err(Failure::not_found("there is no such session"));
        }
        path = format!("{path}/{session}");
    }
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|_| Failure::bad_request("the body did not come whole"))?;
    let asked = Asked::new(&bridge, media, peer, &parts, body.to_bytes());
    let answer = asked.hand_on(&path, parts.uri.query()).await?;
    // Relative to what was asked, so that it holds behind any proxy.
    let location = location(&answer.headers).and_then(|location| location.rsplit_once("/whep/"));
    let location = location.map(|(_, session)| format!("whep/{session}"));
    let mut response = respond(answer, held);
    if let Some(location) = location.and_then(|it| HeaderValue::try_from(it).ok()) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

#[derive(Deserialize)]
pub struct Piece {
    robot: String,
    file: String,
}

/// Hands on the request for a playlist, or for a piece of the stream.
pub async fn hls(
    State(bridge): Shared,
    Extension(user): Caller,
    Extension(held): Extension<Arc<InProgress>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(Piece { robot: name, file }): Path<Piece>,
    request: Request,
) -> Result<Response, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    let Some(media) = &bridge.mediamtx.hls else {
        return Err(Failure::not_found(
            "HLS is not handed on here: set mediamtx.hls, or ask the media server itself",
        ));
    };
    let is_of_hls = [".m3u8", ".mp4", ".ts"]
        .iter()
        .any(|end| file.ends_with(end));
    if !is_of_hls || !is_plain(&file, b"-_.") {
        return Err(Failure::not_found("there is no such file"));
    }
    let path = format!("/{}/{file}", robot.path);
    let (parts, _) = request.into_parts();
    let asked = Asked::new(&bridge, media, peer, &parts, Bytes::new());
    let mut answer = asked.hand_on(&path, parts.uri.query()).await?;
    // MediaMTX tries whether it is given a cookie back, by one redirect to the same place.
    if answer.status.is_redirection()
        && let Some((place, query)) = location(&answer.headers).and_then(|it| it.split_once('?'))
        && place == path
    {
        answer = asked.hand_on(&path, Some(query)).await?;
    }
    Ok(respond(answer, held))
}

fn is_plain(text: &str, others: &[u8]) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    text.len() <= 128 && text.bytes().all(is_plain)
}

fn location(headers: &HeaderMap) -> Option<&str> {
    headers.get(LOCATION)?.to_str().ok()
}

/// What is handed on.
struct Asked<'a> {
    media: &'a Client,
    query: Query,
}

impl<'a> Asked<'a> {
    fn new(
        bridge: &Bridge,
        media: &'a Client,
        peer: SocketAddr,
        parts: &Parts,
        body: Bytes,
    ) -> Self {
        let mut headers: HeaderMap = ASKED
            .into_iter()
            .filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())))
            .collect();
        // Whom the media server tells the bridge of when it asks who may.
        let ip = client(&bridge.proxies, peer.ip(), &parts.headers).to_string();
        if let Ok(ip) = HeaderValue::from_str(&ip) {
            headers.insert(FORWARDED, ip);
        }
        let method = parts.method.clone();
        Asked {
            media,
            query: Query {
                method,
                path: String::new(),
                headers,
                body,
            },
        }
    }

    async fn hand_on(&self, path: &str, query: Option<&str>) -> Result<Answer<Incoming>, Failure> {
        let mark = if query.is_some() { "?" } else { "" };
        let query = Query {
            path: format!("{path}{mark}{}", query.unwrap_or_default()),
            ..self.query.clone()
        };
        self.media.open(&query, PATIENCE).await.map_err(|err| {
            warn!(path, "not handed on: {err}");
            Failure::new(
                StatusCode::BAD_GATEWAY,
                "the media server is out of reach of the bridge",
            )
        })
    }
}

/// MediaMTX's answer, passed on as it comes; nothing of it is kept here.
fn respond(answer: Answer<Incoming>, held: Arc<InProgress>) -> Response {
    let pieces = try_unfold((answer.body, held), async |(mut body, held)| {
        let next = timeout(STALL, body.frame()).await;
        let Some(frame) = next.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? else {
            return Ok(None);
        };
        let data = frame.map_err(io::Error::other)?.into_data();
        Ok::<_, io::Error>(Some((data.unwrap_or_default(), (body, held))))
    });
    let mut response = (answer.status, Body::from_stream(pieces)).into_response();
    let told = response.headers_mut();
    for name in ANSWERED {
        for value in answer.headers.get_all(&name) {
            told.append(&name, value.clone());
        }
    }
    response
}
