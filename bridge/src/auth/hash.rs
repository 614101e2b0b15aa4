// SPDX-License-Identifier: MPL-2.0

//! Hashed secrets.

use std::fmt;

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::Secret;
use ring::digest;
use subtle::ConstantTimeEq;

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

    /// It takes tens of milliseconds.
    pub fn is_slow(&self) -> bool {
        matches!(self, Hash::Argon2(_))
    }

    /// Slow for argon2 (tens of milliseconds): not on an async thread.
    pub fn verify(&self, secret: &Secret) -> bool {
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

pub fn sha256(secret: &Secret) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, secret.expose().as_bytes()).as_ref());
    bytes
}

/// Blocks of this size and more go back to the system when they are freed: else each thread that
/// has ever hashed a password keeps its own 19 MiB.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 1024 * 1024;
        // SAFETY: mallopt takes two numbers; it is called once, ahead of all other threads.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}
