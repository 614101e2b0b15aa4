// SPDX-License-Identifier: MPL-2.0

//! Commands on the command topic: `start`, `stop`, `keyframe`, plain or as JSON.

use std::{fmt, time::Duration};

use serde_json::Value;

/// Longest command payload in bytes; anything longer is refused unread.
pub const MAX_PAYLOAD: usize = 4096;
/// Longest viewer id in bytes.
pub const MAX_ID: usize = 128;
/// Longest lease that is counted: 100 years. A longer one could not be told from "until stop".
const MAX_LEASE: f64 = 100.0 * 365.25 * 86_400.0;

/// What a sender asks of the robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open the stream, or renew the lease of `id`.
    ///
    /// `lease: None` takes the valve's default, `Some(ZERO)` holds until a stop.
    Start {
        id: Option<String>,
        lease: Option<Duration>,
    },
    /// End the lease of `id`; without id, all of them.
    Stop { id: Option<String> },
    /// Ask the encoder for a key frame now.
    Keyframe,
}

/// Why a payload is not a command. Its text is fit for logs and the state topic: the
/// payload itself appears in it only where it is short and printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl Command {
    /// `start` without id or lease, as the plain payload means it.
    pub fn start() -> Self {
        Command::Start {
            id: None,
            lease: None,
        }
    }

    /// `stop` for everybody, as the plain payload means it.
    pub fn stop() -> Self {
        Command::Stop { id: None }
    }

    /// The viewer's id, where one is given.
    pub fn id(&self) -> Option<&str> {
        match self {
            Command::Start { id, .. } | Command::Stop { id } => id.as_deref(),
            Command::Keyframe => None,
        }
    }

    /// Reads a payload of the command topic: UTF-8, at most [`MAX_PAYLOAD`] bytes, a plain
    /// word (`start`, `stop`, `keyframe`, `ON`, `OFF`; case and surrounding white space do
    /// not matter) or a JSON object with `command`, `id` and `lease` (seconds).
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Refusal(format!(
                "payload of {} bytes: a command has at most {MAX_PAYLOAD}",
                payload.len()
            )));
        }
        let text = std::str::from_utf8(payload)
            .map_err(|_| {
                Refusal("payload is not UTF-8: send start, stop, keyframe or JSON".into())
            })?
            // Also what editors put ahead of a text, and C programs behind it.
            .trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\0'));
        if text.starts_with('{') {
            return Self::from_json(text);
        }
        // The word alone as JSON.
        if text.starts_with('"')
            && let Ok(word) = serde_json::from_str::<String>(text)
        {
            return Self::from_word(word.trim(), None, None);
        }
        Self::from_word(text, None, None)
    }

    /// When the sender of `payload` has sent it, by its own clock: the time since 1970. None: it
    /// does not say.
    pub fn sent(payload: &[u8]) -> Option<Duration> {
        #[derive(serde::Deserialize)]
        struct Sent {
            sent: f64,
        }
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let Sent { sent } = serde_json::from_slice(payload).ok()?;
        Duration::try_from_secs_f64(sent).ok()
    }

    fn from_json(text: &str) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_str(text)
            .map_err(|err| Refusal(format!("payload is not valid JSON: {err}")))?;
        let text = |name| match value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Refusal(format!("{name:?} is not a string"))),
        };
        let word = text("command")?.ok_or_else(|| {
            Refusal("JSON without \"command\": send for example {\"command\":\"start\"}".into())
        })?;
        let id = text("id")?.map(check_id).transpose()?;
        let lease = match value.get("lease") {
            None | Some(Value::Null) => None,
            Some(lease) => Some(parse_lease(lease)?),
        };
        Self::from_word(word.trim(), id.map(str::to_owned), lease)
    }

    fn from_word(word: &str, id: Option<String>, lease: Option<Duration>) -> Result<Self, Refusal> {
        match word.to_ascii_lowercase().as_str() {
            "start" | "on" => Ok(Command::Start { id, lease }),
            "stop" | "off" => Ok(Command::Stop { id }),
            "keyframe" => Ok(Command::Keyframe),
            "" => Err(Refusal(
                "empty payload: send start, stop, keyframe or JSON".into(),
            )),
            _ => Err(Refusal(format!(
                "unknown command {}: send start, stop, keyframe or JSON",
                quote(word)
            ))),
        }
    }

    /// The payload that [`Command::parse`] reads as `self`: the plain word where it says
    /// everything, so that robots of the published system understand it too.
    pub fn to_payload(&self) -> String {
        self.write(None)
    }

    /// As [`Command::to_payload`], with the time since 1970 at which it is `sent`, for a broker
    /// that knows no message expiry: [`Command::sent`] reads it.
    pub fn to_payload_sent(&self, sent: Duration) -> String {
        self.write(Some(sent))
    }

    fn write(&self, sent: Option<Duration>) -> String {
        let (word, id, lease) = match self {
            Command::Start { id, lease } => ("start", id.as_deref(), *lease),
            Command::Stop { id } => ("stop", id.as_deref(), None),
            Command::Keyframe => ("keyframe", None, None),
        };
        if id.is_none() && lease.is_none() && sent.is_none() {
            return word.to_owned();
        }
        let mut object = serde_json::Map::new();
        object.insert("command".into(), word.into());
        if let Some(id) = id {
            object.insert("id".into(), id.into());
        }
        if let Some(lease) = lease {
            object.insert("lease".into(), seconds(lease));
        }
        if let Some(sent) = sent {
            object.insert("sent".into(), sent.as_secs_f64().into());
        }
        Value::Object(object).to_string()
    }
}

/// Says what is wrong with a viewer id: empty, longer than [`MAX_ID`] or not printable.
pub fn check_id(id: &str) -> Result<&str, Refusal> {
    if id.is_empty() {
        Err(Refusal("\"id\" is empty: leave it out or name one".into()))
    } else if id.len() > MAX_ID {
        Err(Refusal(format!(
            "\"id\" has {} bytes: at most {MAX_ID}",
            id.len()
        )))
    } else if id.chars().any(char::is_control) {
        Err(Refusal("\"id\" contains control characters".into()))
    } else {
        Ok(id)
    }
}

/// A lease in seconds, 0 meaning until `stop`.
pub fn lease_from_seconds(seconds: f64) -> Result<Duration, Refusal> {
    if (0.0..=MAX_LEASE).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Refusal(format!(
            "lease {seconds:?}: give seconds from 0 (until stop) on"
        )))
    }
}

fn parse_lease(value: &Value) -> Result<Duration, Refusal> {
    let seconds = value.as_f64().ok_or_else(|| {
        Refusal(format!(
            "\"lease\" is {}: give a number of seconds",
            quote(&value.to_string())
        ))
    })?;
    lease_from_seconds(seconds)
}

fn seconds(duration: Duration) -> Value {
    if duration.subsec_nanos() == 0 {
        duration.as_secs().into()
    } else {
        duration.as_secs_f64().into()
    }
}

/// A foreign text for a log line: escaped, and cut where it is long, also by its escapes.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 128;
    let all = text.chars().count();
    let mut shown = all.min(32);
    loop {
        let head: String = text.chars().take(shown).collect();
        let quoted = format!("{head:?}");
        if quoted.len() > LONGEST {
            shown -= 1;
        } else if shown == all {
            return quoted;
        } else {
            return quoted + "…";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(id: Option<&str>, lease: Option<u64>) -> Command {
        Command::Start {
            id: id.map(Into::into),
            lease: lease.map(Duration::from_secs),
        }
    }

    #[test]
    fn plain_words_are_read_whatever_their_case_and_white_space() {
        for word in ["start", "START", " Start\n", "ON", "on\t"] {
            assert_eq!(Command::parse(word.as_bytes()), Ok(Command::start()));
        }
        for word in ["stop", "STOP ", "OFF"] {
            assert_eq!(Command::parse(word.as_bytes()), Ok(Command::stop()));
        }
        assert_eq!(Command::parse(b"keyframe"), Ok(Command::Keyframe));
        // As editors, C programs and JSON libraries write it.
        for word in [
            "\u{feff}start",
            "start\0",
            "\u{feff} start\r\n\0",
            "\"start\"",
            "\" Start \"",
        ] {
            assert_eq!(
                Command::parse(word.as_bytes()),
                Ok(Command::start()),
                "{word:?}"
            );
        }
        let json = "\u{feff}{\"command\":\"stop\"}\0";
        assert_eq!(Command::parse(json.as_bytes()), Ok(Command::stop()));
    }

    #[test]
    fn a_command_may_say_when_it_was_sent() {
        let sent = Duration::from_millis(1_764_300_000_250);
        for command in [Command::start(), start(Some("a"), Some(30))] {
            let payload = command.to_payload_sent(sent);
            assert_eq!(Command::parse(payload.as_bytes()), Ok(command));
            assert_eq!(Command::sent(payload.as_bytes()), Some(sent));
        }
        for silent in [
            "start",
            r#"{"command":"start"}"#,
            r#"{"sent":"x"}"#,
            r#"{"sent":-1}"#,
        ] {
            assert_eq!(Command::sent(silent.as_bytes()), None, "{silent}");
        }
    }

    #[test]
    fn json_commands_carry_id_and_lease_and_ignore_unknown_fields() {
        assert_eq!(
            Command::parse(br#"{"command":"start","id":"phone-7","lease":30}"#),
            Ok(start(Some("phone-7"), Some(30)))
        );
        assert_eq!(
            Command::parse(br#" {"command":"stop","id":"phone-7","x":[1]} "#),
            Ok(Command::Stop {
                id: Some("phone-7".into())
            })
        );
        assert_eq!(
            Command::parse(br#"{"command":"stop"}"#),
            Ok(Command::stop())
        );
        assert_eq!(
            Command::parse(br#"{"command":"KeyFrame"}"#),
            Ok(Command::Keyframe)
        );
        assert_eq!(
            Command::parse(br#"{"command":"start","lease":0.5}"#),
            Ok(Command::Start {
                id: None,
                lease: Some(Duration::from_millis(500))
            })
        );
    }

    #[test]
    fn a_quoted_text_is_short_also_by_its_escapes() {
        assert_eq!(quote("a \"b\"\n"), r#""a \"b\"\n""#);
        let spaces = quote(&"\u{2005}".repeat(40));
        assert!(spaces.len() < 140 && spaces.ends_with("\"…"), "{spaces}");
        assert_eq!(quote(&"ä".repeat(33)), format!("{:?}…", "ä".repeat(32)));
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        let long = vec![b'x'; MAX_PAYLOAD + 1];
        for (payload, reason) in [
            (&b""[..], "empty"),
            (b"\xff\xfe\x00", "UTF-8"),
            (b"open the door", "open the door"),
            (&long, "4097 bytes"),
            (b"{", "JSON"),
            (br#"{"id":"a"}"#, "{\"command\":\"start\"}"),
            (b"\"start", "\\\"start"),
            (br#"{"command":1}"#, "not a string"),
            (br#"{"command":"start","lease":"x"}"#, "number of seconds"),
            (br#"{"command":"start","lease":-1}"#, "-1"),
            (br#"{"command":"start","lease":1e300}"#, "lease"),
            (br#"{"command":"start","id":""}"#, "empty"),
            (br#"{"command":"start","id":7}"#, "not a string"),
            (b"{\"command\":\"start\",\"id\":\"a\\u0000\"}", "control"),
        ] {
            let refusal = Command::parse(payload).unwrap_err().to_string();
            assert!(refusal.contains(reason), "{refusal:?} names {reason:?}");
        }
    }

    #[test]
    fn a_written_command_reads_back_as_itself() {
        for command in [
            Command::start(),
            start(Some("ä \"quoted\""), None),
            start(Some("a"), Some(30)),
            start(None, Some(0)),
            Command::stop(),
            Command::Stop {
                id: Some("a".into()),
            },
            Command::Keyframe,
        ] {
            assert_eq!(Command::parse(command.to_payload().as_bytes()), Ok(command));
        }
        assert_eq!(Command::start().to_payload(), "start");
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use proptest::prelude::*;

    fn command() -> impl Strategy<Value = Command> {
        let id = || proptest::option::of("[^\\p{Cc}]{1,32}");
        // Whole seconds and fractions that a JSON number carries exactly.
        let lease = prop_oneof![0..100_000_000_000u64, 0..3_000_000_000_000_000_000u64]
            .prop_map(|nanos| Duration::from_nanos(nanos / 1000 * 1000));
        prop_oneof![
            (id(), proptest::option::of(lease))
                .prop_map(|(id, lease)| Command::Start { id, lease }),
            id().prop_map(|id| Command::Stop { id }),
            Just(Command::Keyframe),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(command in command(), space in "[ \t\r\n]{0,3}") {
            let payload = format!("{space}{}{space}", command.to_payload());
            let read = Command::parse(payload.as_bytes()).unwrap();
            if let (
                Command::Start { id, lease: Some(lease) },
                Command::Start { id: read_id, lease: Some(read_lease) },
            ) = (&command, &read) {
                // Seconds are a floating-point number in JSON.
                prop_assert!(lease.abs_diff(*read_lease) < Duration::from_micros(1));
                prop_assert_eq!(id, read_id);
            } else {
                prop_assert_eq!(read, command);
            }
        }

        #[test]
        fn words_are_read_in_any_case(upper in any::<[bool; 8]>(), word in "start|stop|keyframe|on|off") {
            let cased: String = word
                .chars()
                .zip(upper)
                .map(|(c, upper)| if upper { c.to_ascii_uppercase() } else { c })
                .collect();
            prop_assert_eq!(Command::parse(cased.as_bytes()), Command::parse(word.as_bytes()));
            prop_assert!(Command::parse(word.as_bytes()).is_ok());
        }

        #[test]
        fn anything_is_read_or_refused_in_one_short_line(payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            "\\PC{0,64}".prop_map(String::into_bytes),
            r#"\{"(command|id|lease)":("[a-z]{0,6}"|-?[0-9]{1,20}|null|\[\]),"command":"?[a-z]{0,8}"?\}?"#
                .prop_map(String::into_bytes),
            (4090..4200usize).prop_map(|len| vec![b'a'; len]),
        ]) {
            if let Err(refusal) = Command::parse(&payload) {
                let text = refusal.to_string();
                prop_assert!(!text.is_empty() && text.len() < 300, "{} bytes", text.len());
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }
    }
}
