// SPDX-License-Identifier: MPL-2.0

//! How old a `start` is that has waited at a broker without message expiry (MQTT 3.1.1).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use droidrelay_wire::Command;

/// As long as the bridge lets a `start` wait at a broker with MQTT 5, by default.
const LONGEST: Duration = Duration::from_secs(30);

/// The time since 1970, by this machine's clock.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Says why a `start` that has waited is not obeyed.
pub fn check(payload: &[u8], now: Duration) -> Result<(), String> {
    let Some(sent) = Command::sent(payload) else {
        return Err("it has waited at a broker that keeps commands for ever (MQTT 3.1.1), and may be old: send starts with their time, {\"command\":\"start\",\"sent\":SECONDS since 1970}, or while the robot is online".into());
    };
    if sent.abs_diff(now) <= LONGEST {
        return Ok(());
    }
    Err(match now.checked_sub(sent) {
        Some(age) => format!(
            "it was sent {} s ago, and {} s are the longest: send it again",
            age.as_secs(),
            LONGEST.as_secs()
        ),
        None => format!(
            "it was sent {} s after the time that it is here: set this machine's clock, or the sender's (NTP)",
            sent.saturating_sub(now).as_secs()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_young_start_that_says_so_is_obeyed() {
        let now = Duration::from_secs(1_764_300_000);
        let at = |sent: Duration| check(Command::start().to_payload_sent(sent).as_bytes(), now);
        assert_eq!(at(now - Duration::from_secs(29)), Ok(()));
        assert_eq!(at(now + Duration::from_secs(5)), Ok(()));
        let error = at(now - Duration::from_secs(31)).unwrap_err();
        assert!(error.contains("31 s ago"), "{error}");
        let error = at(now + Duration::from_secs(86_400)).unwrap_err();
        assert!(error.contains("clock"), "{error}");
        let error = check(b"start", now).unwrap_err();
        assert!(error.contains("\"sent\""), "{error}");
    }
}
