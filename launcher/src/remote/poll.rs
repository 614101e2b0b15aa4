// SPDX-License-Identifier: MPL-2.0

//! `--poll`: without a broker the wanted state comes from the bridge, by long poll, and the
//! robot's state goes back to it. The bridge decides as a valve would; here it is only followed.

use std::time::{Duration, Instant};

use droidrelay_wire::{
    Backoff,
    backoff::jitter,
    net::http::{self, KeptClient, Method, Query, StatusCode},
    words::poll::{self, Answer, REPORT_PATH},
};
use tokio::{sync::watch, time::sleep};

use super::net::Stop;

/// How long the bridge may keep a question while nothing changes, in seconds.
const WAIT: f64 = 30.0;
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

/// What comes of polling.
#[derive(Debug)]
pub enum PollEvent {
    Answered(Answer),
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

/// Asks with one client and reports `states` with the other, until the end. `silence`: see
/// [`SILENCE`].
pub async fn run(
    (mut asking, mut reporting): (KeptClient, KeptClient),
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
        let _ = send(&mut reporting, &state_query(&last), LAST_REPORT_TIMEOUT).await;
    }
}

async fn ask(client: &mut KeptClient, silence: Duration, on_event: &impl Fn(PollEvent)) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut version = None;
    let mut answered = Instant::now();
    let mut silent = false;
    loop {
        let asked = Instant::now();
        let query = poll::Query {
            since: version,
            wait: Some(WAIT),
        };
        let mut limit = Duration::from_secs_f64(WAIT) + GRACE;
        if !silent {
            limit = limit.min((answered + silence).saturating_duration_since(asked));
        }
        let answer = send(client, &Query::get(query.to_string()), limit).await;
        let pause = match answer.and_then(|answer| read(&answer)) {
            Ok(answer) => {
                answered = Instant::now();
                silent = false;
                backoff.reset();
                let same = version.replace(answer.version) == Some(answer.version);
                on_event(PollEvent::Answered(answer));
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
    client: &mut KeptClient,
    states: &mut watch::Receiver<Option<String>>,
    reported: &mut Option<String>,
    on_event: &impl Fn(PollEvent),
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(state) = state.filter(|state| reported.as_ref() != Some(state)) {
            if let Err(fault) = send(client, &state_query(&state), REPORT_TIMEOUT).await {
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

fn state_query(state: &str) -> Query {
    Query::with_json(Method::PUT, REPORT_PATH, state.to_owned())
}

/// The answer to a query, if that is a success.
async fn send(
    client: &mut KeptClient,
    query: &Query,
    limit: Duration,
) -> Result<http::Answer, PollFault> {
    match client.send(query, limit).await {
        Ok(answer) if answer.status.is_success() => Ok(answer),
        Ok(answer) => Err(fault_of(&answer)),
        Err(text) => Err(PollFault { text, pause: None }),
    }
}

/// Why a question was not answered, and how long the server wants to be left alone.
struct PollFault {
    text: String,
    pause: Option<Duration>,
}

impl PollFault {
    /// How long to wait before the next try.
    fn pause(&self, backoff: &mut Backoff) -> Duration {
        self.pause.unwrap_or_default().max(backoff.next(jitter()))
    }
}

fn read(answer: &http::Answer) -> Result<Answer, PollFault> {
    serde_json::from_slice(&answer.body).map_err(|_| PollFault {
        text:
            "it answers, but with no wanted state: write the URL as https://host/robots/NAME/stream"
                .into(),
        pause: None,
    })
}

fn fault_of(answer: &http::Answer) -> PollFault {
    let status = answer.status;
    let text = match status {
        StatusCode::UNAUTHORIZED => "it refuses the credential (401): check --poll-user and --poll-password-file, or --poll-token-file".into(),
        StatusCode::FORBIDDEN => "this user may not do that (403): in the bridge's configuration give them role = \"robot\" and this robot".into(),
        StatusCode::NOT_FOUND => "it knows no such robot (404): check the name in the URL".into(),
        StatusCode::TOO_MANY_REQUESTS => "it has been asked too often (429), or with wrong credentials".into(),
        StatusCode::SERVICE_UNAVAILABLE => "its broker is out of reach (503)".into(),
        _ if status.is_redirection() => {
            let to = answer.headers.get("location");
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
        .get("retry-after")
        .and_then(|after| after.to_str().ok()?.parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    PollFault { text, pause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use droidrelay_wire::net::tls::TlsFiles;

    #[tokio::test]
    async fn silence_is_told_once_when_no_question_has_been_answered_for_so_long() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/stream", closed.local_addr().unwrap());
        drop(closed);
        let url = http::Url::parse(&url, http::Policy::Public).unwrap();
        let trust = TlsFiles::default();
        let client = http::Client::new(url, http::Login::None, &trust, "test").unwrap();
        let mut client = KeptClient::new(client);
        let begin = Instant::now();
        let silence = Duration::from_millis(1500);
        let (sender, mut news) = tokio::sync::mpsc::unbounded_channel();
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
