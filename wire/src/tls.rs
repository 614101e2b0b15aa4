//! One TLS client for MQTT and RTMP: rustls with ring, named explicitly, so that another
//! crate's provider in the same process changes nothing.
//!
//! Without the feature `tls` all names are there, but no [`Client`] can be made.

use std::path::PathBuf;

#[cfg_attr(feature = "tls", path = "tls/rustls.rs")]
#[cfg_attr(not(feature = "tls"), path = "tls/absent.rs")]
mod client;

pub(crate) use client::fault;
pub use client::Client;

/// Where trust and identity come from; all PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates to trust instead of the system's trust store.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain for mutual TLS; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key for `cert_file` (PKCS#8, PKCS#1 or SEC1).
    pub key_file: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads the files (or the system's trust store) into a client.
    ///
    /// The error names the file and the remedy.
    pub fn client(&self) -> Result<Client, String> {
        Client::new(self)
    }
}
