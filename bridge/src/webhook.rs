// SPDX-License-Identifier: MPL-2.0

//! Tells others when something happens: signed JSON, a few tries, in tasks of its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::{
    Backoff, Cause, RobotState, Secret, StreamState,
    backoff::jitter,
    net::http::{Answer, Client, Query},
};
use parking_lot::Mutex;
use ring::hmac;
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tracing::{info, warn};

use crate::{
    clock::{since_1970, utc},
    metrics::Metrics,
    random::hex,
    view::{Availability, RobotView},
};

/// Calls that wait for one receiver; more are dropped and told in the log.
const QUEUE: usize = 256;
const TRIES: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(10);
/// Between tries: all of them take about a minute and a half.
const PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What webhooks tell of a robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RobotEvent {
    /// The robot has opened by itself: motion, a sound, its own switch.
    Opened,
    /// It has fallen silent.
    Offline,
    /// It is back.
    Online,
    /// It cannot deliver, or the media server refuses it.
    Error,
    /// Frames reach the media server.
    Live,
    /// The stream has ended.
    Idle,
}

impl RobotEvent {
    fn as_str(self) -> &'static str {
        match self {
            RobotEvent::Opened => "opened",
            RobotEvent::Offline => "offline",
            RobotEvent::Online => "online",
            RobotEvent::Error => "error",
            RobotEvent::Live => "live",
            RobotEvent::Idle => "idle",
        }
    }

    fn text(self, robot: &str, state: Option<&RobotState>) -> String {
        match self {
            RobotEvent::Opened => {
                let viewers = state.map_or(String::new(), |state| state.viewers.join(", "));
                match viewers.as_str() {
                    "" | "local" => format!("{robot} has opened its stream by itself"),
                    who => format!("{robot} has opened its stream by itself: {who}"),
                }
            }
            RobotEvent::Offline => format!("{robot} is offline"),
            RobotEvent::Online => format!("{robot} is online again"),
            RobotEvent::Error => match state.and_then(RobotState::reason) {
                Some(reason) => format!("{robot} cannot stream: {reason}"),
                None => format!("{robot} cannot stream"),
            },
            RobotEvent::Live => format!("{robot} is live"),
            RobotEvent::Idle => format!("{robot} has ended its stream"),
        }
    }
}

/// One receiver, as the configuration names it.
pub struct Webhook {
    pub client: Client,
    /// Signs; None: nothing is signed.
    pub key: Option<hmac::Key>,
    pub events: Vec<RobotEvent>,
    /// None: all.
    pub robots: Option<Vec<String>>,
}

impl Webhook {
    fn wants(&self, event: RobotEvent, robot: &str) -> bool {
        let robots = self.robots.as_ref();
        self.events.contains(&event)
            && robots.is_none_or(|robots| robots.iter().any(|name| name == robot))
    }
}

/// The key in a receiver's secret: as the Standard Webhooks specification has it (`whsec_` and
/// base64), or any other text as it is.
pub fn key(secret: &Secret) -> Result<hmac::Key, String> {
    let bytes = match secret.expose().strip_prefix("whsec_") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .map_err(|_| "what follows \"whsec_\" in the secret is not base64".to_owned())?,
        None => secret.expose().as_bytes().to_vec(),
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// What is to be sent.
struct Call {
    id: String,
    event: RobotEvent,
    robot: String,
    body: String,
}

/// What each robot did last, also while the broker was away, and who is told; pure but for the
/// queues.
#[derive(Default)]
pub struct Webhooks {
    last: Mutex<HashMap<String, Last>>,
    /// Each with its queue.
    receivers: Vec<(Arc<Webhook>, mpsc::Sender<Arc<Call>>)>,
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Last {
    availability: Availability,
    state: Option<StreamState>,
}

impl Webhooks {
    /// Delivers in `tasks`.
    pub fn start(
        webhooks: Vec<Webhook>,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<()>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let receiver = |webhook: Webhook| {
            let (webhook, (queue, calls)) = (Arc::new(webhook), mpsc::channel(QUEUE));
            tasks.spawn_on(deliver(webhook.clone(), calls, metrics.clone()), runtime);
            (webhook, queue)
        };
        Webhooks {
            last: Mutex::default(),
            receivers: webhooks.into_iter().map(receiver).collect(),
        }
    }

    /// A robot has said something; does not wait.
    pub fn hear(&self, robot: &str, view: &RobotView, now: Duration) {
        if self.receivers.is_empty() {
            return;
        }
        for event in self.note(robot, view) {
            self.call(event, robot, view, now);
        }
    }

    /// What has happened by this view, beside the last one. Of a robot that was not known before,
    /// nothing: a bridge that was restarted tells no old news.
    fn note(&self, robot: &str, view: &RobotView) -> Vec<RobotEvent> {
        let mut all = self.last.lock();
        let last = all.entry(robot.to_owned()).or_default();
        let before = last.clone();
        let mut events = Vec::new();
        if view.availability != Availability::Unknown {
            last.availability = view.availability;
            match (before.availability, view.availability) {
                (Availability::Online, Availability::Offline) => events.push(RobotEvent::Offline),
                (Availability::Offline, Availability::Online) => events.push(RobotEvent::Online),
                _ => {}
            }
        }
        if let Some(state) = view.state.as_deref() {
            last.state = Some(state.state.clone());
            if let Some(old) = before.state.filter(|old| *old != state.state) {
                if old == StreamState::Idle && state.cause == Cause::Local {
                    events.push(RobotEvent::Opened);
                }
                events.extend(match &state.state {
                    StreamState::Live => Some(RobotEvent::Live),
                    StreamState::Idle => Some(RobotEvent::Idle),
                    StreamState::Error | StreamState::Refused => Some(RobotEvent::Error),
                    StreamState::Starting | StreamState::Backoff | StreamState::Other(_) => None,
                });
            }
        }
        events
    }

    fn call(&self, event: RobotEvent, robot: &str, view: &RobotView, now: Duration) {
        let state = view.state.as_deref();
        let body = json!({
            "event": event.as_str(),
            "robot": robot,
            "time": utc(now),
            "text": event.text(robot, state),
            "online": view.availability.known(),
            "state": state,
        });
        let since = state.map_or("", |state| state.since.as_str());
        let call = Arc::new(Call {
            id: id(event, robot, since, now),
            event,
            robot: robot.to_owned(),
            body: body.to_string(),
        });
        for (webhook, queue) in &self.receivers {
            if webhook.wants(event, robot) && queue.try_send(call.clone()).is_err() {
                let (event, url) = (event.as_str(), webhook.client.url());
                warn!(robot, event, "webhook {url}: too many calls wait, dropped");
            }
        }
    }
}

/// The same for the same event at bridges side by side, which all tell it: a receiver that
/// keeps ids sees it once.
fn id(event: RobotEvent, robot: &str, since: &str, now: Duration) -> String {
    // Of presence nobody says since when it is as it is.
    let when = match event {
        RobotEvent::Offline | RobotEvent::Online => (now.as_secs() / 60).to_string(),
        _ => since.to_owned(),
    };
    let text = format!("{} {robot} {when}", event.as_str());
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("msg_{}", hex(&digest.as_ref()[..12]))
}

async fn deliver(
    webhook: Arc<Webhook>,
    mut calls: mpsc::Receiver<Arc<Call>>,
    metrics: Arc<Metrics>,
) {
    let url = webhook.client.url();
    while let Some(call) = calls.recv().await {
        let event = call.event.as_str();
        let result = try_again_and_again(&webhook, &call).await;
        metrics.webhook(event, &result);
        match result {
            Ok(()) => info!(robot = call.robot, event, "webhook {url}: delivered"),
            Err(err) => warn!(robot = call.robot, event, "webhook {err}: given up"),
        }
    }
}

async fn try_again_and_again(webhook: &Webhook, call: &Call) -> Result<(), String> {
    let client = &webhook.client;
    let mut backoff = Backoff::new(PAUSE, MAX_PAUSE);
    let mut last = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            sleep(backoff.next(jitter())).await;
        }
        let query = Query {
            headers: headers(webhook.key.as_ref(), call, since_1970().as_secs()),
            ..Query::with_json(Method::POST, "", call.body.clone())
        };
        match client.send(&query, PATIENCE).await {
            Ok(answer) if answer.status.is_success() => return Ok(()),
            Ok(Answer { status, .. }) => {
                last = format!("{}: {status}", client.url());
                let may_pass = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                if status.is_client_error() && !may_pass.contains(&status) {
                    break;
                }
            }
            Err(err) => last = err,
        }
    }
    Err(last)
}

/// As the Standard Webhooks specification has them.
fn headers(key: Option<&hmac::Key>, call: &Call, timestamp: u64) -> HeaderMap {
    let signature = key.map(|key| signature(key, &call.id, timestamp, &call.body));
    let mut headers = HeaderMap::new();
    for (name, text) in [
        ("webhook-id", Some(call.id.clone())),
        ("webhook-timestamp", Some(timestamp.to_string())),
        ("webhook-signature", signature),
    ] {
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

fn signature(key: &hmac::Key, id: &str, timestamp: u64, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let mac = hmac::sign(key, signed.as_bytes());
    format!("v1,{}", STANDARD.encode(mac.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(online: Option<bool>, state: &str) -> RobotView {
        RobotView {
            availability: match online {
                None => Availability::Unknown,
                Some(true) => Availability::Online,
                Some(false) => Availability::Offline,
            },
            state: serde_json::from_str(state).ok().map(Arc::new),
        }
    }

    #[test]
    fn what_happens_is_told_once_and_nothing_of_the_time_before() {
        let webhooks = Webhooks::default();
        let mut seen = Vec::new();
        for (online, state) in [
            (Some(true), ""),
            (Some(true), r#"{"state":"idle"}"#),
            (
                Some(true),
                r#"{"state":"starting","cause":"local","viewers":["motion"]}"#,
            ),
            (Some(true), r#"{"state":"live","cause":"local"}"#),
            (Some(true), r#"{"state":"live","cause":"local"}"#),
            (None, ""),
            (Some(true), r#"{"state":"live","cause":"local"}"#),
            (Some(false), r#"{"state":"live","cause":"local"}"#),
            (Some(true), r#"{"state":"idle","cause":"boot"}"#),
            (Some(true), r#"{"state":"starting","cause":"mqtt"}"#),
            (Some(true), r#"{"state":"refused","cause":"mqtt"}"#),
        ] {
            seen.extend(webhooks.note("r1", &view(online, state)));
        }
        use RobotEvent::*;
        assert_eq!(seen, [Opened, Live, Offline, Online, Idle, Error]);
        assert!(
            Webhooks::default()
                .note("r1", &view(Some(false), r#"{"state":"live"}"#))
                .is_empty()
        );
    }

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The secret and message of its example; by
        // `printf %s "$id.$time.$body" | openssl dgst -sha256 -hmac KEY -binary | base64`.
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(
            &key(&secret).unwrap(),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            body,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(key(&Secret::new("whsec_%")).is_err());
    }

    #[test]
    fn bridges_side_by_side_name_one_event_alike() {
        let at = Duration::from_secs(1_700_000_000);
        let one = id(RobotEvent::Opened, "r1", "2026-11-25T08:00:00Z", at);
        let late = at + Duration::from_secs(2);
        assert_eq!(
            one,
            id(RobotEvent::Opened, "r1", "2026-11-25T08:00:00Z", late)
        );
        assert_ne!(
            one,
            id(RobotEvent::Opened, "r1", "2026-11-25T08:00:01Z", at)
        );
    }
}
