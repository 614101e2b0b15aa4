// SPDX-License-Identifier: MPL-2.0

//! Credentials made for one run, and the files that hold them.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};

/// A user and a password.
#[derive(Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl Login {
    /// `user` with a password of 96 random bits, in letters that need no quoting anywhere.
    pub fn generate(user: &str) -> Result<Self> {
        Ok(Login {
            user: user.to_owned(),
            password: random_word()?,
        })
    }

    /// The `sha256:` form that MediaMTX and the bridge keep.
    pub fn hash(&self) -> String {
        let digest = digest(&SHA256, self.password.as_bytes());
        format!("sha256:{}", STANDARD.encode(digest))
    }

    /// The value of HTTP's Authorization header.
    pub fn basic(&self) -> String {
        let text = format!("{}:{}", self.user, self.password);
        format!("Basic {}", STANDARD.encode(text))
    }
}

/// 24 hexadecimal digits that nobody can guess.
pub fn random_word() -> Result<String> {
    let mut bytes = [0; 12];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes `text` to a file that only its owner reads.
pub fn write_private(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
