// SPDX-License-Identifier: MPL-2.0

//! One TLS client for MQTT and RTMP: rustls with ring, named explicitly, so that another
//! crate's provider in the same process changes nothing.
//!
//! Without the feature `tls` all names are there, but no [`Client`] can be made.

use std::path::PathBuf;

#[cfg_attr(feature = "tls", path = "tls/rustls.rs")]
#[cfg_attr(not(feature = "tls"), path = "tls/absent.rs")]
mod client;
#[cfg(feature = "tls")]
mod verifier;

pub use client::Client;
pub(crate) use client::fault;
#[cfg(feature = "tls")]
pub use client::{certificates, private_key};

/// Where trust and identity come from; all PEM files. And how far trust goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates to trust instead of the system's trust store: of CAs, or a server's own.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain for mutual TLS; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key for `cert_file` (PKCS#8, PKCS#1 or SEC1).
    pub key_file: Option<PathBuf>,
    pub checks: Checks,
}

/// Enforced checks of a server's certificate; disabling one allows impersonation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Nobody who is trusted has signed it.
    pub unknown_ca: bool,
    /// It is for other names.
    pub bad_identity: bool,
    pub not_activated: bool,
    pub expired: bool,
    /// It is signed in a way that is not safe.
    pub insecure: bool,
    /// Whatever else is wrong with it.
    pub generic_error: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Checks {
            unknown_ca: true,
            bad_identity: true,
            not_activated: true,
            expired: true,
            insecure: true,
            generic_error: true,
        }
    }
}

impl TlsFiles {
    /// Reads the files (or the system's trust store) into a client.
    ///
    /// The error names the file and the remedy.
    pub fn client(&self) -> Result<Client, String> {
        Client::new(self)
    }
}
