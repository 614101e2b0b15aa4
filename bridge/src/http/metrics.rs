// SPDX-License-Identifier: MPL-2.0

//! Metrics: each answer is counted, and all of it told.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension,
    extract::{MatchedPath, Request, State},
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::request::{Caller, Shared};
use crate::{bridge::Bridge, failure::Failure, metrics::Sums};

/// Counts each answer, by the route that gave it.
pub async fn count(State(bridge): State<Arc<Bridge>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let method = match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        // Anybody may make up methods.
        _ => "other",
    };
    let response = next.run(request).await;
    let status = response.status().as_u16();
    bridge
        .metrics
        .answered(&route, method, status, started.elapsed());
    response
}

/// All of it, as Prometheus reads it.
pub async fn metrics(State(bridge): Shared, Extension(user): Caller) -> Result<Response, Failure> {
    if !user.looks() {
        return Err(Failure::forbidden(format!(
            "user {:?} has no right to the metrics",
            user.name
        )));
    }
    let sums = Sums {
        views: bridge.views.len(),
        ..bridge.fleet.sums()
    };
    let text = bridge
        .metrics
        .text(&sums)
        .map_err(|_| Failure::unavailable("the metrics cannot be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
