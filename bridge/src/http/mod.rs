// SPDX-License-Identifier: MPL-2.0

//! The HTTP surface.

mod auth;
mod commands;
mod enroll;
mod events;
mod media;
mod mediamtx;
mod metrics;
mod page;
mod poll;
mod request;
mod share;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, STRICT_TRANSPORT_SECURITY},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, patch, post, put},
};
use droidrelay_wire::{
    Command,
    words::{enroll::PATH, hook},
};
use serde_json::{Value, json};

use crate::{bridge::Bridge, failure::Failure, serve::CameByTls};

type Routes = Vec<(&'static str, MethodRouter<Arc<Bridge>>)>;

/// What needs a credential.
fn routes() -> Routes {
    let asking = |command: Command| post(commands::command).layer(Extension(command));
    vec![
        ("/stream/start", asking(Command::start())),
        ("/stream/stop", asking(Command::stop())),
        ("/robots", get(commands::list)),
        ("/robots/{robot}", get(commands::one)),
        ("/robots/{robot}/stream", get(poll::poll)),
        ("/robots/{robot}/stream/start", asking(Command::start())),
        ("/robots/{robot}/stream/stop", asking(Command::stop())),
        ("/robots/{robot}/stream/keyframe", asking(Command::Keyframe)),
        ("/robots/{robot}/stream/state", put(poll::report)),
        (
            "/robots/{robot}/share",
            post(share::share).delete(share::revoke),
        ),
        ("/robots/{robot}/share/{id}", delete(share::revoke)),
        ("/mediamtx/auth", post(mediamtx::auth)),
        (hook::PATH, post(mediamtx::hook)),
        ("/events", get(events::events)),
        ("/metrics", get(metrics::metrics)),
    ]
}

/// What needs a credential, or a share link for the robot.
fn media_routes() -> Routes {
    vec![
        ("/robots/{robot}/whep", post(media::whep)),
        (
            "/robots/{robot}/whep/{session}",
            patch(media::whep).delete(media::whep),
        ),
        ("/robots/{robot}/hls/{file}", get(media::hls)),
    ]
}

/// What needs none.
fn open_routes() -> Routes {
    vec![
        ("/", get(index)),
        ("/healthz", get(health)),
        ("/openapi.json", get(openapi)),
        // A token of its own, which is no user's.
        (PATH, post(enroll::enroll).get(enroll::status)),
    ]
}

/// The router; to be served with the peer's address as [`ConnectInfo`].
pub fn app(bridge: Arc<Bridge>) -> Router {
    let router = |routes: Routes| {
        let add = |router: Router<Arc<Bridge>>, (path, methods)| router.route(path, methods);
        routes.into_iter().fold(Router::new(), add)
    };
    let behind_credential = router(routes()).route_layer(middleware::from_fn_with_state(
        bridge.clone(),
        auth::authenticate,
    ));
    let behind_link = router(media_routes()).route_layer(middleware::from_fn_with_state(
        bridge.clone(),
        auth::authenticate_looker,
    ));
    router(open_routes())
        .merge(behind_credential)
        .merge(behind_link)
        .fallback(async || Failure::not_found("there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take this method",
            )
        })
        .layer(middleware::from_fn(harden))
        .layer(middleware::from_fn_with_state(
            bridge.clone(),
            metrics::count,
        ))
        .with_state(bridge)
}

/// A greeting for apps; for people, the page.
async fn index(State(bridge): State<Arc<Bridge>>, headers: HeaderMap) -> Response {
    if page::is_wanted(&headers) {
        return page::answer(&bridge.fleet.watch_urls);
    }
    Json(json!({ "msg": "Media bridge service running!" })).into_response()
}

/// Every endpoint, in OpenAPI's words.
async fn openapi() -> Response {
    const DOCUMENT: &str = include_str!("../../openapi.json");
    ([(CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

/// Open to everybody, so it tells no address.
async fn health(State(bridge): State<Arc<Bridge>>) -> (StatusCode, Json<Value>) {
    let fault = match bridge.fleet.is_up() {
        true => bridge.fleet.unfit(),
        false => Some("the MQTT broker is out of reach".to_owned()),
    };
    match fault {
        None => (StatusCode::OK, Json(json!({ "status": "ok" }))),
        Some(fault) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": fault })),
        ),
    }
}

async fn harden(request: Request, next: Next) -> Response {
    const OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");
    /// Half a year; only for what has come by TLS, and for this name alone.
    const HTTPS_ONLY: HeaderValue = HeaderValue::from_static("max-age=15552000");
    let came_by_tls = request.extensions().get::<CameByTls>().is_some();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(OPTIONS, HeaderValue::from_static("nosniff"));
    if came_by_tls {
        headers.insert(STRICT_TRANSPORT_SECURITY, HTTPS_ONLY);
    }
    response
}

#[cfg(test)]
mod tests;
