// SPDX-License-Identifier: MPL-2.0

//! Who may do what: hashed secrets, Basic and Bearer, a limit on failed tries.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc},
};
use axum::http::HeaderValue;
use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::Secret;
use parking_lot::Mutex;
use ring::{digest, hmac, rand::SystemRandom};
use serde::{Deserialize, Deserializer, de::Error};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::{clock::seconds, failure::Failure};

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at robots, starts and stops their streams.
    Viewer,
    /// A robot: asks what is wanted of it, tells its state, publishes its stream; nothing else.
    Robot,
    /// The media server: asks whether others may, tells who waits and who looks; nothing else.
    MediaMtx,
    /// Everything, with every robot.
    Admin,
}

/// What somebody may do with a robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// See its state.
    Look,
    /// Start and stop its stream.
    Command,
    /// Make and revoke links to look at it.
    Share,
    /// Speak as the robot, publish its stream.
    Be,
}

/// One who may come in.
#[derive(Debug)]
pub struct User {
    pub name: String,
    pub role: Role,
    /// The robots of a viewer or robot; `None`: all.
    pub robots: Option<Vec<String>>,
    /// For Basic.
    pub password: Option<Hash>,
    /// For Bearer.
    pub token: Option<Hash>,
}

impl User {
    pub fn may(&self, right: Right, robot: &str) -> bool {
        let has_right = match self.role {
            Role::Admin => true,
            Role::Viewer => matches!(right, Right::Look | Right::Command),
            Role::Robot => right == Right::Be,
            Role::MediaMtx => false,
        };
        has_right
            && self
                .robots
                .as_ref()
                .is_none_or(|robots| robots.iter().any(|name| name == robot))
    }

    /// Has a right to any robot at all, so that sums over all of them are no secret.
    pub fn looks(&self) -> bool {
        matches!(self.role, Role::Viewer | Role::Admin)
    }

    pub fn check(&self, right: Right, robot: &str) -> Result<(), Failure> {
        if self.may(right, robot) {
            return Ok(());
        }
        let what = match right {
            Right::Look => "look at",
            Right::Command => "command",
            Right::Share => "share",
            Right::Be => "speak as",
        };
        Err(Failure::forbidden(format!(
            "user {:?} has no right to {what} robot {robot:?}",
            self.name
        )))
    }
}

/// A hashed secret as the configuration holds it.
#[derive(Clone, PartialEq, Eq)]
pub enum Hash {
    /// `sha256:` and the padded base64 of the digest, as in MediaMTX: for long random secrets.
    Sha256([u8; 32]),
    /// A PHC string, `$argon2id$…`: for what people choose.
    Argon2(String),
}

impl Hash {
    /// Reads a hash; the error shows nothing of the text, which may be a plain password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "make it with `droidrelay-bridge hash-password` (add --sha256 for a long random secret)";
        if let Some(digest) = text.strip_prefix("sha256:") {
            return STANDARD
                .decode(digest)
                .ok()
                .and_then(|digest| digest.try_into().ok())
                .map(Hash::Sha256)
                .ok_or_else(|| {
                    format!(
                        "what follows \"sha256:\" is not the padded base64 of 32 bytes: {REMEDY}"
                    )
                });
        }
        let phc = text.strip_prefix("argon2:").unwrap_or(text);
        if !phc.starts_with("$argon2") {
            return Err(format!("the secret is not hashed: {REMEDY}"));
        }
        let parsed = phc::PasswordHash::new(phc)
            .map_err(|err| format!("the argon2 hash cannot be read ({err}): {REMEDY}"))?;
        if parsed.hash.is_none() || parsed.salt.is_none() {
            return Err(format!("the argon2 hash is not complete: {REMEDY}"));
        }
        Ok(Hash::Argon2(phc.to_owned()))
    }

    /// Hashes `secret` with argon2id and a new salt.
    pub fn argon2id(secret: &Secret) -> Result<Self, String> {
        Argon2::default()
            .hash_password(secret.expose().as_bytes())
            .map(|hash| Hash::Argon2(hash.to_string()))
            .map_err(|err| format!("cannot hash: {err}"))
    }

    /// Hashes `secret` with SHA-256.
    pub fn sha256(secret: &Secret) -> Self {
        Hash::Sha256(sha256(secret))
    }

    /// Slow for argon2 (tens of milliseconds): not on an async thread.
    fn verify(&self, secret: &Secret) -> bool {
        match self {
            Hash::Sha256(expected) => sha256(secret).ct_eq(expected).into(),
            Hash::Argon2(expected) => phc::PasswordHash::new(expected).is_ok_and(|expected| {
                Argon2::default()
                    .verify_password(secret.expose().as_bytes(), &expected)
                    .is_ok()
            }),
        }
    }
}

impl fmt::Display for Hash {
    /// The text that [`Hash::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hash::Sha256(digest) => write!(f, "sha256:{}", STANDARD.encode(digest)),
            Hash::Argon2(phc) => f.write_str(phc),
        }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(…)")
    }
}

fn sha256(secret: &Secret) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, secret.expose().as_bytes()).as_ref());
    bytes
}

/// Why somebody does not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// No credentials were sent.
    Missing,
    /// The credentials are wrong.
    Wrong,
    /// Too many wrong ones came from there: not looked at until this has passed.
    Limited(Duration),
}

/// All that may come in.
pub type Users = Arc<[Arc<User>]>;

/// Checks credentials against the users.
pub struct Auth {
    users: watch::Sender<Users>,
    anonymous: Option<Arc<User>>,
    /// Of the last good password of each user with an argon2 hash, so that only the first
    /// request pays for it. The key lives in this process only.
    cache: Mutex<HashMap<String, hmac::Tag>>,
    cache_key: hmac::Key,
    failures: Mutex<Failures>,
    /// One argon2 at a time: each takes 19 MiB and a processor.
    slow: Arc<tokio::sync::Mutex<()>>,
}

impl Auth {
    /// Without users everybody is let in: the caller has made sure that only this host can ask.
    pub fn new(users: Vec<User>, limit: FailureLimit) -> Result<Self, String> {
        let cache_key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        let anonymous = users.is_empty().then(|| {
            Arc::new(User {
                name: "anonymous".into(),
                role: Role::Admin,
                robots: None,
                password: None,
                token: None,
            })
        });
        Ok(Auth {
            users: watch::Sender::new(users.into_iter().map(Arc::new).collect()),
            anonymous,
            cache: Mutex::default(),
            cache_key,
            failures: Mutex::new(Failures::new(limit)),
            slow: Arc::default(),
        })
    }

    /// Nobody needs a credential.
    pub fn is_open(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Knows these users and no others from now on. Whether anybody is let in without a
    /// credential stays as it was.
    pub fn replace(&self, users: Vec<User>) {
        self.users
            .send_replace(users.into_iter().map(Arc::new).collect());
        self.cache.lock().clear();
    }

    /// The users, as they are replaced.
    pub fn users(&self) -> watch::Receiver<Users> {
        self.users.subscribe()
    }

    /// Who sent this header from `peer`?
    pub async fn check(
        &self,
        header: Option<&HeaderValue>,
        peer: IpAddr,
    ) -> Result<Arc<User>, Denial> {
        if let Some(anonymous) = &self.anonymous {
            return Ok(anonymous.clone());
        }
        let header = header.ok_or(Denial::Missing)?;
        let credentials = header.to_str().ok().and_then(Credentials::parse);
        self.check_credentials(credentials, peer).await
    }

    /// Whose are these, sent from `peer`? None: they cannot be read.
    pub async fn check_credentials(
        &self,
        credentials: Option<Credentials>,
        peer: IpAddr,
    ) -> Result<Arc<User>, Denial> {
        self.admit(peer)?;
        let found = match credentials {
            Some(Credentials::Bearer(token)) => self.by_token(&token),
            Some(Credentials::Basic(name, password)) => {
                let users = self.users.borrow().clone();
                let has_password = |user: &&Arc<User>| user.name == name && user.password.is_some();
                let user = users.iter().find(has_password);
                // An unknown name takes as long as a known one: somebody else's hash is the decoy.
                let decoy = || {
                    let mut passwords = users.iter().filter_map(|user| user.password.as_ref());
                    passwords.find(|hash| matches!(hash, Hash::Argon2(_)))
                };
                match user.map_or_else(decoy, |user| user.password.as_ref()) {
                    Some(hash @ Hash::Argon2(_)) if !self.is_cached(&name, &password) => {
                        let (user, hash) = (user.cloned(), hash.clone());
                        let slow = self.by_slow_password(user, hash, name, password, peer);
                        return slow.await;
                    }
                    Some(Hash::Argon2(_)) => user.cloned(),
                    Some(hash) => user.filter(|_| hash.verify(&password)).cloned(),
                    None => None,
                }
            }
            None => None,
        };
        found.ok_or_else(|| {
            self.charge(peer);
            Denial::Wrong
        })
    }

    /// Counts a wrong secret that came from there.
    pub fn charge(&self, peer: IpAddr) {
        self.failures.lock().charge(peer, Instant::now());
    }

    /// Whether what comes from there is looked at.
    pub fn admit(&self, peer: IpAddr) -> Result<(), Denial> {
        match self.failures.lock().locked_for(peer, Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(Denial::Limited(wait)),
        }
    }

    fn by_token(&self, token: &Secret) -> Option<Arc<User>> {
        let digest = sha256(token);
        let mut found = None;
        for user in self.users.borrow().iter() {
            if let Some(Hash::Sha256(expected)) = &user.token
                && bool::from(digest.ct_eq(expected))
            {
                found = Some(user.clone());
            }
        }
        found
    }

    /// With argon2 by this hash; the user is missing where it is a decoy.
    async fn by_slow_password(
        &self,
        user: Option<Arc<User>>,
        hash: Hash,
        name: String,
        password: Secret,
        peer: IpAddr,
    ) -> Result<Arc<User>, Denial> {
        let turn = self.slow.clone().lock_owned().await;
        // While this one waited its turn, another may have settled it.
        if let (Some(user), true) = (&user, self.is_cached(&name, &password)) {
            return Ok(user.clone());
        }
        self.admit(peer)?;
        // Charged ahead: who hangs up during the check has tried all the same.
        self.charge(peer);
        let tag = self.tag(&name, &password);
        // The turn comes back with the verdict, so that the next one finds the cache filled; it
        // ends with the check itself where nobody waits any more.
        let checked = tokio::task::spawn_blocking(move || (hash.verify(&password), turn)).await;
        let (good, _turn) = checked.map_or((false, None), |(good, turn)| (good, Some(turn)));
        match user {
            Some(user) if good => {
                self.failures.lock().refund(peer);
                self.cache.lock().insert(name, tag);
                Ok(user)
            }
            _ => Err(Denial::Wrong),
        }
    }

    fn tag(&self, name: &str, password: &Secret) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.cache_key);
        // A user name cannot hold a colon (RFC 7617, section 2).
        context.update(name.as_bytes());
        context.update(b":");
        context.update(password.expose().as_bytes());
        context.sign()
    }

    fn is_cached(&self, name: &str, password: &Secret) -> bool {
        let tag = self.tag(name, password);
        self.cache
            .lock()
            .get(name)
            .is_some_and(|cached| tag.as_ref().ct_eq(cached.as_ref()).into())
    }
}

/// What somebody shows to come in.
pub enum Credentials {
    /// User name and password.
    Basic(String, Secret),
    /// A token.
    Bearer(Secret),
}

impl Credentials {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return (!rest.is_empty()).then(|| Credentials::Bearer(rest.into()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = Secret::new(String::from_utf8(STANDARD.decode(rest).ok()?).ok()?);
        let (name, password) = pair.expose().split_once(':')?;
        Some(Credentials::Basic(name.to_owned(), password.into()))
    }
}

/// How many failed tries from one address are borne.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureLimit {
    /// Tries that may fail at once.
    #[serde(deserialize_with = "burst")]
    pub burst: u32,
    /// The time in which that many are forgotten.
    #[serde(deserialize_with = "seconds::<_, 1, 86_400>")]
    pub window: Duration,
}

impl Default for FailureLimit {
    fn default() -> Self {
        FailureLimit {
            burst: 10,
            window: Duration::from_secs(60),
        }
    }
}

fn burst<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom(
            "burst is 0: nobody could ever come in; give at least 1",
        )),
        burst => Ok(burst),
    }
}

/// Failed tries by address, a leaky bucket each; `now` is an argument.
struct Failures {
    limit: FailureLimit,
    /// When all tries of an address will be forgotten: each one takes its share of the window.
    forgotten_at: HashMap<IpAddr, Instant>,
}

/// Addresses that are remembered; beyond it, some attacker's is forgotten.
const MAX_PEERS: usize = 10_000;

impl Failures {
    fn new(limit: FailureLimit) -> Self {
        Failures {
            limit,
            forgotten_at: HashMap::new(),
        }
    }

    /// How long `peer` has to wait before it may try again.
    fn locked_for(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let at = self.forgotten_at.get(&network(peer))?;
        let after_another = at.saturating_duration_since(now) + self.share();
        let wait = after_another.saturating_sub(self.limit.window);
        (!wait.is_zero()).then_some(wait)
    }

    fn charge(&mut self, peer: IpAddr, now: Instant) {
        if self.forgotten_at.len() >= MAX_PEERS {
            self.forget(now);
        }
        let share = self.share();
        let at = self.forgotten_at.entry(network(peer)).or_insert(now);
        *at = now.max(*at) + share;
    }

    fn refund(&mut self, peer: IpAddr) {
        let share = self.share();
        if let Some(at) = self.forgotten_at.get_mut(&network(peer)) {
            *at = at.checked_sub(share).unwrap_or(*at);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.forgotten_at.retain(|_, at| *at > now);
        if self.forgotten_at.len() >= MAX_PEERS
            && let Some(peer) = self.forgotten_at.keys().next().copied()
        {
            self.forgotten_at.remove(&peer);
        }
    }

    /// The time in which one try is forgotten.
    fn share(&self) -> Duration {
        self.limit.window / self.limit.burst
    }
}

/// What counts as one address: with IPv6, a host has a whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const LIMIT: FailureLimit = FailureLimit {
        burst: 3,
        window: Duration::from_secs(30),
    };

    fn user(name: &str, password: Option<Hash>, token: Option<Hash>) -> User {
        User {
            name: name.into(),
            role: Role::Viewer,
            robots: None,
            password,
            token,
        }
    }

    /// An argon2id hash with the least cost there is: unoptimized, the usual one takes a second.
    fn cheap(secret: &str) -> Hash {
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let hash = argon2.hash_password(secret.as_bytes()).unwrap();
        Hash::parse(&hash.to_string()).unwrap()
    }

    fn basic(name: &str, password: &str) -> HeaderValue {
        let pair = STANDARD.encode(format!("{name}:{password}"));
        HeaderValue::from_str(&format!("Basic {pair}")).unwrap()
    }

    fn auth() -> Auth {
        let users = vec![
            user("random", Some(Hash::sha256(&"r4nd:om".into())), None),
            user("human", Some(cheap("hunter2")), None),
            user("app", None, Some(Hash::sha256(&"t0ken".into()))),
        ];
        Auth::new(users, LIMIT).unwrap()
    }

    async fn try_in(auth: &Auth, header: &HeaderValue) -> Result<String, Denial> {
        let user = auth.check(Some(header), HOME).await?;
        Ok(user.name.clone())
    }

    #[tokio::test]
    async fn the_right_secret_lets_in_by_basic_and_bearer() {
        let auth = auth();
        assert_eq!(
            try_in(&auth, &basic("random", "r4nd:om")).await.unwrap(),
            "random"
        );
        assert_eq!(
            try_in(&auth, &basic("human", "hunter2")).await.unwrap(),
            "human"
        );
        let bearer = HeaderValue::from_static("bearer t0ken");
        assert_eq!(try_in(&auth, &bearer).await.unwrap(), "app");
        assert_eq!(auth.check(None, HOME).await.unwrap_err(), Denial::Missing);
    }

    #[tokio::test]
    async fn a_wrong_secret_a_strange_header_and_an_unknown_name_are_refused() {
        for header in [
            basic("random", "hunter2"),
            basic("human", "hunter3"),
            basic("human", ""),
            basic("nobody", "hunter2"),
            basic("app", "t0ken"),
            HeaderValue::from_static("Bearer hunter2"),
            HeaderValue::from_static("Bearer "),
            HeaderValue::from_static("Basic %%%"),
            HeaderValue::from_static("Digest x"),
            HeaderValue::from_static("Basic"),
        ] {
            assert_eq!(
                try_in(&auth(), &header).await,
                Err(Denial::Wrong),
                "{header:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_cached_password_is_cheap_and_another_one_is_still_wrong() {
        let auth = auth();
        try_in(&auth, &basic("human", "hunter2")).await.unwrap();
        assert!(auth.is_cached("human", &"hunter2".into()));
        assert!(!auth.is_cached("human", &"hunter3".into()));
        assert_eq!(
            try_in(&auth, &basic("human", "hunter3")).await,
            Err(Denial::Wrong)
        );
        assert_eq!(
            try_in(&auth, &basic("human", "hunter2")).await.unwrap(),
            "human"
        );
    }

    #[tokio::test]
    async fn many_right_passwords_at_once_are_all_let_in() {
        let auth = Arc::new(auth());
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let auth = auth.clone();
                tokio::spawn(async move { try_in(&auth, &basic("human", "hunter2")).await })
            })
            .collect();
        for one in tries {
            assert_eq!(one.await.unwrap().unwrap(), "human");
        }
    }

    #[tokio::test]
    async fn after_too_many_failures_even_the_right_password_waits() {
        for wrong in [
            basic("random", "x"),
            basic("human", "x"),
            basic("nobody", "x"),
        ] {
            let auth = auth();
            for _ in 0..LIMIT.burst {
                assert_eq!(try_in(&auth, &wrong).await, Err(Denial::Wrong));
            }
            let Err(Denial::Limited(wait)) = try_in(&auth, &basic("human", "hunter2")).await else {
                panic!("not limited after {wrong:?}");
            };
            assert!(
                wait > Duration::ZERO && wait <= Duration::from_secs(10),
                "{wait:?}"
            );
            let other = IpAddr::from([127, 0, 0, 2]);
            assert!(
                auth.check(Some(&basic("human", "hunter2")), other)
                    .await
                    .is_ok()
            );
        }
    }

    #[test]
    fn failures_are_forgotten_with_time_and_counted_by_ipv6_network() {
        let mut failures = Failures::new(LIMIT);
        let now = Instant::now();
        let (one, same, other): (IpAddr, IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
            "2001:db8:0:1::1".parse().unwrap(),
        );
        for _ in 0..3 {
            assert_eq!(failures.locked_for(one, now), None);
            failures.charge(one, now);
        }
        assert_eq!(
            failures.locked_for(same, now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(failures.locked_for(other, now), None);
        assert_eq!(
            failures.locked_for(one, now + Duration::from_secs(10)),
            None
        );
    }

    #[test]
    fn the_memory_for_failures_is_bounded() {
        let mut failures = Failures::new(LIMIT);
        let now = Instant::now();
        for peer in 0..(MAX_PEERS as u32 + 50) {
            failures.charge(IpAddr::from(peer.to_be_bytes()), now);
        }
        assert_eq!(failures.forgotten_at.len(), MAX_PEERS);
    }

    #[test]
    fn hashes_read_back_and_a_plain_password_is_refused_without_showing_it() {
        let secret = "hunter2".into();
        for hash in [Hash::sha256(&secret), Hash::argon2id(&secret).unwrap()] {
            let read = Hash::parse(&hash.to_string()).unwrap();
            assert!(read == hash && read.verify(&secret) && !read.verify(&"hunter3".into()));
        }
        // The form of MediaMTX's documentation: openssl dgst -binary -sha256 | openssl base64.
        assert_eq!(
            Hash::sha256(&"hunter2".into()).to_string(),
            "sha256:9S+9MrKzuG/4jvbEkGKChfSCrxXdyylUH5S89Saj9sc="
        );
        for wrong in [
            "hunter2",
            "sha256:hunter2",
            "$argon2id$hunter2",
            "$argon2id$v=19$m=8,t=1,p=1",
        ] {
            let error = Hash::parse(wrong).unwrap_err();
            assert!(error.contains("hash-password"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
