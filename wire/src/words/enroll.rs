// SPDX-License-Identifier: MPL-2.0

//! How a robot gets what it needs from its server: the command that the server prints, and the
//! bundle that the robot fetches by it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::secret::Secret;

/// Where the bundle is fetched by POST, once; GET tells afterwards whether the robot is online.
pub const PATH: &str = "/enroll";
/// Seconds for which the command is valid.
pub const VALID_FOR: u64 = 15 * 60;
const FINGERPRINT: usize = 32;

/// Bytes as two hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; FINGERPRINT]> {
    let mut bytes = [0; FINGERPRINT];
    let pairs = text.as_bytes().chunks(2);
    if text.len() != 2 * FINGERPRINT || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// What stands in the command: where the server is, how it is known, and the right to one bundle.
/// The last two stand behind `#`, which is never sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// `https://host[:port]/enroll`
    pub url: String,
    /// SHA-256 of the server's certificate; None: one that everybody trusts.
    pub fingerprint: Option<[u8; FINGERPRINT]>,
    pub token: Secret,
}

impl Invitation {
    /// The error shows nothing that may be the token.
    pub fn parse(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "copy the whole command that `droidrelay-bridge robot add` has printed, with its quotes";
        let (url, fragment) = text
            .split_once('#')
            .ok_or_else(|| format!("there is nothing behind # in the URL: {REMEDY}"))?;
        if !url.starts_with("https://") || !url.ends_with(PATH) {
            return Err(format!("the URL is not https://HOST{PATH}#…: {REMEDY}"));
        }
        let (fingerprint, token) = match fragment.split_once('-') {
            Some((fingerprint, token)) => {
                let fingerprint = from_hex(fingerprint)
                    .ok_or_else(|| format!("the URL is not whole: {REMEDY}"))?;
                (Some(fingerprint), token)
            }
            None => (None, fragment),
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("the URL is not whole: {REMEDY}"));
        }
        Ok(Invitation {
            url: url.to_owned(),
            fingerprint,
            token: Secret::new(token),
        })
    }

    /// As the command has it.
    pub fn to_secret(&self) -> Secret {
        let token = self.token.expose();
        Secret::new(match &self.fingerprint {
            Some(fingerprint) => format!("{}#{}-{token}", self.url, hex(fingerprint)),
            None => format!("{}#{token}", self.url),
        })
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// All that a robot needs of its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub robot: String,
    /// Where viewers find it.
    pub page: String,
    pub broker: String,
    /// Certificates to trust, as PEM; None: the system's.
    #[serde(default)]
    pub ca: Option<String>,
    pub rtmp_user: String,
    #[serde(with = "exposed")]
    pub rtmp_password: Secret,
    /// One at least.
    pub cameras: Vec<Camera>,
}

/// A stream of the robot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Camera {
    /// Name of the robot's service, and of the robot at the bridge.
    pub name: String,
    pub topic: String,
    pub location: String,
    pub mqtt_user: String,
    #[serde(with = "exposed")]
    pub mqtt_password: Secret,
}

impl Bundle {
    /// Longest bundle that is read, in bytes.
    pub const MAX: u64 = 256 * 1024;

    /// Reads a bundle; what is wrong with it, without what it holds.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let bundle: Bundle = serde_json::from_slice(text).map_err(|err| {
            let (line, column) = (err.line(), err.column());
            format!(
                "this is no bundle of `droidrelay-bridge robot add` (line {line}, column {column})"
            )
        })?;
        bundle.check()?;
        Ok(bundle)
    }

    /// Names become files and services, everything else lines of an environment file.
    fn check(&self) -> Result<(), String> {
        let is_name = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !name.is_empty()
                && name.len() <= 130
                && name.chars().all(plain)
                && !name.starts_with(['.', '-'])
        };
        let is_plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"\"'\\$`#".contains(&b))
        };
        let names = self.cameras.iter().map(|camera| camera.name.as_str());
        if let Some(wrong) = names
            .chain([self.robot.as_str()])
            .find(|name| !is_name(name))
        {
            return Err(format!(
                "the bundle names a robot {wrong:?}, which is no name"
            ));
        }
        if self.cameras.is_empty() {
            return Err("the bundle has no camera".into());
        }
        let texts = [&self.page, &self.broker, &self.rtmp_user].into_iter();
        let texts = texts.chain(
            self.cameras
                .iter()
                .flat_map(|camera| [&camera.topic, &camera.location, &camera.mqtt_user]),
        );
        for text in texts {
            if !is_plain(text) {
                return Err(format!(
                    "the bundle holds {text:?}, which no setting can be"
                ));
            }
        }
        let passwords = self.cameras.iter().map(|camera| &camera.mqtt_password);
        for password in passwords.chain([&self.rtmp_password]) {
            if !is_plain(password.expose()) {
                return Err("the bundle holds a password that is none".into());
            }
        }
        Ok(())
    }
}

/// The answer to GET.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub robots: Vec<Seen>,
}

/// A robot as its server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub name: String,
    pub online: bool,
    /// None: it has told none yet.
    pub state: Option<String>,
}

/// A secret in a message that is for its owner.
mod exposed {
    use super::{Deserialize, Deserializer, Error, Secret, Serializer};

    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        // What stands there instead is not shown.
        String::deserialize(deserializer)
            .map(Secret::new)
            .map_err(|_| D::Error::custom("a password is a text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_reads_back_and_is_never_shown() {
        let invitation = Invitation {
            url: "https://cloud.example:8443/enroll".into(),
            fingerprint: Some([0xab; 32]),
            token: "c0ffee".into(),
        };
        let text = invitation.to_secret();
        assert!(Invitation::parse(text.expose()).unwrap() == invitation);
        assert_eq!(
            format!("{invitation:?}"),
            "https://cloud.example:8443/enroll"
        );
        let public = Invitation::parse("https://[::1]/enroll#c0ffee").unwrap();
        assert_eq!(public.fingerprint, None);
        for wrong in [
            "",
            "https://h/enroll",
            "http://h/enroll#c0ffee",
            "https://h/robots#c0ffee",
            "https://h/enroll#",
            "https://h/enroll#abcd-c0ffee",
            "https://h/enroll#c0ff ee",
            "https://h/enroll#é-c0ffee",
        ] {
            let error = Invitation::parse(wrong).unwrap_err();
            assert!(!error.contains("c0ff") && error.contains("copy"), "{error}");
        }
    }

    #[test]
    fn a_bundle_that_would_become_another_setting_is_refused_without_its_passwords() {
        let bundle = Bundle {
            robot: "r1".into(),
            page: "https://h:8443/".into(),
            broker: "mqtts://h:8883".into(),
            ca: None,
            rtmp_user: "r1".into(),
            rtmp_password: "hunter2".into(),
            cameras: vec![Camera {
                name: "r1".into(),
                topic: "robots/r1/stream".into(),
                location: "rtmps://h:1936/robots/r1".into(),
                mqtt_user: "r1".into(),
                mqtt_password: "hunter3".into(),
            }],
        };
        let text = serde_json::to_string(&bundle).unwrap();
        assert_eq!(Bundle::parse(text.as_bytes()).unwrap(), bundle);
        assert!(!format!("{bundle:?}").contains("hunter"));
        for (from, to) in [
            ("\"robot\":\"r1\"", "\"robot\":\"../r1\""),
            ("mqtts://h:8883", "mqtts://h\\nLD_PRELOAD=/x"),
            ("hunter2", ""),
            ("hunter2", "hunter2\\nX=1"),
            ("\"hunter3\"", "{\"hunter3\":1}"),
            ("robots/r1/stream", "a$(id)"),
        ] {
            let error = Bundle::parse(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(!error.contains("hunter"), "{error}");
        }
    }
}
