// SPDX-License-Identifier: MPL-2.0

//! Who may do what: hashed secrets, Basic and Bearer, a limit on failed tries.

mod failures;
mod hash;
mod hashing;
mod recognised;
mod user;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;
use droidrelay_wire::Secret;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use self::{
    failures::Failures,
    hash::sha256,
    hashing::{HashingPlace, IsFull},
    recognised::{Recognised, Tag},
};
pub use self::{
    failures::{FailureLimit, UNREADABLE, readable},
    hash::{Hash, give_memory_back},
    user::{Credentials, Right, Role, User},
};

/// Why somebody does not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// No credentials were sent.
    Missing,
    /// The credentials are wrong.
    Wrong,
    /// Too many wrong ones came from there: not looked at until this has passed.
    Limited(Duration),
    /// Too many others are being checked now.
    Busy,
}

/// All that may come in.
pub type Users = Arc<[Arc<User>]>;

/// Checks credentials against the users.
pub struct Auth {
    users: watch::Sender<Users>,
    anonymous: Option<Arc<User>>,
    recognised: Recognised,
    failures: Mutex<Failures>,
    hashing: HashingPlace,
}

impl Auth {
    /// Without users everybody is let in: the caller has made sure that only this host can ask.
    pub fn new(users: Vec<User>, limit: FailureLimit) -> Result<Self, String> {
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
            recognised: Recognised::new()?,
            failures: Mutex::new(Failures::new(limit)),
            hashing: HashingPlace::default(),
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
        self.recognised.forget();
    }

    /// The users, as they are replaced.
    pub fn users(&self) -> watch::Receiver<Users> {
        self.users.subscribe()
    }

    /// The user as they are known now, with the secrets that they had then; None: taken away.
    pub fn still(&self, user: &User) -> Option<Arc<User>> {
        let now = self.user(&user.name)?;
        (now.password == user.password && now.token == user.token).then_some(now)
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<Arc<User>> {
        if let Some(anonymous) = &self.anonymous {
            return Some(anonymous.clone());
        }
        let users = self.users.borrow();
        users.iter().find(|user| user.name == name).cloned()
    }

    /// The user of this token.
    pub fn holder(&self, token: Secret) -> Option<Arc<User>> {
        named(&self.users.borrow(), &Credentials::Bearer(token))
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
        let Some(credentials) = credentials else {
            self.admit(peer)?;
            self.charge(peer);
            return Err(Denial::Wrong);
        };
        let tag = self.recognised.tag(&credentials);
        let now = Instant::now();
        let users = self.users.borrow().clone();
        let named = named(&users, &credentials);
        if let Some(user) = self.recognised.find(&tag, now) {
            // Ahead of the limit only where it came from before: guessing stays limited.
            if !self.recognised.is_known_at(&user, peer, now) && !is_never_limited(&user) {
                self.admit(peer)?;
            }
            self.recognised.note(tag, &user, peer, now);
            return Ok(user);
        }
        if !named.as_deref().is_some_and(is_never_limited)
            && let Err(denial) = self.admit(peer)
        {
            if let Credentials::Basic(name, _) = &credentials {
                self.recognised.guessed(name, peer, now);
            }
            return Err(denial);
        }
        let found = match credentials {
            Credentials::Bearer(_) => named,
            Credentials::Basic(name, password) => {
                match named.as_ref().and_then(|user| user.password.clone()) {
                    Some(hash @ Hash::Sha256(_)) if hash.verify(&password) => named,
                    hash => {
                        let slow = hash.filter(Hash::is_slow);
                        let user = named.filter(|_| slow.is_some());
                        // What is wrong already takes as long as any wrong password.
                        if let Some(hash) = slow.or_else(|| self.decoy(&users, &name)) {
                            let check = SlowCheck {
                                hash,
                                tag,
                                password,
                            };
                            return self.by_slow_password(user, users, check, peer).await;
                        }
                        None
                    }
                }
            }
        };
        let user = found.ok_or_else(|| {
            self.charge(peer);
            Denial::Wrong
        })?;
        self.recognised.note(tag, &user, peer, now);
        Ok(user)
    }

    /// Counts a wrong secret that came from there.
    pub fn charge(&self, peer: IpAddr) {
        if !peer.to_canonical().is_loopback() {
            self.failures.lock().charge(peer, Instant::now());
        }
    }

    /// Whether what comes from there is looked at. This host always is: MediaMTX asks from here.
    pub fn admit(&self, peer: IpAddr) -> Result<(), Denial> {
        if peer.to_canonical().is_loopback() {
            return Ok(());
        }
        match self.failures.lock().locked_for(peer, Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(Denial::Limited(wait)),
        }
    }

    /// The slow hash by which a wrong password for this name is checked, always the same one.
    fn decoy(&self, users: &Users, name: &str) -> Option<Hash> {
        let slow = |user: &Arc<User>| user.password.clone().filter(Hash::is_slow);
        let hashes: Vec<Hash> = users.iter().filter_map(slow).collect();
        let number = self.recognised.number_of(name).checked_rem(hashes.len())?;
        hashes.into_iter().nth(number)
    }

    /// With argon2 by this hash; the user is missing where it is a decoy.
    async fn by_slow_password(
        &self,
        user: Option<Arc<User>>,
        users: Users,
        check: SlowCheck,
        peer: IpAddr,
    ) -> Result<Arc<User>, Denial> {
        let SlowCheck {
            hash,
            tag,
            password,
        } = check;
        let is_known = user
            .as_ref()
            .is_some_and(|user| self.recognised.is_known_at(user, peer, Instant::now()));
        let (mut verdict, is_first) = self
            .hashing
            .check(tag, hash, password, is_known)
            .map_err(|IsFull| Denial::Busy)?;
        // Ahead of the verdict: who hangs up during the check has tried all the same.
        if is_first {
            self.charge(peer);
        }
        let is_right = verdict.wait_for(Option::is_some).await;
        let is_right = matches!(is_right.as_deref(), Ok(Some(true)));
        match user {
            Some(user) if is_right => {
                if is_first {
                    self.failures.lock().refund(peer);
                }
                // By the hash of a user who has been replaced meanwhile, nothing is known.
                if !Arc::ptr_eq(&users, &*self.users.borrow()) {
                    return Err(Denial::Busy);
                }
                self.recognised.note(tag, &user, peer, Instant::now());
                Ok(user)
            }
            _ => {
                if !is_first {
                    self.charge(peer);
                }
                Err(Denial::Wrong)
            }
        }
    }
}

/// A password that only a slow hash can judge.
struct SlowCheck {
    hash: Hash,
    tag: Tag,
    password: Secret,
}

/// The media server asks for everybody: whoever is limited, it is not.
fn is_never_limited(user: &User) -> bool {
    user.role == Role::MediaMtx
}

/// The user whom the credentials name: by a password not checked yet, by a token for good.
fn named(users: &Users, credentials: &Credentials) -> Option<Arc<User>> {
    match credentials {
        Credentials::Basic(name, _) => {
            let is_it = |user: &&Arc<User>| user.name == *name && user.password.is_some();
            users.iter().find(is_it).cloned()
        }
        Credentials::Bearer(token) => {
            let digest = sha256(token);
            let mut found = None;
            for user in users.iter() {
                if let Some(Hash::Sha256(expected)) = &user.token
                    && bool::from(digest.ct_eq(expected))
                {
                    found = Some(user.clone());
                }
            }
            found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::{Argon2, password_hash::PasswordHasher};
    use base64::{Engine, engine::general_purpose::STANDARD};

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
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
        try_from(auth, header, HOME).await
    }

    async fn try_from(auth: &Auth, header: &HeaderValue, peer: IpAddr) -> Result<String, Denial> {
        let user = auth.check(Some(header), peer).await?;
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
        let is_recognised = |password: &str| {
            let credentials = Credentials::Basic("human".into(), password.into());
            let tag = auth.recognised.tag(&credentials);
            auth.recognised.find(&tag, Instant::now()).is_some()
        };
        assert!(is_recognised("hunter2"));
        assert!(!is_recognised("hunter3"));
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
            assert!(
                try_from(&auth, &basic("human", "hunter2"), AWAY)
                    .await
                    .is_ok()
            );
        }
    }

    #[tokio::test]
    async fn strangers_behind_an_address_do_not_shut_out_whom_it_is_known_for() {
        let auth = auth();
        let right = [
            basic("human", "hunter2"),
            basic("random", "r4nd:om"),
            HeaderValue::from_static("Bearer t0ken"),
        ];
        for header in &right {
            assert!(try_in(&auth, header).await.is_ok());
        }
        for number in 0..50 {
            let guess = basic("human", &number.to_string());
            let denial = try_in(&auth, &guess).await.unwrap_err();
            let is_limited = matches!(denial, Denial::Limited(_));
            assert_eq!(is_limited, number >= LIMIT.burst, "{denial:?}");
        }
        for header in &right {
            assert!(try_in(&auth, header).await.is_ok(), "{header:?}");
        }
        // Guessing stays limited: from elsewhere the limit comes first.
        for _ in 0..LIMIT.burst {
            assert!(try_from(&auth, &basic("x", "y"), AWAY).await.is_err());
        }
        for header in &right {
            let tried = try_from(&auth, header, AWAY).await;
            assert!(matches!(tried, Err(Denial::Limited(_))), "{tried:?}");
        }
        // What was right and is so no more is not recognised.
        auth.replace(vec![user("human", Some(cheap("new")), None)]);
        let tried = try_in(&auth, &right[0]).await;
        assert!(matches!(tried, Err(Denial::Limited(_))), "{tried:?}");
    }

    #[tokio::test]
    async fn this_host_and_the_media_server_are_never_limited() {
        let mut media = user("mediamtx", Some(Hash::sha256(&"s3rver".into())), None);
        media.role = Role::MediaMtx;
        let auth = Auth::new(
            vec![media, user("human", Some(cheap("hunter2")), None)],
            LIMIT,
        );
        let auth = auth.unwrap();
        let loopback = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        for number in 0..20 {
            let guess = basic("human", &number.to_string());
            assert_eq!(try_from(&auth, &guess, loopback).await, Err(Denial::Wrong));
            assert!(try_in(&auth, &guess).await.is_err());
        }
        assert!(
            try_from(&auth, &basic("human", "hunter2"), loopback)
                .await
                .is_ok()
        );
        let tried = try_in(&auth, &basic("human", "hunter2")).await;
        assert!(matches!(tried, Err(Denial::Limited(_))), "{tried:?}");
        assert_eq!(
            try_in(&auth, &basic("mediamtx", "s3rver")).await.unwrap(),
            "mediamtx"
        );
        assert_eq!(
            try_in(&auth, &basic("mediamtx", "x")).await,
            Err(Denial::Wrong)
        );
    }

    #[tokio::test]
    async fn the_hashing_place_is_bounded_and_who_is_recognised_does_not_wait_for_it() {
        // A usual hash takes long enough that all of them come before the first one is done.
        let users = vec![user(
            "owner",
            Some(Hash::argon2id(&"right".into()).unwrap()),
            None,
        )];
        let auth = Arc::new(Auth::new(users, LIMIT).unwrap());
        let owner = basic("owner", "right");
        assert!(try_in(&auth, &owner).await.is_ok());
        let strangers: Vec<_> = (0..100_u8)
            .map(|number| {
                let auth = auth.clone();
                let peer = IpAddr::from([198, 51, 100, number]);
                tokio::spawn(async move {
                    try_from(&auth, &basic("owner", &number.to_string()), peer).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(!auth.hashing.is_idle());
        let began = Instant::now();
        assert!(try_in(&auth, &owner).await.is_ok());
        assert!(try_from(&auth, &owner, AWAY).await.is_ok());
        assert!(
            began.elapsed() < Duration::from_millis(100),
            "{:?}",
            began.elapsed()
        );
        let mut busy = 0;
        for stranger in strangers {
            busy += usize::from(stranger.await.unwrap() == Err(Denial::Busy));
        }
        assert!(busy >= 80, "{busy}");
        assert!(auth.hashing.is_idle());
    }

    #[tokio::test]
    async fn an_unknown_name_takes_as_long_as_a_wrong_password() {
        let auth = auth();
        for name in ["human", "nobody", "random", "app"] {
            let header = basic(name, "x");
            // Polled once: it waits for the hashing place, and is not refused without it.
            let mut check = Box::pin(auth.check(Some(&header), HOME));
            assert!(futures_util::poll!(check.as_mut()).is_pending(), "{name}");
            assert_eq!(check.await.unwrap_err(), Denial::Wrong, "{name}");
            auth.failures.lock().refund(HOME);
        }
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
