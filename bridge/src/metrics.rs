// SPDX-License-Identifier: MPL-2.0

//! Counters and gauges for Prometheus: sums only, no robot's name and no secret.

use std::{fmt, sync::atomic::AtomicU64, time::Duration};

use droidrelay_wire::StreamState;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry, Unit},
};

use crate::{auth::Denial, clock::since_1970};

/// Seconds; requests that wait for something take up to a minute.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    method: &'static str,
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

/// How many there are of something now.
#[derive(Debug, Default)]
pub struct Sums {
    pub robots_online: i64,
    /// In the order of [`StreamState::ALL`], whatever the robots' presence.
    pub robots_by_state: [i64; StreamState::ALL.len()],
    pub views: usize,
    pub is_broker_connected: bool,
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

/// A new metric of this name.
fn metric<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::with_prefix("droidrelay_bridge");
        let to = &mut all;
        let seconds: Family<Route, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let started = Gauge::<f64, AtomicU64>::default();
        started.set(since_1970().as_secs_f64());
        let help = "When the bridge was started, since 1970";
        to.register_with_unit("start_time", help, Unit::Seconds, started);
        let help = "Time until the head of the answer";
        to.register_with_unit(
            "http_request_duration",
            help,
            Unit::Seconds,
            seconds.clone(),
        );
        Metrics {
            requests: metric(to, "http_requests", "Requests answered"),
            seconds,
            refusals: metric(
                to,
                "refused_credentials",
                "Requests without a credential that is right",
            ),
            commands: metric(
                to,
                "commands",
                "Commands for robots: acknowledged by the broker, or not",
            ),
            mediamtx: metric(to, "mediamtx_questions", "What MediaMTX asked and told"),
            webhooks: metric(to, "webhooks", "Webhooks called"),
            listeners: Present(metric(to, "event_listeners", "Listeners to events now")),
            waiting: Present(metric(
                to,
                "waiting_requests",
                "Requests that wait for a change now",
            )),
            robots: metric(to, "robots", "Robots by the state that they last told"),
            online: metric(to, "robots_online", "Robots online"),
            broker: metric(to, "broker_connected", "1 while the MQTT broker is there"),
            views: metric(
                to,
                "views",
                "Viewers that MediaMTX's hooks told of and that have not left",
            ),
            registry: all,
        }
    }
}

impl Metrics {
    /// Counts an answer, by the route that gave it.
    pub fn answered(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let route = route.to_owned();
        let labels = Route {
            route: route.clone(),
        };
        let seconds = took.as_secs_f64();
        self.seconds.get_or_create(&labels).observe(seconds);
        let labels = Answered {
            route,
            method,
            status,
        };
        self.requests.get_or_create(&labels).inc();
    }

    pub fn refused(&self, denial: Denial) {
        let reason = match denial {
            Denial::Missing => "missing",
            Denial::Wrong => "wrong",
            Denial::Limited(_) => "limited",
        };
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    pub fn command<E>(&self, what: &'static str, acknowledged: &Result<(), E>) {
        let result = result(acknowledged, "ok");
        self.commands.get_or_create(&Outcome { what, result }).inc();
    }

    /// A question of the media server's: who may do this?
    pub fn mediamtx_asked(&self, what: &'static str, result: &'static str) {
        self.mediamtx.get_or_create(&Outcome { what, result }).inc();
    }

    /// A hook of the media server's.
    pub fn mediamtx_told<E>(&self, what: &'static str, done: &Result<(), E>) {
        self.mediamtx_asked(what, result(done, "done"));
    }

    pub fn webhook<E>(&self, what: &'static str, delivered: &Result<(), E>) {
        let result = result(delivered, "delivered");
        self.webhooks.get_or_create(&Outcome { what, result }).inc();
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, sums: &Sums) -> Result<String, fmt::Error> {
        for (state, count) in StreamState::ALL.iter().zip(sums.robots_by_state) {
            let state = state.as_str();
            self.robots.get_or_create(&InState { state }).set(count);
        }
        self.online.set(sums.robots_online);
        self.views
            .set(i64::try_from(sums.views).unwrap_or(i64::MAX));
        self.broker.set(sums.is_broker_connected.into());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn result<E>(result: &Result<(), E>, ok: &'static str) -> &'static str {
    if result.is_ok() { ok } else { "failed" }
}
