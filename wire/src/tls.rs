//! One TLS client configuration for MQTT and RTMP: rustls with ring, named explicitly, so
//! that another crate's provider in the same process changes nothing.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer},
    ClientConfig, RootCertStore,
};

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
    /// Reads the files (or the system's trust store) into a configuration.
    ///
    /// The error names the file and the remedy.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|err| format!("cannot set up TLS: {err}"))?
            .with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert_file), Some(key_file)) => {
                let chain = certificates(cert_file)?;
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|err| {
                    format!(
                        "cannot read key-file {}: {err}; give the client's private key as PEM",
                        key_file.display()
                    )
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|err| {
                    format!(
                        "cert-file {} and key-file {} do not work together: {err}",
                        cert_file.display(),
                        key_file.display()
                    )
                })?
            }
            (Some(_), None) => {
                return Err("cert-file is set without key-file: mutual TLS needs both".into())
            }
            (None, Some(_)) => {
                return Err("key-file is set without cert-file: mutual TLS needs both".into())
            }
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        if let Some(ca_file) = &self.ca_file {
            for certificate in certificates(ca_file)? {
                roots.add(certificate).map_err(|err| {
                    format!(
                        "ca-file {} holds a certificate that cannot be trusted: {err}",
                        ca_file.display()
                    )
                })?;
            }
            return Ok(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        // One odd certificate in the system's store must not cost the others.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                "the system's trust store is empty: install ca-certificates or set ca-file".into(),
            );
        }
        Ok(roots)
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|err| format!("cannot read certificates from {}: {err}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!(
            "{} holds no certificate: give a PEM file",
            path.display()
        ));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_do_not_serve_are_named() {
        let missing = TlsFiles {
            ca_file: Some("/nonexistent/ca.pem".into()),
            ..TlsFiles::default()
        };
        let error = missing.client_config().unwrap_err();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");

        let no_certificate = TlsFiles {
            ca_file: Some("/dev/null".into()),
            ..TlsFiles::default()
        };
        let error = no_certificate.client_config().unwrap_err();
        assert!(error.contains("/dev/null"), "{error}");
    }
}
