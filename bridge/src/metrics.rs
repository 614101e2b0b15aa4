// SPDX-License-Identifier: MPL-2.0

//! Counters and gauges for Prometheus: sums only, no robot's name and no secret.

use std::{borrow::Cow, fmt, sync::atomic::AtomicU64, time::Duration};

use droidrelay_wire::StreamState;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry, Unit},
};

use crate::{auth::Denial, clock::since_1970};

/// Seconds; requests that wait for something take up to a minute.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;

fn count<const N: usize>(counters: &Counters<N>, labels: Labels<N>) {
    counters.get_or_create(&labels).inc();
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
    requests: Counters<3>,
    seconds: Family<Labels<1>, Histogram>,
    refusals: Counters<1>,
    commands: Counters<2>,
    mediamtx: Counters<2>,
    webhooks: Counters<2>,
    /// Who listens to events.
    pub listeners: Present,
    /// Polls and requests that wait for something.
    pub waiting: Present,
    robots: Family<Labels<1>, Gauge>,
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
        let seconds: Family<Labels<1>, Histogram> =
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
        let by_route = [("route", route.to_owned().into())];
        let seconds = self.seconds.get_or_create(&by_route);
        seconds.observe(took.as_secs_f64());
        let [route] = by_route;
        let status = ("status", status.to_string().into());
        count(&self.requests, [route, ("method", method.into()), status]);
    }

    pub fn refused(&self, denial: Denial) {
        let reason = match denial {
            Denial::Missing => "missing",
            Denial::Wrong => "wrong",
            Denial::Limited(_) => "limited",
            Denial::Busy => "busy",
        };
        count(&self.refusals, [("reason", reason.into())]);
    }

    pub fn command<E>(&self, what: &'static str, acknowledged: &Result<(), E>) {
        outcome(&self.commands, what, acknowledged, ["ok", "failed"]);
    }

    /// A question of the media server's: who may do this?
    pub fn mediamtx_asked<T, E>(&self, what: &'static str, allowed: &Result<T, E>) {
        outcome(&self.mediamtx, what, allowed, ["allowed", "refused"]);
    }

    /// A hook of the media server's.
    pub fn mediamtx_told<E>(&self, what: &'static str, done: &Result<(), E>) {
        outcome(&self.mediamtx, what, done, ["done", "failed"]);
    }

    pub fn webhook<E>(&self, what: &'static str, delivered: &Result<(), E>) {
        outcome(&self.webhooks, what, delivered, ["delivered", "failed"]);
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, sums: &Sums) -> Result<String, fmt::Error> {
        for (state, count) in StreamState::ALL.iter().zip(sums.robots_by_state) {
            let labels = [("state", state.as_str().into())];
            self.robots.get_or_create(&labels).set(count);
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

/// Counts a success or a failure, each by its word.
fn outcome<T, E>(
    counters: &Counters<2>,
    what: &'static str,
    result: &Result<T, E>,
    [ok, failed]: [&'static str; 2],
) {
    let result = if result.is_ok() { ok } else { failed };
    count(counters, [("what", what.into()), ("result", result.into())]);
}
