// SPDX-License-Identifier: MPL-2.0

//! Credentials that have been right lately, as keyed hashes: known at once, without another slow
//! hash, and, where they came from before, ahead of the limit on failed tries.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ring::{hmac, rand::SystemRandom};

use super::{
    hash::Hash,
    user::{Credentials, User},
};
use crate::connections::network;

/// A credential is forgotten when it has not been used for so long.
const KEPT: Duration = Duration::from_secs(3600);
/// Credentials, and places that they come from; beyond it, the oldest is forgotten.
const MAX: usize = 10_000;
/// Wrong passwords within [`KEPT`] that a name bears ahead of the limit, from a place where it is
/// known. Secrets that are long and random bear any number.
const GUESSES: u32 = 5_000;

/// Keyed hash of a credential; the key lives in this process only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 32]);

/// A name, and the network that it came from.
type Place = (String, IpAddr);

pub struct Recognised {
    key: hmac::Key,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    right: HashMap<Tag, Right>,
    places: HashMap<Place, Known>,
}

struct Right {
    user: Arc<User>,
    until: Instant,
}

struct Known {
    until: Instant,
    /// Wrong passwords since.
    wrong: u32,
    since: Instant,
}

impl Recognised {
    pub fn new() -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(Recognised {
            key,
            inner: Mutex::default(),
        })
    }

    pub fn tag(&self, credentials: &Credentials) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        match credentials {
            Credentials::Basic(name, password) => {
                // A user name cannot hold a colon (RFC 7617, section 2).
                for part in ["basic:", name, ":", password.expose()] {
                    context.update(part.as_bytes());
                }
            }
            Credentials::Bearer(token) => {
                context.update(b"bearer:");
                context.update(token.expose().as_bytes());
            }
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        Tag(tag)
    }

    /// A number that belongs to this name and that nobody else can compute.
    pub fn number_of(&self, name: &str) -> usize {
        let tag = hmac::sign(&self.key, name.as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&tag.as_ref()[..8]);
        // The remainder is what counts.
        u64::from_le_bytes(bytes) as usize
    }

    /// Whose credential it is, where it has been right lately.
    pub fn find(&self, tag: &Tag, now: Instant) -> Option<Arc<User>> {
        let inner = self.inner.lock();
        let right = inner.right.get(tag)?;
        (right.until > now).then(|| right.user.clone())
    }

    /// Whether this user has come from there lately, and has not been guessed at too often.
    pub fn is_known_at(&self, user: &User, peer: IpAddr, now: Instant) -> bool {
        let bears_all = !matches!(user.password, Some(Hash::Argon2(_)));
        let inner = self.inner.lock();
        let known = inner.places.get(&(user.name.clone(), network(peer, 64)));
        known.is_some_and(|known| known.until > now && (bears_all || known.wrong < GUESSES))
    }

    /// It is right, and came from there.
    pub fn note(&self, tag: Tag, user: &Arc<User>, peer: IpAddr, now: Instant) {
        let until = now + KEPT;
        let mut inner = self.inner.lock();
        make_room(&mut inner.right, &tag, now, |right| right.until);
        let user = user.clone();
        let name = user.name.clone();
        inner.right.insert(tag, Right { user, until });
        let place = (name, network(peer, 64));
        make_room(&mut inner.places, &place, now, |known| known.until);
        let known = inner.places.entry(place).or_insert(Known {
            until,
            wrong: 0,
            since: now,
        });
        known.until = until;
    }

    /// A wrong password for this name came from there.
    pub fn guessed(&self, name: &str, peer: IpAddr, now: Instant) {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.places.get_mut(&(name.to_owned(), network(peer, 64))) {
            if known.since + KEPT <= now {
                (known.wrong, known.since) = (0, now);
            }
            known.wrong = known.wrong.saturating_add(1);
        }
    }

    /// Other users are known from now on.
    pub fn forget(&self) {
        *self.inner.lock() = Inner::default();
    }
}

/// Forgets what is over, or else the oldest, where `map` is full and `new` is not in it.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    new: &K,
    now: Instant,
    until: impl Fn(&V) -> Instant,
) {
    if map.len() < MAX || map.contains_key(new) {
        return;
    }
    map.retain(|_, value| until(value) > now);
    if map.len() >= MAX {
        let oldest = map.iter().min_by_key(|(_, value)| until(value));
        if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
            map.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::user::Role;

    fn user(password: Hash) -> Arc<User> {
        Arc::new(User {
            name: "owner".into(),
            role: Role::Admin,
            robots: None,
            password: Some(password),
            token: None,
        })
    }

    #[test]
    fn a_right_credential_is_known_for_an_hour_after_its_last_use() {
        let recognised = Recognised::new().unwrap();
        let (home, away) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let owner = user(Hash::sha256(&"right".into()));
        let tag =
            |password: &str| recognised.tag(&Credentials::Basic("owner".into(), password.into()));
        let now = Instant::now();
        assert!(recognised.find(&tag("right"), now).is_none());
        recognised.note(tag("right"), &owner, home, now);
        assert!(recognised.find(&tag("right"), now).is_some());
        assert!(recognised.find(&tag("wrong"), now).is_none());
        let token = recognised.tag(&Credentials::Bearer("owner:right".into()));
        assert!(recognised.find(&token, now).is_none());
        assert!(recognised.is_known_at(&owner, home, now));
        assert!(!recognised.is_known_at(&owner, away, now));
        let over = now + KEPT;
        assert!(recognised.find(&tag("right"), over).is_none());
        assert!(!recognised.is_known_at(&owner, home, over));
    }

    #[test]
    fn a_password_of_a_person_bears_so_many_guesses_and_a_random_one_bears_any_number() {
        let now = Instant::now();
        let home = IpAddr::from([192, 0, 2, 1]);
        let argon2 = Hash::argon2id(&"right".into()).unwrap();
        for (owner, is_known) in [
            (user(argon2), false),
            (user(Hash::sha256(&"r".into())), true),
        ] {
            let recognised = Recognised::new().unwrap();
            let tag = recognised.tag(&Credentials::Basic("owner".into(), "right".into()));
            recognised.note(tag, &owner, home, now);
            for _ in 0..GUESSES {
                assert!(recognised.is_known_at(&owner, home, now));
                recognised.guessed("owner", home, now);
            }
            assert_eq!(recognised.is_known_at(&owner, home, now), is_known);
        }
    }

    #[test]
    fn the_memory_for_credentials_is_bounded() {
        let recognised = Recognised::new().unwrap();
        let owner = user(Hash::sha256(&"right".into()));
        let now = Instant::now();
        for number in 0..MAX as u32 + 3 {
            let tag = recognised.tag(&Credentials::Bearer(number.to_string().as_str().into()));
            recognised.note(tag, &owner, number.to_be_bytes().into(), now);
        }
        let inner = recognised.inner.lock();
        assert_eq!((inner.right.len(), inner.places.len()), (MAX, MAX));
    }
}
