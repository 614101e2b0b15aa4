// SPDX-License-Identifier: MPL-2.0

//! `--poll`: without a broker the wanted state comes from the bridge, by long poll, and the
//! robot's state goes back to it. The bridge decides as a valve would; here it is only followed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use droidrelay_wire::{Backoff, backoff::jitter};
use hyper::{Method, StatusCode, header};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
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

/// What the poll tells.
#[derive(Debug)]
pub enum News {
    Wanted(Wanted),
    /// A question was not answered: why, and when the next one follows.
    Failed(String, Duration),
    /// None has been for [`SILENCE`].
    Silent,
    /// The state could not be reported: why.
    NotReported(String),
}

/// What the bridge wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    version: String,
    /// Seconds that are left of each id's lease; None: until a stop.
    leases: BTreeMap<String, Option<f64>>,
    keyframe: u64,
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

/// What is to be done to the valves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Seconds; 0: without a lease of its own.
    Start(String, u32),
    Stop(String),
    Keyframe,
}

/// What the poll has started so far. Pure: `now` is an argument.
#[derive(Debug, Default)]
pub struct Follower {
    /// When each lease ends; None: with a stop.
    held: BTreeMap<String, Option<Instant>>,
    keyframe: Option<u64>,
}

impl Follower {
    /// What leads from what is held to what is wanted: only what is new, renewed or gone.
    pub fn follow(&mut self, wanted: &Wanted, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let gone: BTreeSet<String> = self
            .held
            .keys()
            .filter(|id| !wanted.leases.contains_key(*id))
            .cloned()
            .collect();
        for id in gone {
            self.held.remove(&id);
            acts.push(Act::Stop(id));
        }
        let was_open = !self.held.is_empty();
        for (id, left) in &wanted.leases {
            let left = left.map(|left| left.clamp(0.0, f64::from(u32::MAX)));
            let until = left.map(|left| now + Duration::from_secs_f64(left));
            let same = match (self.held.get(id), until) {
                (Some(None), None) => true,
                // The way of the answer takes time, and not always the same.
                (Some(Some(held)), Some(until)) => {
                    until.max(*held) - until.min(*held) < Duration::from_secs(1)
                }
                _ => false,
            };
            if !same {
                self.held.insert(id.clone(), until);
                let lease = left.map_or(0, |left| left.ceil().max(1.0) as u32);
                acts.push(Act::Start(id.clone(), lease));
            }
        }
        let before = self.keyframe.replace(wanted.keyframe);
        if was_open && before.is_some_and(|before| before != wanted.keyframe) {
            acts.push(Act::Keyframe);
        }
        acts
    }

    /// Nobody answers any more: what would never end ends.
    pub fn silent(&mut self) -> Vec<Act> {
        let endless = |until: &Option<Instant>| until.is_none();
        let ends: Vec<String> = self
            .held
            .iter()
            .filter(|(_, until)| endless(until))
            .map(|(id, _)| id.clone())
            .collect();
        self.held.retain(|_, until| !endless(until));
        ends.into_iter().map(Act::Stop).collect()
    }
}

/// Asks with one client and reports `states` with the other, until the end. `silence`: see
/// [`SILENCE`].
pub async fn run(
    (mut asking, mut reporting): (Client, Client),
    silence: Duration,
    mut states: watch::Receiver<Option<String>>,
    mut stop: Stop,
    tell: impl Fn(News),
) {
    let mut reported = None;
    {
        let ask = ask(&mut asking, silence, &tell);
        let report = report(&mut reporting, &mut states, &mut reported, &tell);
        tokio::select! {
            () = stop.asked() => {}
            () = ask => {}
            () = report => {}
        }
    }
    // The last word: the valves are closed by now, or will be.
    let last = states.borrow().clone();
    if let Some(last) = last.filter(|last| reported.as_ref() != Some(last)) {
        let put = reporting.request(Method::PUT, "/state", Some(&last));
        // Without it, the bridge knows by our silence.
        let _ = timeout(LAST_REPORT_TIMEOUT, put).await;
    }
}

async fn ask(client: &mut Client, silence: Duration, tell: &impl Fn(News)) {
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
        let mut patience = Duration::from_secs(WAIT) + GRACE;
        if !silent {
            patience = patience.min((answered + silence).saturating_duration_since(asked));
        }
        let answer = match timeout(patience, client.request(Method::GET, &path, None)).await {
            Ok(answer) => answer.map_err(Fault::from).and_then(read),
            Err(_) => Err(Fault::from(format!(
                "no answer within {} s",
                patience.as_secs()
            ))),
        };
        let pause = match answer {
            Ok(wanted) => {
                answered = Instant::now();
                silent = false;
                backoff.reset();
                let same = version.as_ref() == Some(&wanted.version);
                version = Some(wanted.version.clone());
                tell(News::Wanted(wanted));
                if same {
                    SHORTEST.saturating_sub(asked.elapsed())
                } else {
                    Duration::ZERO
                }
            }
            Err(fault) => {
                let pause = fault.pause.unwrap_or_default().max(backoff.next(jitter()));
                tell(News::Failed(fault.text, pause));
                pause
            }
        };
        let left = (answered + silence).saturating_duration_since(Instant::now());
        if !silent && left <= pause {
            sleep(left).await;
            silent = true;
            tell(News::Silent);
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
    tell: &impl Fn(News),
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(state) = state.filter(|state| reported.as_ref() != Some(state)) {
            let put = client.request(Method::PUT, "/state", Some(&state));
            let fault = match timeout(REPORT_TIMEOUT, put).await {
                Ok(Ok(answer)) if answer.status.is_success() => None,
                Ok(Ok(answer)) => Some(fault_of(&answer)),
                Ok(Err(text)) => Some(text.into()),
                Err(_) => Some(Fault::from(format!(
                    "no answer within {} s",
                    REPORT_TIMEOUT.as_secs()
                ))),
            };
            match fault {
                None => {
                    *reported = Some(state);
                    backoff.reset();
                }
                Some(fault) => {
                    tell(News::NotReported(fault.text));
                    let pause = fault.pause.unwrap_or_default().max(backoff.next(jitter()));
                    sleep(pause).await;
                    continue;
                }
            }
        }
        if states.changed().await.is_err() {
            // Nobody is left who could have news.
            std::future::pending::<()>().await;
        }
    }
}

/// Why a question was not answered, and how long the server wants to be left alone.
struct Fault {
    text: String,
    pause: Option<Duration>,
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Fault { text, pause: None }
    }
}

fn read(answer: Answer) -> Result<Wanted, Fault> {
    if answer.status != StatusCode::OK {
        return Err(fault_of(&answer));
    }
    Wanted::parse(&answer.body).ok_or_else(|| {
        Fault::from("it answers, but with no wanted state: write the URL as https://host/robots/NAME/stream".to_owned())
    })
}

fn fault_of(answer: &Answer) -> Fault {
    let status = answer.status;
    let text = match status {
        StatusCode::UNAUTHORIZED => "it refuses the credential (401): check --poll-user and --poll-password-file, or --poll-token-file".into(),
        StatusCode::FORBIDDEN => "this user may not do that (403): in the bridge's configuration give him role = \"robot\" and this robot".into(),
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

    fn wanted(leases: &[(&str, Option<f64>)], keyframe: u64) -> Wanted {
        Wanted {
            version: "1".into(),
            leases: leases
                .iter()
                .map(|(id, left)| (id.to_string(), *left))
                .collect(),
            keyframe,
        }
    }

    fn start(id: &str, lease: u32) -> Act {
        Act::Start(id.into(), lease)
    }

    fn stop(id: &str) -> Act {
        Act::Stop(id.into())
    }

    #[test]
    fn only_what_is_new_renewed_or_gone_is_done() {
        let (mut follower, begin) = (Follower::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs_f64(seconds);
        let first = wanted(&[("a", Some(29.3)), ("*", None)], 4);
        assert_eq!(
            follower.follow(&first, at(0.0)),
            [start("*", 0), start("a", 30)]
        );
        // The same leases, ten seconds on, a little late.
        let same = wanted(&[("a", Some(19.4)), ("*", None)], 4);
        assert_eq!(follower.follow(&same, at(10.0)), []);
        let renewed = wanted(&[("a", Some(30.0)), ("*", None)], 4);
        assert_eq!(follower.follow(&renewed, at(10.5)), [start("a", 30)]);
        let one = wanted(&[("a", Some(0.2))], 5);
        assert_eq!(
            follower.follow(&one, at(20.0)),
            [stop("*"), start("a", 1), Act::Keyframe]
        );
        assert_eq!(follower.follow(&wanted(&[], 6), at(30.0)), [stop("a")]);
        assert_eq!(follower.follow(&wanted(&[], 7), at(31.0)), []);
    }

    #[test]
    fn silence_ends_what_has_no_lease_and_the_next_answer_starts_it_again() {
        let (mut follower, now) = (Follower::default(), Instant::now());
        let both = wanted(&[("a", Some(30.0)), ("b", None)], 0);
        follower.follow(&both, now);
        assert_eq!(follower.silent(), [stop("b")]);
        assert_eq!(follower.silent(), []);
        assert_eq!(follower.follow(&both, now), [start("b", 0)]);
    }

    #[test]
    fn an_answer_is_read_or_is_none() {
        let body = br#"{"robot":"r1","version":17,"wanted":{"open":true,"leases":
            [{"id":"phone-7","lease":23.4},{"id":null,"lease":null}]},"keyframe":3,"online":true}"#;
        let read = Wanted::parse(body).unwrap();
        assert_eq!(
            read,
            Wanted {
                version: "17".into(),
                ..wanted(&[("phone-7", Some(23.4)), ("*", None)], 3)
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
            let url = crate::http::Url::parse(&url).unwrap();
            Client::new(url, crate::http::Login::None, None).unwrap()
        };
        let begin = Instant::now();
        let silence = Duration::from_millis(1500);
        let (sender, mut news) = tokio::sync::mpsc::unbounded_channel();
        let mut client = client();
        let tell = |said| sender.send(said).unwrap();
        let ask = ask(&mut client, silence, &tell);
        let hear = async {
            let mut failed = 0;
            loop {
                match news.recv().await.unwrap() {
                    News::Failed(reason, _) => {
                        assert!(reason.contains("cannot connect"), "{reason}");
                        failed += 1;
                    }
                    News::Silent => break,
                    other => panic!("{other:?}"),
                }
            }
            assert!(failed > 1 && begin.elapsed() >= silence);
            // And not again.
            assert!(matches!(news.recv().await, Some(News::Failed(..))));
        };
        tokio::select! {
            () = ask => {}
            () = hear => {}
        }
    }

    #[test]
    fn a_lease_of_any_length_is_followed() {
        let (mut follower, now) = (Follower::default(), Instant::now());
        let odd = wanted(&[("a", Some(-5.0)), ("b", Some(1e300))], 0);
        assert_eq!(
            follower.follow(&odd, now),
            [start("a", 1), start("b", u32::MAX)]
        );
    }
}
