// SPDX-License-Identifier: MPL-2.0

//! The login that some servers ask for at `connect`: Adobe's and Limelight's way. A server
//! rejects a connection with a description that names the way, a second one that names the user
//! with a challenge, and takes a third one that answers it. The password itself is never sent.
//!
//! No specification says so: this is what the clients and servers do that have it.

use droidrelay_wire::{Secret, net::url::percent_encode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Adobe,
    Limelight,
}

/// What the next connection must bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    User(Method),
    Answer(Challenge),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Adobe {
        salt: String,
        challenge: String,
        /// Stands in for the challenge, and must be sent back.
        opaque: Option<String>,
    },
    Limelight {
        nonce: String,
    },
}

impl Demand {
    /// Reads the description of a rejected connect; None where it asks for nothing that we have.
    pub fn parse(description: &str) -> Option<Self> {
        let (_, behind) = description.split_once("authmod=")?;
        let method = Method::ALL
            .into_iter()
            .find(|method| behind.starts_with(method.name()))?;
        let Some((_, query)) = behind.split_once('?') else {
            return description
                .contains("need auth")
                .then_some(Demand::User(method));
        };
        let value = |name: &str| {
            let pairs = query
                .trim()
                .split('&')
                .filter_map(|pair| pair.split_once('='));
            let mut values = pairs.filter(|(key, _)| *key == name);
            Some(values.next()?.1.to_owned()).filter(|value| !value.is_empty())
        };
        if value("reason")? != "needauth" {
            return None;
        }
        Some(Demand::Answer(match method {
            Method::Adobe => Challenge::Adobe {
                salt: value("salt")?,
                challenge: value("challenge").unwrap_or_default(),
                opaque: value("opaque"),
            },
            Method::Limelight => Challenge::Limelight {
                nonce: value("nonce")?,
            },
        }))
    }

    pub fn method(&self) -> Method {
        match self {
            Demand::User(method) => *method,
            Demand::Answer(Challenge::Adobe { .. }) => Method::Adobe,
            Demand::Answer(Challenge::Limelight { .. }) => Method::Limelight,
        }
    }
}

impl Method {
    const ALL: [Method; 2] = [Method::Adobe, Method::Limelight];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Adobe => "adobe",
            Method::Limelight => "llnw",
        }
    }

    /// What stands behind the application's name to be given a challenge.
    pub fn introduce(self, user: &str) -> String {
        format!("authmod={}&user={}", self.name(), query_value(user))
    }
}

impl Challenge {
    /// What stands behind the application's name to be let in; `nonce` is our own part.
    pub fn answer(&self, app: &str, user: &str, password: &Secret, nonce: u32) -> Secret {
        let password = password.expose();
        let own = format!("{nonce:08x}");
        match self {
            Challenge::Adobe {
                salt,
                challenge,
                opaque,
            } => {
                let key = base64_md5(&[user, salt, password]);
                let asked = opaque.as_ref().unwrap_or(challenge);
                let response = base64_md5(&[key.expose(), asked, &own]);
                let mut query = Method::Adobe.introduce(user);
                query += &format!("&challenge={own}&response={}", response.expose());
                if let Some(opaque) = opaque {
                    query += &format!("&opaque={opaque}");
                }
                Secret::new(query)
            }
            // HTTP's digest (RFC 2617, section 3.2.2) with fixed realm, method, count and quality.
            Challenge::Limelight { nonce } => {
                const COUNT: &str = "00000001";
                let instance = if app.contains('/') { "" } else { "/_definst_" };
                let key = hex_md5(&[user, ":live:", password]);
                let place = hex_md5(&["publish:/", app, instance]);
                let parts = [key.expose(), nonce, COUNT, &own, "auth", place.expose()];
                let response = hex_md5(&[&parts.join(":")]);
                let mut query = Method::Limelight.introduce(user);
                query += &format!(
                    "&nonce={nonce}&cnonce={own}&nc={COUNT}&response={}",
                    response.expose()
                );
                Secret::new(query)
            }
        }
    }
}

/// Encodes what would end the value, and nothing more: these servers take it as it stands.
fn query_value(text: &str) -> String {
    let encode = |c: char| match c {
        '&' | '=' | '?' | '#' | '%' | '+' | ' ' => percent_encode(c.encode_utf8(&mut [0; 4])),
        c => c.into(),
    };
    text.chars().map(encode).collect()
}

fn md5(parts: &[&str]) -> glib::Checksum {
    // GLib has had this one from the beginning.
    let mut checksum = glib::Checksum::new(glib::ChecksumType::Md5).expect("GLib knows MD5");
    parts
        .iter()
        .for_each(|part| checksum.update(part.as_bytes()));
    checksum
}

fn base64_md5(parts: &[&str]) -> Secret {
    Secret::new(glib::base64_encode(&md5(parts).digest()))
}

fn hex_md5(parts: &[&str]) -> Secret {
    Secret::new(md5(parts).string().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(opaque: Option<&str>) -> Demand {
        Demand::Answer(Challenge::Adobe {
            salt: "s=".into(),
            challenge: "c==".into(),
            opaque: opaque.map(str::to_owned),
        })
    }

    #[test]
    fn descriptions_of_several_servers_are_understood() {
        let nonce = Challenge::Limelight { nonce: "n".into() };
        for (description, demand) in [
            (
                "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : ",
                Some(Demand::User(Method::Adobe)),
            ),
            (
                "code=403 need auth; authmod=adobe",
                Some(Demand::User(Method::Adobe)),
            ),
            (
                "[ AccessManager.Reject ] : [ code=403 need auth; authmod=llnw ] : ",
                Some(Demand::User(Method::Limelight)),
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth&user=u&salt=s=&challenge=c==&opaque=o=",
                Some(challenge(Some("o="))),
            ),
            (
                "authmod=adobe ?reason=needauth&user=u&salt=s=&challenge=c==",
                Some(challenge(None)),
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=llnw ] : ?reason=needauth&user=u&nonce=n ",
                Some(Demand::Answer(nonce)),
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=authfailed&opaque=o",
                None,
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=nosuchuser",
                None,
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth&user=u",
                None,
            ),
            (
                "[ AccessManager.Reject ] : [ authmod=llnw ] : ?reason=needauth&nonce=",
                None,
            ),
            (
                "[ AccessManager.Reject ] : [ code=403 need auth; authmod=red5 ] : ",
                None,
            ),
            ("authmod=", None),
            ("", None),
        ] {
            assert_eq!(Demand::parse(description), demand, "{description}");
        }
    }

    /// The responses were computed by other means.
    #[test]
    fn challenges_are_answered() {
        let password = Secret::new("hunter2");
        let answer = |challenge: Challenge, app| {
            let answer = challenge.answer(app, "a&b", &password, 0xa1b2);
            answer.expose().to_owned()
        };
        let adobe = |opaque: Option<&str>| Challenge::Adobe {
            salt: "s=".into(),
            challenge: "c==".into(),
            opaque: opaque.map(str::to_owned),
        };
        let limelight = || Challenge::Limelight { nonce: "n".into() };
        assert_eq!(
            answer(adobe(None), "live"),
            "authmod=adobe&user=a%26b&challenge=0000a1b2&response=f+XGvhkCG1aQd8jGDYWHfA=="
        );
        assert_eq!(
            answer(adobe(Some("o=")), "live"),
            "authmod=adobe&user=a%26b&challenge=0000a1b2&response=EeDbR/NRv24kQN8HoPeTlA==&opaque=o="
        );
        assert_eq!(
            answer(limelight(), "live"),
            "authmod=llnw&user=a%26b&nonce=n&cnonce=0000a1b2&nc=00000001&response=cf0b308d951d802a7e52ee64332c3ac2"
        );
        assert_eq!(
            answer(limelight(), "live/a"),
            "authmod=llnw&user=a%26b&nonce=n&cnonce=0000a1b2&nc=00000001&response=0553e0ab8eafb9515100b0a1558d51be"
        );
    }
}
