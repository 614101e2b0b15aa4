// SPDX-License-Identifier: MPL-2.0

//! `droidrelay-bridge hook`: what MediaMTX, which has no shell, runs as its hooks.

use std::{env, fs, path::PathBuf, time::Duration};

use axum::http::{HeaderMap, Method};
use clap::{Args, ValueEnum};
use droidrelay_wire::{Secret, net::tls::TlsFiles};
use serde_json::{Value, json};

use crate::client::{Client, Url, basic, bearer};

/// For the whole of it: MediaMTX waits for its hooks when it ends.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two tries while the bridge does not answer.
const PAUSE: Duration = Duration::from_millis(300);

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookEvent {
    /// runOnDemand: a viewer waits for a stream that is not there. With runOnDemandRestart, again
    /// every five seconds for as long as it is wanted.
    Demand,
    /// runOnUnDemand: nobody wants it any more.
    Undemand,
    /// runOnRead: a viewer begins to get the stream.
    Read,
    /// runOnUnread: the viewer has left.
    Unread,
}

/// Tells the bridge what MediaMTX's variables (MTX_PATH and others) say.
#[derive(Debug, Args)]
pub struct Options {
    event: HookEvent,
    /// The bridge, http:// or https://; credentials in it are taken out and used.
    #[arg(
        long,
        value_name = "URL",
        env = "DROIDRELAY_BRIDGE_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    bridge: String,
    /// User with the role mediamtx, for --password-file.
    #[arg(
        long,
        value_name = "NAME",
        env = "DROIDRELAY_BRIDGE_USER",
        default_value = "mediamtx"
    )]
    user: String,
    /// File whose first line is the user's password.
    #[arg(
        long,
        value_name = "FILE",
        env = "DROIDRELAY_BRIDGE_PASSWORD_FILE",
        conflicts_with = "token_file"
    )]
    password_file: Option<PathBuf>,
    /// File whose first line is a token, instead of user and password.
    #[arg(long, value_name = "FILE", env = "DROIDRELAY_BRIDGE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificates to trust instead of the system's, for an https:// bridge.
    #[arg(long, value_name = "FILE", env = "DROIDRELAY_BRIDGE_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// Tells it; the error is fit for the log.
pub async fn run(options: &Options) -> Result<(), String> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let path = variable("MTX_PATH");
    if path.is_empty() {
        return Err("MTX_PATH is not set: this is for MediaMTX to run, as runOnDemand: droidrelay-bridge hook demand".into());
    }
    let reader = match options.event {
        HookEvent::Read | HookEvent::Unread => {
            json!({ "type": variable("MTX_READER_TYPE"), "id": variable("MTX_READER_ID") })
        }
        HookEvent::Demand | HookEvent::Undemand => Value::Null,
    };
    let event = options.event.to_possible_value();
    let event = event.as_ref().map_or("", |event| event.get_name());
    let body = json!({ "event": event, "path": path, "at": started(), "clock": clock(), "reader": reader });
    let authorization = match (&options.token_file, &options.password_file) {
        (Some(file), _) => Some(bearer(&Secret::from_file(file)?)),
        (None, Some(file)) => Some(basic(&options.user, &Secret::from_file(file)?)),
        (None, None) => None,
    };
    let url = Url::parse(&options.bridge)
        .map_err(|err| format!("--bridge: {err}"))?
        .join("/mediamtx/demand")?
        .or_authorize(authorization);
    let trust = TlsFiles {
        ca_file: options.ca_file.clone(),
        ..TlsFiles::default()
    };
    let client = Client::new(url.is_tls(), &trust)?;
    let mut last = String::new();
    let tries = async {
        loop {
            let sent = client
                .send(
                    Method::POST,
                    &url,
                    HeaderMap::new(),
                    body.to_string(),
                    PATIENCE,
                )
                .await;
            match sent {
                Ok((status, _)) if status.is_success() => return Ok(()),
                // It will not be otherwise by waiting.
                Ok((status, answer)) if status.is_client_error() => {
                    return Err(format!("{url}: {status}: {}", reason(&answer)));
                }
                Ok((status, answer)) => last = format!("{url}: {status}: {}", reason(&answer)),
                Err(err) => last = err,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, tries).await;
    let result = done.unwrap_or(Err(last));
    result.map_err(|err| format!("{event} of {path} not told: {err}"))
}

fn reason(answer: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(answer).ok();
    let reason = json.as_ref().and_then(|json| json["error"].as_str());
    reason.unwrap_or("no reason given").to_owned()
}

/// When this process was made, in seconds by the kernel's clock, which all processes here share:
/// MediaMTX starts its hooks in order, and the scheduler may run them in another one.
fn started() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything. After it come fields 3 and on (proc(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(22 - 3)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// Names the clock of [`started`]: it begins anew with each boot.
fn clock() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_told_by_the_kernel() {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let started = started().unwrap();
        assert!(
            started > 0.0 && started <= uptime + 0.1,
            "{started} of {uptime}"
        );
    }
}
