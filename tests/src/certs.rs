//! Certificates made for one run.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::secrets::write_private;

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

/// Signs certificates; trusted by whoever is given its file.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Droidrelay tests");
        Ok(Authority(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Writes the certificate to trust into `folder`.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        write_private(folder, "ca.pem", &self.0.pem())
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
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}
