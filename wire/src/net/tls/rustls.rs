// SPDX-License-Identifier: MPL-2.0

use std::{error::Error, fmt, io, path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    client::danger::ServerCertVerifier,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    files::TlsFiles,
    verifier::{Pinned, Verifier},
};
use crate::files::read_regular;

/// Largest PEM file that is read, in bytes: Debian's whole trust store has some 220,000.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The usual reason for an answer that is none.
const PLAIN: &str = "is that the port with TLS?";

/// Speaks TLS 1.2 and 1.3 to servers.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    pub(super) fn new(files: &TlsFiles) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match files.pinned {
            Some(fingerprint) => Arc::new(Pinned::new(fingerprint, &provider)),
            None => {
                let (roots, trusted) = roots(files)?;
                let verifier = Verifier::new(roots, trusted, files.checks, &provider)
                    .map_err(|err| format!("cannot set up TLS: {err}"))?;
                Arc::new(verifier)
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|err| format!("cannot set up TLS: {err}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&files.cert_file, &files.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert_file), Some(key_file)) => {
                let chain = read_certificates(cert_file)?;
                let key = private_key(key_file).map_err(|err| {
                    format!("cannot read key-file {err}; give the client's private key as PEM")
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
                return Err("cert-file is set without key-file: mutual TLS needs both".into());
            }
            (None, Some(_)) => {
                return Err("key-file is set without cert-file: mutual TLS needs both".into());
            }
        };
        Ok(Client(Arc::new(config)))
    }

    /// Begins a session with the server that calls itself `host`, a name or an address.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        tcp: S,
    ) -> Result<TlsStream<S>, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host:?} is no name that a certificate can carry"))?;
        TlsConnector::from(self.0.clone())
            .connect(name, tcp)
            .await
            .map_err(|err| {
                fault(&err).unwrap_or_else(|| match err.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                        format!("the server closed the connection instead of answering: {PLAIN}")
                    }
                    _ => err.to_string(),
                })
            })
    }

    #[cfg(test)]
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What TLS has to say about `error`, where that is its cause, and the remedy.
pub(crate) fn fault(error: &(dyn Error + 'static)) -> Option<String> {
    match error.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(fault)) => Some(unaccepted(fault)),
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            Some("the server asks for a client certificate: set cert-file and key-file".into())
        }
        Some(rustls::Error::AlertReceived(alert)) => Some(format!(
            "the server ended the TLS session ({alert:?}): check cert-file, if one is set"
        )),
        Some(rustls::Error::InvalidMessage(_)) => {
            Some(format!("what answers does not speak TLS: {PLAIN}"))
        }
        Some(_) => None,
        None => {
            // The source of an I/O error is that of the error which it holds, not that one itself.
            let held = error
                .downcast_ref::<io::Error>()
                .and_then(|error| Some(error.get_ref()? as &(dyn Error + 'static)));
            fault(held.or_else(|| error.source())?)
        }
    }
}

fn unaccepted(fault: &CertificateError) -> String {
    let remedy = match fault {
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "; check this machine's clock (NTP)"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "; renew it, or check this machine's clock (NTP)"
        }
        // The latter: of an authority that was made anew under its old name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "; set ca-file to the CA that has signed it"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "; reach the server by a name in it, or give it one with this name"
        }
        CertificateError::ApplicationVerificationFailure => {
            "; it is another one than the fingerprint names: somebody may stand between, or it was renewed meanwhile"
        }
        // As tools make them that sign a key with itself.
        CertificateError::Other(error)
            if error.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity) =>
        {
            "; it is a CA's: set ca-file to this very certificate"
        }
        _ => "",
    };
    format!("the server's certificate is not accepted: {fault}{remedy}")
}

/// Whose signatures are trusted, and which certificates are by themselves.
fn roots(files: &TlsFiles) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = &files.ca_file {
        let trusted = read_certificates(ca_file)?;
        for certificate in &trusted {
            roots.add(certificate.clone()).map_err(|err| {
                format!(
                    "ca-file {} holds a certificate that cannot be trusted: {err}",
                    ca_file.display()
                )
            })?;
        }
        return Ok((roots, trusted));
    }
    let found = rustls_native_certs::load_native_certs();
    // One odd certificate in the system's store must not cost the others.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(
            "the system's trust store is empty: install ca-certificates or set ca-file".into(),
        );
    }
    Ok((roots, Vec::new()))
}

/// What `parse` finds in a PEM file. The error begins with the file.
fn read_pem<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, pem::Error>,
) -> Result<T, String> {
    let named = |err: &dyn fmt::Display| format!("{}: {err}", path.display());
    let bytes = read_regular(path, MAX_FILE).map_err(|err| named(&err))?;
    parse(&bytes).map_err(|err| named(&err))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates(path)
        .map_err(|err| format!("cannot read certificates from {err}; give a PEM file"))
}

/// The certificates of a PEM file, at least one. The error begins with the file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = read_pem(path, |pem| CertificateDer::pem_slice_iter(pem).collect())?;
    if certificates.is_empty() {
        return Err(format!("{}: it holds no certificate", path.display()));
    }
    Ok(certificates)
}

/// The first private key of a PEM file. The error begins with the file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    read_pem(path, PrivateKeyDer::from_pem_slice)
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
        let error = missing.client().err().unwrap();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");

        let no_certificate = TlsFiles {
            ca_file: Some("/dev/null".into()),
            ..TlsFiles::default()
        };
        let error = no_certificate.client().err().unwrap();
        assert!(error.contains("/dev/null"), "{error}");
    }
}
