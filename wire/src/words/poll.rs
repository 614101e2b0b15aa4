// SPDX-License-Identifier: MPL-2.0

//! How a robot without MQTT asks its bridge what is wanted of it, and reports its state.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gate::ANYBODY;

/// Seconds without a poll, beyond the last one's own waiting time, after which a robot counts as
/// offline.
pub const GRACE: u64 = 15;
/// Longest `wait` in seconds: proxies give up a request after a minute.
pub const MAX_WAIT: f64 = 60.0;
/// Where a state is reported by PUT, behind the path that is polled.
pub const REPORT_PATH: &str = "/state";

/// The query of a poll. `Display` writes it with its question mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Answer when what is wanted has another [`Answer::version`] than this; None: at once.
    pub since: Option<u64>,
    /// Answer after this many seconds in any case; 0 to [`MAX_WAIT`].
    pub wait: Option<f64>,
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wait = self.wait.map(|wait| format!("wait={wait}"));
        let since = self.since.map(|since| format!("since={since}"));
        let mut separator = '?';
        for parameter in [wait, since].into_iter().flatten() {
            write!(f, "{separator}{parameter}")?;
            separator = '&';
        }
        Ok(())
    }
}

/// The answer to a poll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    #[serde(default)]
    pub robot: String,
    /// Changes with `wanted` and `keyframe`.
    pub version: u64,
    pub wanted: Wanted,
    /// Changes with each key frame that is asked for.
    #[serde(default)]
    pub keyframe: u64,
    /// Whether the bridge counts the robot as online.
    #[serde(default)]
    pub online: bool,
    /// What the bridge knows the robot's state to be. A robot does not read it, so that it is
    /// not checked.
    #[serde(default)]
    pub state: Option<Value>,
}

/// What is wanted of the robot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Somebody holds a lease.
    #[serde(default)]
    pub open: bool,
    /// Every lease that lives.
    pub leases: Vec<Lease>,
}

/// One viewer's lease.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose; null: of a `start` without id.
    pub id: Option<String>,
    /// Seconds that it still holds; null: until a stop.
    pub lease: Option<f64>,
}

impl Lease {
    /// The lease of a gate's `holder`.
    pub fn of(holder: &str, lease: Option<f64>) -> Self {
        Lease {
            id: (holder != ANYBODY).then(|| holder.to_owned()),
            lease,
        }
    }

    /// Who holds it in a gate.
    pub fn holder(&self) -> &str {
        self.id.as_deref().unwrap_or(ANYBODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let text = r#"{"robot":"r1","version":17,"wanted":{"open":true,"leases":[{"id":"phone-7","lease":23.4},{"id":null,"lease":null}]},"keyframe":3,"online":true,"state":null}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        let holders: Vec<&str> = answer.wanted.leases.iter().map(Lease::holder).collect();
        assert_eq!(holders, ["phone-7", ANYBODY]);
        assert_eq!(Lease::of("phone-7", Some(23.4)), answer.wanted.leases[0]);
        assert_eq!(Lease::of(ANYBODY, None), answer.wanted.leases[1]);
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        let least = r#"{"version":1,"wanted":{"leases":[]}}"#;
        assert_eq!(serde_json::from_str::<Answer>(least).unwrap().keyframe, 0);
    }

    #[test]
    fn what_is_no_answer_is_not_read() {
        for body in [
            "",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":1,"wanted":{"leases":[{"id":7,"lease":null}]}}"#,
            r#"{"version":1,"wanted":{"leases":[{"id":"a","lease":"long"}]}}"#,
            r#"{"version":"x","wanted":{"leases":[]}}"#,
        ] {
            assert!(serde_json::from_str::<Answer>(body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_query_is_written_as_a_url_has_it() {
        let query = |since, wait| Query { since, wait }.to_string();
        assert_eq!(query(None, None), "");
        assert_eq!(query(None, Some(30.0)), "?wait=30");
        assert_eq!(query(Some(7), Some(0.5)), "?wait=0.5&since=7");
        assert_eq!(query(Some(7), None), "?since=7");
    }
}
