// SPDX-License-Identifier: MPL-2.0

//! Links by which anybody may look at one robot for a while. They are signed, not stored; what is
//! kept, on a retained topic beside the robot's, is which were revoked.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::Duration,
};

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use droidrelay_wire::Secret;
use parking_lot::Mutex;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    random::{hex, random},
};

const VERSION: u8 = 2;
/// Version, end, generation, id.
const HEAD: usize = 1 + 8 + 8 + 8;
const MAC: usize = 32;
/// Longest link, in seconds.
pub const MAX_FOR: u64 = 365 * 86_400;
/// Links of one robot that are revoked one by one; beyond it, all that were made before are.
const MAX_REVOKED: usize = 200;
/// Shorter keys could be guessed.
const MIN_KEY: usize = 32;

/// What was revoked of one robot's links; the retained payload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Revoked {
    /// Links of generations below this one; each "revoke all" begins a new one, so that it does not
    /// matter whose clock made a link.
    generation: u64,
    /// Ids, and the seconds since 1970 at which each had ended anyway.
    ids: BTreeMap<String, u64>,
}

impl Revoked {
    fn covers(&self, link: &ShareLink) -> bool {
        link.generation < self.generation || self.ids.contains_key(&link.id)
    }

    /// Both together, without what has ended by itself.
    fn merge(&mut self, other: Revoked, now: u64) {
        self.generation = self.generation.max(other.generation);
        self.ids.extend(other.ids);
        self.ids.retain(|_, ends| *ends > now);
    }
}

/// One link, as its token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareLink {
    pub robot: String,
    pub id: String,
    /// Seconds since 1970.
    pub ends: u64,
    generation: u64,
}

/// Makes, checks and revokes links.
#[derive(Default)]
pub struct Shares {
    key: Option<hmac::Key>,
    revoked: Mutex<HashMap<String, Revoked>>,
    /// Robots whose retained topic lacks something that is known here.
    unwritten: Mutex<HashSet<String>>,
}

/// Reads the key that signs links.
pub fn key_from_file(path: &Path) -> Result<hmac::Key, String> {
    let secret = Secret::from_file(path)?;
    if secret.expose().len() < MIN_KEY {
        return Err(format!(
            "the key in {} is too short to be safe: write {MIN_KEY} random characters or more, for example by `openssl rand -hex 32`",
            path.display()
        ));
    }
    Ok(hmac::Key::new(
        hmac::HMAC_SHA256,
        secret.expose().as_bytes(),
    ))
}

impl Shares {
    pub fn new(key: Option<hmac::Key>) -> Self {
        Shares {
            key,
            ..Shares::default()
        }
    }

    /// The key, or what is missing in the configuration.
    pub fn key(&self) -> Result<&hmac::Key, Failure> {
        self.key.as_ref().ok_or_else(|| {
            let reason = "sharing is not set up: give the configuration a share.key-file";
            Failure::new(StatusCode::CONFLICT, reason)
        })
    }

    /// A link, and its token.
    pub fn make(
        &self,
        robot: &str,
        lasts: u64,
        now: Duration,
    ) -> Result<(ShareLink, Secret), Failure> {
        let key = self.key()?;
        let id = random::<8>().map_err(Failure::unavailable)?;
        let ends = now.as_secs() + lasts;
        let generation = self.generation(robot);
        let mut bytes = vec![VERSION];
        bytes.extend(ends.to_be_bytes());
        bytes.extend(generation.to_be_bytes());
        bytes.extend(id);
        bytes.extend(robot.as_bytes());
        let mac = hmac::sign(key, &bytes);
        bytes.extend(mac.as_ref());
        let token = Secret::new(URL_SAFE_NO_PAD.encode(bytes));
        let link = ShareLink {
            robot: robot.to_owned(),
            id: hex(&id),
            ends,
            generation,
        };
        Ok((link, token))
    }

    /// The generation of the robot's newest links.
    fn generation(&self, robot: &str) -> u64 {
        let all = self.revoked.lock();
        all.get(robot).map_or(0, |revoked| revoked.generation)
    }

    /// The link of this token, if it still lets anybody in.
    pub fn check(&self, token: &str, now: Duration) -> Option<ShareLink> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC)?)?;
        // In constant time.
        hmac::verify(self.key.as_ref()?, signed, mac).ok()?;
        let (head, robot) = signed.split_at_checked(HEAD)?;
        let number = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let link = ShareLink {
            robot: std::str::from_utf8(robot).ok()?.to_owned(),
            id: hex(head.get(17..)?),
            ends: number(1)?,
            generation: number(9)?,
        };
        let lives = head.first() == Some(&VERSION) && link.ends > now.as_secs();
        let is_revoked = self
            .revoked
            .lock()
            .get(&link.robot)
            .is_some_and(|revoked| revoked.covers(&link));
        (lives && !is_revoked).then_some(link)
    }

    /// Revokes one link, or all that were made until now; what is to be kept of the robot.
    pub fn revoke(&self, robot: &str, id: Option<&str>, now: Duration) -> Revoked {
        let next = self.generation(robot) + 1;
        let mut new = Revoked::default();
        match id {
            Some(id) => {
                // Its end is not known here; no link lasts longer.
                new.ids.insert(id.to_owned(), now.as_secs() + MAX_FOR);
            }
            None => new.generation = next,
        }
        let mut all = self.revoked.lock();
        let revoked = all.entry(robot.to_owned()).or_default();
        revoked.merge(new, now.as_secs());
        if revoked.ids.len() > MAX_REVOKED {
            revoked.generation = next;
        }
        if revoked.generation >= next {
            revoked.ids.clear();
        }
        revoked.clone()
    }

    /// Takes the retained payload of a robot; returns whether more is known here than there.
    pub fn read(&self, robot: &str, kept: Revoked, now: Duration) -> bool {
        let mut all = self.revoked.lock();
        let revoked = all.entry(robot.to_owned()).or_default();
        revoked.merge(kept.clone(), now.as_secs());
        let knows_more = revoked.generation > kept.generation
            || revoked.ids.keys().any(|id| !kept.ids.contains_key(id));
        if knows_more {
            self.unwritten.lock().insert(robot.to_owned());
        }
        knows_more
    }

    /// What is to be written of robots whose retained topic lacks something.
    pub fn unwritten(&self) -> Vec<(String, Revoked)> {
        let names = std::mem::take(&mut *self.unwritten.lock());
        let all = self.revoked.lock();
        let revoked = |name: String| Some((name.clone(), all.get(&name)?.clone()));
        names.into_iter().filter_map(revoked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn shares(key: &[u8]) -> Shares {
        Shares::new(Some(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    fn later(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    #[test]
    fn a_link_lets_in_until_it_ends_and_nothing_about_it_can_be_changed() {
        let shares = shares(b"one");
        let (link, token) = shares.make("r1", 60, NOW).unwrap();
        let token = token.expose();
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        assert!(token.chars().all(safe), "{token}");
        assert_eq!(shares.check(token, later(59)), Some(link));
        assert_eq!(shares.check(token, later(60)), None);
        for at in 0..token.len() {
            let other = if token.as_bytes()[at] == b'A' {
                "B"
            } else {
                "A"
            };
            let mut forged = token.to_owned();
            forged.replace_range(at..=at, other);
            assert_eq!(shares.check(&forged, NOW), None, "{forged}");
        }
        for wrong in ["", "AAAA", &token[1..], &format!("{token}AAAA")] {
            assert_eq!(shares.check(wrong, NOW), None);
        }
        assert_eq!(self::shares(b"two").check(token, NOW), None);
        assert_eq!(Shares::default().check(token, NOW), None);
    }

    #[test]
    fn a_revoked_link_lets_nobody_in_at_any_bridge() {
        let (one, two) = (shares(b"k"), shares(b"k"));
        let (link, token) = one.make("r1", 60, NOW).unwrap();
        let (_, other) = one.make("r1", 60, NOW).unwrap();
        let revoked = one.revoke("r1", Some(&link.id), NOW);
        assert_eq!(one.check(token.expose(), NOW), None);
        assert!(two.check(token.expose(), NOW).is_some());
        assert!(!two.read("r1", revoked.clone(), NOW));
        assert_eq!(two.check(token.expose(), NOW), None);
        assert!(two.check(other.expose(), NOW).is_some());
        let all = two.revoke("r1", None, NOW);
        assert_eq!(two.check(other.expose(), NOW), None);
        let (_, new) = two.make("r1", 60, later(1)).unwrap();
        assert!(two.check(new.expose(), later(1)).is_some());
        // Of two that were revoked at the same time at two bridges, neither is lost.
        assert!(two.read("r1", revoked, NOW));
        let [(name, both)] = two.unwritten().try_into().unwrap();
        assert_eq!((name.as_str(), both.generation), ("r1", all.generation));
        assert!(both.ids.contains_key(&link.id));
    }

    #[test]
    fn all_links_are_revoked_whatever_the_clocks_of_the_bridges_that_made_them() {
        let (ahead, behind) = (shares(b"k"), shares(b"k"));
        let (_, token) = ahead.make("r1", 3600, later(300)).unwrap();
        let revoked = behind.revoke("r1", None, NOW);
        assert_eq!(behind.check(token.expose(), NOW), None);
        assert!(!ahead.read("r1", revoked, later(300)));
        assert_eq!(ahead.check(token.expose(), later(300)), None);
        // And one that the late clock makes afterwards is good at once.
        let (_, token) = behind.make("r1", 3600, NOW).unwrap();
        assert!(ahead.check(token.expose(), later(300)).is_some());
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgets_what_has_ended() {
        let shares = shares(b"k");
        let mut revoked = Revoked::default();
        for id in 0..=MAX_REVOKED {
            revoked = shares.revoke("r1", Some(&format!("{id:016x}")), NOW);
        }
        assert!(revoked.ids.is_empty() && revoked.generation > 0);
        revoked = shares.revoke("r2", Some("a"), NOW);
        assert_eq!(revoked.ids.len(), 1);
        revoked = shares.revoke("r2", Some("b"), later(MAX_FOR));
        assert_eq!(revoked.ids.keys().collect::<Vec<_>>(), ["b"]);
    }
}
