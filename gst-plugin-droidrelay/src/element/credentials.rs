// SPDX-License-Identifier: MPL-2.0

//! User and password as properties, a file and a URL say them.

use std::path::PathBuf;

use droidrelay_wire::{Secret, net::url::UserInfo};

#[derive(Debug, Clone, Default)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    /// What stood in the URL; all else wins over it.
    pub url: UserInfo,
}

impl Credentials {
    /// Reads the file, so that a rotated secret needs no restart.
    pub fn read(&self) -> Result<UserInfo, String> {
        let password = match &self.password_file {
            Some(path) => Some(Secret::from_file(path)?),
            None => self.password.clone().or_else(|| self.url.password.clone()),
        };
        let username = self.user.clone().or_else(|| self.url.username.clone());
        Ok(UserInfo { username, password })
    }
}
