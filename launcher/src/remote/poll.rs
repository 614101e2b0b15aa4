// SPDX-License-Identifier: MPL-2.0

//! `--poll`: without a broker the wanted state comes from the bridge, by long poll, and the
//! robot's state goes back to it. The bridge decides as a valve would; here it is only followed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use droidrelay_wire::{Backoff, backoff::jitter};
use hyper::{Method, StatusCode, header};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    http::{Answer, Client},
    net::Stop,
};

/// How long the bridge may keep a question while nothing changes, in seconds.
const WAIT: u64 = 30;
/// How much longer it may take.
const GRACE: Duration = Duration::from_secs(15);
/// Without any answer for this long, what was started without a lease ends: nobody could stop it.
pub const SILENCE: Duration = Duration::from_secs(120);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A server that does not wait is not asked more often.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest pause that a server can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For one report of the state; at the end of the program, for the last one.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
const LAST_REPORT_TIMEOUT: Duration = Duration::from_millis(300);
/// The holder of a start without id, as with MQTT.
const ANYBODY: &str = "*";

/// What comes of polling.
#[derive(Debug)]
pub enum PollEvent {
    Wanted(Wanted),
    /// A question was not answered: why, and when the next one follows.
    Failed {
        reason: String,
        pause: Duration,
    },
    /// None has been for [`SILENCE`].
    Silent,
    /// The state could not be reported: why.
    NotReported(String),
}

/// What the bridge wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub version: String,
    /// Seconds that are left of each id's lease; None: until a stop.
    pub leases: BTreeMap<String, Option<f64>>,
    pub keyframe: u64,
}

impl Wanted {
    fn parse(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let version = body.get("version").filter(|version| version.is_number())?;
        let leases = body.get("wanted")?.get("leases")?.as_array()?;
        let lease = |lease: &Value| {
            let id = match lease.get("id")? {
                Value::Null => ANYBODY,
                id => id.as_str()?,
            };
            let left = match lease.get("lease")? {
                Value::Null => None,
                left => Some(left.as_f64().filter(|left| left.is_finite())?),
            };
            Some((id.to_owned(), left))
        };
        Some(Wanted {
            version: version.to_string(),
            leases: leases.iter().map(lease).collect::<Option<_>>()?,
            keyframe: body.get("keyframe").and_then(Value::as_u64).unwrap_or(0),
        })
    }
}

/// Asks with one client and reports `states` with the other, until the end. `silence`: see
/// [`SILENCE`].
pub async fn run(
    (mut asking, mut reporting): (Client, Client),
    silence: Duration,
    mut states: watch::Receiver<Option<String>>,
    mut stop: Stop,
    on_event: impl Fn(PollEvent),
) {
    let mut reported = None;
    tokio::select! {
        () = stop.asked() => {}
        () = ask(&mut asking, silence, &on_event) => {}
        () = report(&mut reporting, &mut states, &mut reported, &on_event) => {}
    }
    // The valves are closed by now, or will be.
    let last = states.borrow().clone();
    if let Some(last) = last.filter(|last| reported.as_ref() != Some(last)) {
        // Without it, the bridge knows by our silence.
        let _ = request(
            &mut reporting,
            LAST_REPORT_TIMEOUT,
            Method::PUT,
            "/state",
            Some(&last),
        )
        .await;
    }
}

async fn ask(client: &mut Client, silence: Duration, on_event: &impl Fn(PollEvent)) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut version = None;
    let mut answered = Instant::now();
    let mut silent = false;
    loop {
        let asked = Instant::now();
        let since = version
            .as_ref()
            .map_or(String::new(), |version| format!("&since={version}"));
        let path = format!("?wait={WAIT}{since}");
        let mut limit = Duration::from_secs(WAIT) + GRACE;
        if !silent {
            limit = limit.min((answered + silence).saturating_duration_since(asked));
        }
        let answer = request(client, limit, Method::GET, &path, None).await;
        let pause = match answer.and_then(|answer| read(&answer)) {
            Ok(wanted) => {
                answered = Instant::now();
                silent = false;
                backoff.reset();
                let same = version.as_ref() == Some(&wanted.version);
                version = Some(wanted.version.clone());
                on_event(PollEvent::Wanted(wanted));
                if same {
                    SHORTEST.saturating_sub(asked.elapsed())
                } else {
                    Duration::ZERO
                }
            }
            Err(fault) => {
                let pause = fault.pause(&mut backoff);
                on_event(PollEvent::Failed {
                    reason: fault.text,
                    pause,
                });
                pause
            }
        };
        let left = (answered + silence).saturating_duration_since(Instant::now());
        if !silent && left <= pause {
            sleep(left).await;
            silent = true;
            on_event(PollEvent::Silent);
            sleep(pause - left).await;
        } else {
            sleep(pause).await;
        }
    }
}

async fn report(
    client: &mut Client,
    states: &mut watch::Receiver<Option<String>>,
    reported: &mut Option<String>,
    on_event: &impl Fn(PollEvent),
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(state) = state.filter(|state| reported.as_ref() != Some(state)) {
            let put = request(client, REPORT_TIMEOUT, Method::PUT, "/state", Some(&state));
            if let Err(fault) = put.await {
                let pause = fault.pause(&mut backoff);
                on_event(PollEvent::NotReported(fault.text));
                sleep(pause).await;
                continue;
            }
            *reported = Some(state);
            backoff.reset();
        }
        if states.changed().await.is_err() {
            // Nobody is left who could have news.
            std::future::pending::<()>().await;
        }
    }
}

/// One request and its answer, if that is a success.
async fn request(
    client: &mut Client,
    limit: Duration,
    method: Method,
    path: &str,
    body: Option<&str>,
) -> Result<Answer, Fault> {
    let text = match timeout(limit, client.request(method, path, body)).await {
        Ok(Ok(answer)) if answer.status.is_success() => return Ok(answer),
        Ok(Ok(answer)) => return Err(fault_of(&answer)),
        Ok(Err(text)) => text,
        Err(_) => format!("no answer within {} s", limit.as_secs()),
    };
    Err(Fault { text, pause: None })
}

/// Why a question was not answered, and how long the server wants to be left alone.
struct Fault {
    text: String,
    pause: Option<Duration>,
}

impl Fault {
    /// How long to wait before the next try.
    fn pause(&self, backoff: &mut Backoff) -> Duration {
        self.pause.unwrap_or_default().max(backoff.next(jitter()))
    }
}

fn read(answer: &Answer) -> Result<Wanted, Fault> {
    Wanted::parse(&answer.body).ok_or_else(|| Fault {
        text:
            "it answers, but with no wanted state: write the URL as https://host/robots/NAME/stream"
                .into(),
        pause: None,
    })
}

fn fault_of(answer: &Answer) -> Fault {
    let status = answer.status;
    let text = match status {
        StatusCode::UNAUTHORIZED => "it refuses the credential (401): check --poll-user and --poll-password-file, or --poll-token-file".into(),
        StatusCode::FORBIDDEN => "this user may not do that (403): in the bridge's configuration give them role = \"robot\" and this robot".into(),
        StatusCode::NOT_FOUND => "it knows no such robot (404): check the name in the URL".into(),
        StatusCode::TOO_MANY_REQUESTS => "it has been asked too often (429), or with wrong credentials".into(),
        StatusCode::SERVICE_UNAVAILABLE => "its broker is out of reach (503)".into(),
        _ if status.is_redirection() => {
            let to = answer.headers.get(header::LOCATION);
            let to = to.and_then(|to| to.to_str().ok()).and_then(|to| to.split(['?', '#']).next());
            match to {
                Some(to) if !to.contains('@') => format!("it redirects to {to} ({status}), where the credential does not go by itself: give that URL"),
                _ => format!("it redirects ({status}): give the URL that it leads to"),
            }
        }
        _ => format!("it answers {status}"),
    };
    let pause = answer
        .headers
        .get(header::RETRY_AFTER)
        .and_then(|after| after.to_str().ok()?.parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    Fault { text, pause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_is_none() {
        let body = br#"{"robot":"r1","version":17,"wanted":{"open":true,"leases":
            [{"id":"phone-7","lease":23.4},{"id":null,"lease":null}]},"keyframe":3,"online":true}"#;
        let read = Wanted::parse(body).unwrap();
        assert_eq!(
            read,
            Wanted {
                version: "17".into(),
                leases: [("phone-7".into(), Some(23.4)), ("*".into(), None)].into(),
                keyframe: 3,
            }
        );
        for body in [
            "",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":1,"wanted":{"leases":[{"id":7,"lease":null}]}}"#,
            r#"{"version":1,"wanted":{"leases":[{"id":"a","lease":"long"}]}}"#,
            r#"{"version":"x","wanted":{"leases":[]}}"#,
        ] {
            assert_eq!(Wanted::parse(body.as_bytes()), None, "{body}");
        }
    }

    #[tokio::test]
    async fn silence_is_told_once_when_no_question_has_been_answered_for_so_long() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/stream", closed.local_addr().unwrap());
        drop(closed);
        let client = || {
            let url = crate::remote::http::Url::parse(&url).unwrap();
            Client::new(url, crate::remote::http::Login::None, None).unwrap()
        };
        let begin = Instant::now();
        let silence = Duration::from_millis(1500);
        let (sender, mut news) = tokio::sync::mpsc::unbounded_channel();
        let mut client = client();
        let on_event = |said| sender.send(said).unwrap();
        let ask = ask(&mut client, silence, &on_event);
        let hear = async {
            let mut failed = 0;
            loop {
                match news.recv().await.unwrap() {
                    PollEvent::Failed { reason, .. } => {
                        assert!(reason.contains("cannot connect"), "{reason}");
                        failed += 1;
                    }
                    PollEvent::Silent => break,
                    other => panic!("{other:?}"),
                }
            }
            assert!(failed > 1 && begin.elapsed() >= silence);
            // And not again.
            assert!(matches!(news.recv().await, Some(PollEvent::Failed { .. })));
        };
        tokio::select! {
            () = ask => {}
            () = hear => {}
        }
    }
}
