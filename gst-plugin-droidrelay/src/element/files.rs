// SPDX-License-Identifier: MPL-2.0

//! Reads files that settings name (a password's among them), where nobody waits for a disk: one on a
//! network mount that is away hangs whoever reads it.

use std::{path::PathBuf, sync::mpsc, time::Duration};

use droidrelay_wire::{Secret, net::url::UserInfo};
use tokio::runtime::Handle;

/// How long reading them may take.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Those of `files` that are set, for an error's text.
pub fn names<'a>(files: impl IntoIterator<Item = &'a Option<PathBuf>>) -> String {
    let files = files.into_iter().flatten();
    let names: Vec<String> = files.map(|path| path.display().to_string()).collect();
    names.join(" or ")
}

/// For the `files`, named, that have not been read in time.
pub fn too_long(files: &str) -> String {
    format!(
        "{files} cannot be read within {} s: is it on a network mount that is away? Copy it to a local disk",
        DEADLINE.as_secs()
    )
}

/// Waits for what `read` makes of `files`, on a thread of its own, as long as that may take.
pub fn within<T: Send + 'static>(
    io: &Handle,
    files: &str,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, done) = mpsc::channel();
    io.spawn_blocking(move || {
        // Who asked may have given up.
        let _ = sender.send(read());
    });
    done.recv_timeout(DEADLINE).map_err(|_| too_long(files))
}

/// User and password as properties, a file and a URL say them.
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
        let username = self.username().map(str::to_owned);
        Ok(UserInfo { username, password })
    }

    pub fn username(&self) -> Option<&str> {
        self.user.as_deref().or(self.url.username.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Builder;

    #[test]
    fn whoever_asks_waits_no_longer_than_the_deadline() {
        let io = Builder::new_current_thread().build().unwrap();
        assert_eq!(within(io.handle(), "a", || 1), Ok(1));
        let (release, held) = mpsc::channel::<()>();
        let error = within(io.handle(), "/mnt/away/pass", move || held.recv()).unwrap_err();
        assert!(error.contains("/mnt/away/pass"), "{error}");
        drop(release);
    }
}
