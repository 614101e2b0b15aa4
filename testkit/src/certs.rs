// SPDX-License-Identifier: MPL-2.0

//! Certificates and credentials made for one run, and the files that hold them.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};

/// When a certificate holds, by the clock of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Now,
    NotYet,
    Expired,
}

/// A certificate and its private key, as PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// As `openssl req -x509` makes them: its own CA.
    pub fn self_signed(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes both into `folder`: the certificate's file, and the key's.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        Ok((
            write_private(folder, &format!("{name}.pem"), &self.certificate)?,
            write_private(folder, &format!("{name}.key"), &self.key)?,
        ))
    }
}

/// Signs certificates; trusted by whoever is given its file.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Self> {
        Self::named(&random_word()?)
    }

    /// Two of one name are strangers to each other all the same.
    pub fn named(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Authority(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Writes the certificate to trust into `folder`.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        write_private(folder, "ca.pem", &self.0.pem())
    }

    /// The certificate to trust, as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for `names`, which may be addresses.
    pub fn server(&self, names: &[&str], validity: Validity) -> Result<Identity> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        let now = SystemTime::now();
        let (begin, end) = match validity {
            Validity::Now => (now - DAY, now + DAY),
            Validity::NotYet => (now + DAY, now + 2 * DAY),
            Validity::Expired => (now - 2 * DAY, now - DAY),
        };
        params.not_before = begin.into();
        params.not_after = end.into();
        self.issue(&params)
    }

    /// A client's certificate: whom it names stands in its common name.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

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
