// SPDX-License-Identifier: MPL-2.0

//! `droidrelay-bridge hook`: what MediaMTX, which has no shell, runs as its hooks.

use std::{env, fs, path::PathBuf, time::Duration};

use clap::Args;
use droidrelay_wire::{
    boot,
    net::{
        http::{Client, Login, Method, Policy, Query, Url},
        tls::TlsFiles,
    },
    words::hook::{self, Hook, HookEvent, Reader},
};
use serde_json::Value;

use crate::config::USER_AGENT;

/// For the whole of it: MediaMTX waits for its hooks when it ends.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two tries while the bridge does not answer.
const PAUSE: Duration = Duration::from_millis(300);

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
    let reader = matches!(options.event, HookEvent::Read | HookEvent::Unread).then(|| Reader {
        r#type: variable("MTX_READER_TYPE"),
        id: variable("MTX_READER_ID"),
    });
    let hook = Hook {
        event: options.event,
        path,
        at: started(),
        clock: boot::id(),
        age: None,
        reader,
    };
    let login = match (&options.token_file, &options.password_file) {
        (Some(file), _) => Login::Bearer {
            token_file: file.clone(),
        },
        (None, Some(file)) => Login::Basic {
            user: options.user.clone(),
            password_file: file.clone(),
        },
        (None, None) => Login::None,
    };
    let trust = TlsFiles {
        ca_file: options.ca_file.clone(),
        ..TlsFiles::default()
    };
    let url =
        Url::parse(&options.bridge, Policy::Secret).map_err(|err| format!("--bridge: {err}"))?;
    let client = Client::new(url, login, &trust, USER_AGENT)?;
    client.check()?;
    let query = || {
        // Of each try: a bridge that was not there when the hook began knows that.
        let age = hook.at.zip(uptime()).map(|(at, now)| (now - at).max(0.0));
        let hook = Hook {
            age,
            ..hook.clone()
        };
        let body = serde_json::to_vec(&hook).map_err(|err| err.to_string())?;
        Ok::<_, String>(Query::with_json(Method::POST, hook::PATH, body))
    };
    let url = client.url();
    let mut last = String::new();
    let tries = async {
        loop {
            match client.send(&query()?, PATIENCE).await {
                Ok(answer) if answer.status.is_success() => return Ok(()),
                Ok(answer) => {
                    last = format!("{url}: {}: {}", answer.status, reason(&answer.body));
                    // It will not be otherwise by waiting.
                    if answer.status.is_client_error() {
                        return Err(std::mem::take(&mut last));
                    }
                }
                Err(err) => last = err,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, tries).await;
    let result = done.unwrap_or(Err(last));
    result.map_err(|err| format!("{} of {} not told: {err}", hook.event, hook.path))
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

/// By the same clock.
fn uptime() -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    uptime.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_told_by_the_kernel() {
        let uptime = uptime().unwrap();
        let started = started().unwrap();
        assert!(
            started > 0.0 && started <= uptime + 0.1,
            "{started} of {uptime}"
        );
    }
}
