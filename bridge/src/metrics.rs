// SPDX-License-Identifier: MPL-2.0

//! Counters and gauges for Prometheus: sums only, no robot's name and no secret.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Extension,
    extract::{MatchedPath, Request, State},
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse, Response},
};
use droidrelay_wire::StreamState;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    app::Bridge,
    auth::{Denial, User},
    failure::Failure,
    fleet::Link,
};

/// Seconds; requests that wait for something take up to a minute.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    method: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    what: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// What is counted.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    refusals: Family<Reason, Counter>,
    commands: Family<Outcome, Counter>,
    mediamtx: Family<Outcome, Counter>,
    webhooks: Family<Outcome, Counter>,
    /// Who listens to events.
    pub listeners: Present,
    /// Polls and requests that wait for something.
    pub waiting: Present,
    robots: Family<InState, Gauge>,
    online: Gauge,
    broker: Gauge,
    views: Gauge,
}

/// How many of something there are now.
#[derive(Debug, Clone, Default)]
pub struct Present(Gauge);

impl Present {
    /// One more, until what is given back is dropped.
    pub fn count(&self) -> Counted {
        self.0.inc();
        Counted(self.0.clone())
    }
}

pub struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: Family<Route, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("droidrelay_bridge"),
            requests: Family::default(),
            seconds,
            refusals: Family::default(),
            commands: Family::default(),
            mediamtx: Family::default(),
            webhooks: Family::default(),
            listeners: Present::default(),
            waiting: Present::default(),
            robots: Family::default(),
            online: Gauge::default(),
            broker: Gauge::default(),
            views: Gauge::default(),
        };
        let started = Gauge::<f64, AtomicU64>::default();
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        started.set(since_1970.as_secs_f64());
        let registry = &mut metrics.registry;
        registry.register(
            "http_requests",
            "Requests answered",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time until the head of the answer",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "refused_credentials",
            "Requests without a credential that is right",
            metrics.refusals.clone(),
        );
        registry.register(
            "commands",
            "Commands for robots: acknowledged by the broker, or not",
            metrics.commands.clone(),
        );
        registry.register(
            "mediamtx_questions",
            "What MediaMTX asked and told",
            metrics.mediamtx.clone(),
        );
        registry.register("webhooks", "Webhooks called", metrics.webhooks.clone());
        registry.register(
            "event_listeners",
            "Listeners to events now",
            metrics.listeners.0.clone(),
        );
        registry.register(
            "waiting_requests",
            "Requests that wait for a change now",
            metrics.waiting.0.clone(),
        );
        registry.register(
            "robots",
            "Robots by the state that they last told",
            metrics.robots.clone(),
        );
        registry.register("robots_online", "Robots online", metrics.online.clone());
        registry.register(
            "broker_connected",
            "1 while the MQTT broker is there",
            metrics.broker.clone(),
        );
        registry.register(
            "views",
            "Viewers that MediaMTX's hooks told of and that have not left",
            metrics.views.clone(),
        );
        registry.register_with_unit(
            "start_time",
            "When the bridge was started, since 1970",
            Unit::Seconds,
            started,
        );
        metrics
    }
}

impl Metrics {
    pub fn refused(&self, denial: Denial) {
        let reason = match denial {
            Denial::Missing => "missing",
            Denial::Wrong => "wrong",
            Denial::Limited(_) => "limited",
        };
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    pub fn command(&self, what: &'static str, is_acknowledged: bool) {
        let result = if is_acknowledged { "ok" } else { "failed" };
        self.commands.get_or_create(&Outcome { what, result }).inc();
    }

    pub fn mediamtx(&self, what: &'static str, result: &'static str) {
        self.mediamtx.get_or_create(&Outcome { what, result }).inc();
    }

    pub fn webhook(&self, what: &'static str, result: &'static str) {
        self.webhooks.get_or_create(&Outcome { what, result }).inc();
    }
}

/// Counts each answer, by the route that gave it.
pub async fn count(State(bridge): State<Arc<Bridge>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    // Anybody may make up methods.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE") => known,
        _ => "other",
    };
    let method = method.to_owned();
    let response = next.run(request).await;
    let metrics = &bridge.metrics;
    let took: Duration = started.elapsed();
    let labels = Route {
        route: route.clone(),
    };
    metrics
        .seconds
        .get_or_create(&labels)
        .observe(took.as_secs_f64());
    let status = response.status().as_u16();
    let answered = Answered {
        route,
        method,
        status,
    };
    metrics.requests.get_or_create(&answered).inc();
    response
}

/// All of it, as Prometheus reads it.
pub async fn metrics(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
) -> Result<Response, Failure> {
    if !user.looks() {
        return Err(Failure::forbidden(format!(
            "user {:?} has no right to the metrics",
            user.name
        )));
    }
    let metrics = &bridge.metrics;
    let sums = bridge.fleet.sums();
    for (state, count) in StreamState::ALL.iter().zip(sums.by_state) {
        let labels = InState {
            state: state.as_str(),
        };
        metrics.robots.get_or_create(&labels).set(count);
    }
    metrics.online.set(sums.online);
    let views = i64::try_from(bridge.views.len()).unwrap_or(i64::MAX);
    metrics.views.set(views);
    let is_up = matches!(bridge.fleet.link(), Link::Up(_));
    metrics.broker.set(is_up.into());
    let mut text = String::new();
    encode(&mut text, &metrics.registry)
        .map_err(|_| Failure::unavailable("the metrics cannot be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
