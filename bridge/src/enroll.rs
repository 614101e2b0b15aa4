// SPDX-License-Identifier: MPL-2.0

//! Invitations to robots: each is a file with a bundle that only its token opens, once.
//!
//! The folder is shared by `robot add`, which writes, and by every bridge of this server, which
//! give out. Of the token it holds a hash, of the bundle what is sealed with the token.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::{
    Secret,
    words::enroll::{Bundle, VALID_FOR, hex},
};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
};
use serde::{Deserialize, Serialize};

use crate::random::random;

/// What is asked for with a token that has run out, or was used, is told for so long.
const REMEMBERED: u64 = 24 * 60 * 60;
const OPEN: &str = "open";
const USED: &str = "used";

/// Where robots find this server, and where their invitations are.
#[derive(Debug, Clone)]
pub struct Settings {
    pub folder: PathBuf,
    /// The bridge's URL where a proxy is in front of it.
    pub url: Option<String>,
    pub broker: Option<String>,
    /// With `{path}` in it.
    pub location: Option<String>,
    pub ca_file: PathBuf,
}

/// Why there is no bundle.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// No invitation has this token.
    Unknown,
    /// It was good until then, in seconds since 1970.
    Expired(u64),
    Used,
    /// The folder cannot be used.
    Folder(String),
}

/// The file of an invitation.
#[derive(Serialize, Deserialize)]
struct File {
    /// In seconds since 1970.
    until: u64,
    robots: Vec<String>,
    /// None: it is given out.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

/// A way to derive what is stored from the token; it has 192 random bits, so that once is enough.
fn derive(token: &Secret, what: &'static [u8]) -> [u8; 32] {
    let prk: Prk = Salt::new(HKDF_SHA256, b"droidrelay enroll").extract(token.expose().as_bytes());
    let mut derived = [0; 32];
    let label = [what];
    let filled = prk
        .expand(&label, HKDF_SHA256)
        .and_then(|output| output.fill(&mut derived));
    // Only more than 255 times as many bytes were too many.
    filled.expect("as many bytes as a hash has");
    derived
}

fn key(token: &Secret) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &derive(token, b"key"));
    LessSafeKey::new(key.expect("as many bytes as a key has"))
}

/// Each key seals one bundle only.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn seal(token: &Secret, text: String) -> Result<String, String> {
    let mut bytes = text.into_bytes();
    key(token)
        .seal_in_place_append_tag(nonce(), Aad::empty(), &mut bytes)
        .map_err(|_| "the bundle cannot be sealed")?;
    Ok(STANDARD.encode(bytes))
}

fn unseal(token: &Secret, sealed: &str) -> Option<Secret> {
    let mut bytes = STANDARD.decode(sealed).ok()?;
    let opened = key(token).open_in_place(nonce(), Aad::empty(), &mut bytes);
    String::from_utf8(opened.ok()?.to_vec())
        .ok()
        .map(Secret::new)
}

fn path(folder: &Path, token: &Secret, state: &str) -> PathBuf {
    folder.join(format!("{}.{state}", hex(&derive(token, b"name"))))
}

/// Writes an invitation, at `now` in seconds since 1970; the token that opens it.
pub fn invite(folder: &Path, bundle: &Bundle, now: u64) -> Result<Secret, String> {
    let cannot = |err: &dyn std::fmt::Display| {
        format!(
            "cannot write an invitation into {}: {err}",
            folder.display()
        )
    };
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(&err)),
        _ => forget(folder, now),
    }
    let token = Secret::new(hex(&random::<24>()?));
    let text = serde_json::to_string(bundle).map_err(|err| cannot(&err))?;
    let file = File {
        until: now + VALID_FOR,
        robots: bundle.cameras.iter().map(|it| it.name.clone()).collect(),
        sealed: Some(seal(&token, text)?),
    };
    let owner = fs::metadata(folder).map_err(|err| cannot(&err))?;
    write(&path(folder, &token, OPEN), &file, &owner).map_err(|err| cannot(&err))?;
    Ok(token)
}

/// For those who own the folder: the bridge gives out what root has written.
fn write(path: &Path, file: &File, owner: &fs::Metadata) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let now = out.metadata()?;
    if (now.uid(), now.gid()) != (owner.uid(), owner.gid()) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    out.write_all(&serde_json::to_vec(file)?)
}

fn read(path: &Path) -> io::Result<File> {
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// Gives the bundle out, to the first who asks.
pub fn take(folder: &Path, token: &Secret, now: u64) -> Result<Secret, Refused> {
    let (open, used) = (path(folder, token, OPEN), path(folder, token, USED));
    let until = match read(&open) {
        Ok(file) if file.until <= now => return Err(Refused::Expired(file.until)),
        Ok(file) => file.until,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Err(match used.exists() {
                true => Refused::Used,
                false => Refused::Unknown,
            });
        }
        Err(err) => return Err(unusable(folder, &err)),
    };
    // One of those who ask at the same time, also at other bridges.
    match fs::rename(&open, &used) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(Refused::Used),
        Err(err) => return Err(unusable(folder, &err)),
    }
    let mut file = read(&used).map_err(|err| unusable(folder, &err))?;
    let sealed = file.sealed.take().unwrap_or_default();
    let bundle = unseal(token, &sealed);
    file.until = until;
    let owner = fs::metadata(folder).map_err(|err| unusable(folder, &err))?;
    write(&used, &file, &owner).map_err(|err| unusable(folder, &err))?;
    bundle.ok_or(Refused::Unknown)
}

/// The robots of an invitation that was taken, for as long as it would have been good.
pub fn robots(folder: &Path, token: &Secret, now: u64) -> Result<Vec<String>, Refused> {
    match read(&path(folder, token, USED)) {
        Ok(file) if file.until <= now => Err(Refused::Expired(file.until)),
        Ok(file) => Ok(file.robots),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(Refused::Unknown),
        Err(err) => Err(unusable(folder, &err)),
    }
}

fn unusable(folder: &Path, err: &io::Error) -> Refused {
    Refused::Folder(format!(
        "the bridge cannot use its folder {} ({err}): it must be the bridge's own, and writable for it",
        folder.display()
    ))
}

/// Removes the invitations of these robots.
pub fn withdraw(folder: &Path, is_theirs: impl Fn(&str) -> bool) {
    remove(folder, |file| {
        file.robots.iter().any(|robot| is_theirs(robot))
    });
}

/// Removes what is of no use any more.
fn forget(folder: &Path, now: u64) {
    remove(folder, |file| file.until + REMEMBERED <= now);
}

fn remove(folder: &Path, is_meant: impl Fn(&File) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_one = path
            .extension()
            .is_some_and(|end| end == OPEN || end == USED);
        if is_one && read(&path).is_ok_and(|file| is_meant(&file)) {
            // What stays is refused by its time.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use droidrelay_wire::words::enroll::Camera;

    fn bundle() -> Bundle {
        Bundle {
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
        }
    }

    #[test]
    fn a_bundle_is_given_once_in_its_time_and_the_disk_knows_neither_token_nor_password() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let all = || {
            let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let texts = files.map(|it| {
                let name = it.file_name().into_string().unwrap();
                name + &fs::read_to_string(it.path()).unwrap()
            });
            texts.collect::<String>()
        };
        let token = invite(folder, &bundle(), 1000).unwrap();
        assert!(!all().contains(token.expose()) && !all().contains("hunter"));
        assert_eq!(robots(folder, &token, 1001), Err(Refused::Unknown));
        let late = 1000 + VALID_FOR;
        assert_eq!(take(folder, &token, late), Err(Refused::Expired(late)));
        let text = take(folder, &token, late - 1).unwrap();
        assert_eq!(Bundle::parse(text.expose().as_bytes()).unwrap(), bundle());
        assert_eq!(take(folder, &token, late - 1), Err(Refused::Used));
        assert!(!all().contains("sealed"), "{}", all());
        assert_eq!(robots(folder, &token, late - 1).unwrap(), ["r1"]);
        assert_eq!(robots(folder, &token, late), Err(Refused::Expired(late)));
        assert_eq!(take(folder, &"c0ffee".into(), 1001), Err(Refused::Unknown));
        let other = invite(folder, &bundle(), late).unwrap();
        withdraw(folder, |robot| robot == "r1");
        assert_eq!(take(folder, &other, late), Err(Refused::Unknown));
        invite(folder, &bundle(), 1000).unwrap();
        invite(folder, &bundle(), late + REMEMBERED).unwrap();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }
}
