// SPDX-License-Identifier: MPL-2.0

//! Where trust comes from, and how far it goes.

use std::path::PathBuf;

/// Where trust and identity come from; all PEM files. And how far trust goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates to trust instead of the system's trust store: of CAs, or a server's own.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain for mutual TLS; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key for `cert_file` (PKCS#8, PKCS#1 or SEC1).
    pub key_file: Option<PathBuf>,
    /// SHA-256 of the one certificate that the server may have; name, time and signer do not count
    /// then. None: whatever the others say.
    pub pinned: Option<[u8; 32]>,
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
