// SPDX-License-Identifier: MPL-2.0

//! One TLS client for MQTT and RTMP: rustls with ring, named explicitly, so that another
//! crate's provider in the same process changes nothing.
//!
//! Without the feature `tls` all names are there, but no [`Client`] can be made.

#[cfg_attr(feature = "tls", path = "tls/rustls.rs")]
#[cfg_attr(not(feature = "tls"), path = "tls/absent.rs")]
mod client;
mod files;
mod source;
#[cfg(feature = "tls")]
mod verifier;

pub use client::Client;
pub(crate) use client::fault;
#[cfg(feature = "tls")]
pub use client::{certificates, private_key};
pub use files::{Checks, TlsFiles};
pub use source::Source;

impl TlsFiles {
    /// Reads the files (or the system's trust store) into a client.
    ///
    /// The error names the file and the remedy.
    pub fn client(&self) -> Result<Client, String> {
        Client::new(self)
    }
}
