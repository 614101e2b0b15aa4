// SPDX-License-Identifier: MPL-2.0

//! The server at the other end: known by its fingerprint, asked for the bundle, and whether it sees
//! the robot.

use std::{
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use droidrelay_wire::{
    exit::{self, Failure},
    net::{
        http::{Answer, Client, Login, Method, Policy, Query, StatusCode, Url},
        tls::TlsFiles,
    },
    words::enroll::{Bundle, Invitation, Status},
};
use serde_json::Value;
use tokio::runtime::Runtime;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the robot to be seen at its server, and how often that is asked.
const ONLINE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);
/// A clock that is further off makes certificates and leases wrong.
const CLOCK: Duration = Duration::from_secs(120);

pub struct Server {
    client: Client,
    runtime: Runtime,
}

impl Server {
    pub fn new(invitation: &Invitation) -> Result<Self, Failure> {
        let wrong = |text: String| Failure::new(exit::USAGE, text);
        let url = Url::parse(&invitation.url, Policy::Public).map_err(wrong)?;
        let trust = TlsFiles {
            pinned: invitation.fingerprint,
            ..TlsFiles::default()
        };
        let login = Login::Token(invitation.token.clone());
        let agent = concat!("droidrelay-enroll/", env!("CARGO_PKG_VERSION"));
        let client = Client::new(url, login, &trust, agent).map_err(wrong)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| Failure::new(exit::SOFTWARE, format!("cannot start: {err}")))?;
        Ok(Server { client, runtime })
    }

    fn ask(&self, method: Method) -> Result<Answer, String> {
        let query = Query {
            method,
            ..Query::default()
        };
        self.runtime.block_on(self.client.send(&query, PATIENCE))
    }

    /// Whether this machine's time is the server's, before anything else is done by it. It uses
    /// nothing up.
    pub fn check_clock(&self) -> Result<(), Failure> {
        let unreachable = |text| Failure::new(exit::UNAVAILABLE, text);
        let answer = self.ask(Method::OPTIONS).map_err(unreachable)?;
        let date = answer
            .headers
            .get("date")
            .and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
            return Ok(());
        };
        check_clock(SystemTime::now(), date)
    }

    /// Uses the command up.
    pub fn fetch(&self) -> Result<Bundle, Failure> {
        let answer = self
            .ask(Method::POST)
            .map_err(|text| Failure::new(exit::UNAVAILABLE, text))?;
        let url = self.client.url();
        match answer.status {
            StatusCode::OK => Bundle::parse(&answer.body)
                .map_err(|text| Failure::new(exit::DATA, format!("{url}: {text}"))),
            StatusCode::UNAUTHORIZED | StatusCode::GONE => {
                let text = format!("{url}: {}", reason(&answer));
                Err(Failure::new(exit::NO_PERMISSION, text))
            }
            StatusCode::NOT_FOUND => {
                let text =
                    format!("{url}: this bridge enrolls no robots: install its newest version");
                Err(Failure::new(exit::UNAVAILABLE, text))
            }
            status => {
                let text = format!("{url}: {status}: {}", reason(&answer));
                Err(Failure::new(exit::UNAVAILABLE, text))
            }
        }
    }

    /// Waits until the server sees the robot, and says how.
    pub fn wait_online(&self, bundle: &Bundle) -> Result<(), Failure> {
        let deadline = Instant::now() + ONLINE;
        loop {
            let last = match self.ask(Method::GET) {
                Ok(answer) if answer.status == StatusCode::OK => {
                    let status: Status = serde_json::from_slice(&answer.body).map_err(|err| {
                        Failure::new(exit::DATA, format!("{}: {err}", self.client.url()))
                    })?;
                    let robots = &status.robots;
                    let away = robots
                        .iter()
                        .find(|seen| !seen.online || seen.state.is_none());
                    let Some(away) = away else {
                        for seen in robots {
                            println!("{}: {}", seen.name, shown(seen.state.as_deref()));
                        }
                        return Ok(());
                    };
                    format!("the server does not see {} yet", away.name)
                }
                Ok(answer) => format!("{}: {}", answer.status, reason(&answer)),
                Err(text) => text,
            };
            if Instant::now() >= deadline {
                let names: Vec<_> = bundle.cameras.iter().map(|it| it.name.as_str()).collect();
                let text = format!(
                    "the service is set up, but {last}: `droidrelay doctor {}` says what is missing; on the server, the broker has to know the robot: systemctl reload droidrelay-broker. Then type the same command again",
                    names[0]
                );
                return Err(Failure::new(exit::UNAVAILABLE, text));
            }
            sleep(AGAIN);
        }
    }
}

fn check_clock(now: SystemTime, servers: SystemTime) -> Result<(), Failure> {
    let (off, words) = match now.duration_since(servers) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    if off <= CLOCK {
        return Ok(());
    }
    let text = format!(
        "this machine's clock is {} s {words} the server's: no certificate and no lease would hold. timedatectl set-ntp true, and a network that lets NTP (UDP 123) through; then type the same command again, it is still good",
        off.as_secs()
    );
    Err(Failure::new(exit::UNAVAILABLE, text))
}

/// A state for a person.
fn shown(state: Option<&str>) -> &str {
    match state {
        Some("idle") | None => "idle, camera off",
        Some(state) => state,
    }
}

fn reason(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    body["error"]
        .as_str()
        .unwrap_or("without a reason")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_how_far_and_the_remedy() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let off = |seconds| Duration::from_secs(seconds);
        for close in [now, now + off(119), now - off(119)] {
            assert!(check_clock(close, now).is_ok());
        }
        for (far, said) in [
            (now + off(3600), "3600 s ahead of"),
            (now - off(90 * 24 * 3600), "7776000 s behind"),
        ] {
            let text = check_clock(far, now).unwrap_err().text;
            assert!(text.contains(said) && text.contains("set-ntp"), "{text}");
        }
    }
}
