// SPDX-License-Identifier: MPL-2.0

use std::{convert::Infallible, error::Error};

use super::files::TlsFiles;

/// There is none in a build without the feature `tls`; which is not for others to see, whose code
/// is the same with it.
#[derive(Clone)]
pub struct Client(Infallible);

impl Client {
    pub(super) fn new(_: &TlsFiles) -> Result<Self, String> {
        Err("built without TLS: build with the feature tls".into())
    }

    pub async fn connect<S>(&self, _host: &str, _tcp: S) -> Result<S, String> {
        match self.0 {}
    }
}

pub(crate) fn fault(_: &(dyn Error + 'static)) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_named() {
        let error = Client::new(&TlsFiles::default()).err().unwrap();
        assert!(error.contains("build with the feature tls"), "{error}");
    }
}
