// SPDX-License-Identifier: MPL-2.0

//! Verification of a server's certificate.
//!
//! By default: exactly what rustls and webpki accept, whatever else is set.
//! With `ca-file`: also a certificate that stands in that file itself, byte by byte, though it is
//! self-signed or a CA's; its name and its time are checked as any other's.
//! With a check disabled by [`Checks`]: also the fault that it names, and no other one. Where the
//! chain is not verified to its end because of such a fault, its signer is unknown: that is
//! accepted only where `unknown_ca` is disabled as well. A certificate that cannot be parsed, or is
//! revoked, is never accepted. The signature of the handshake, which proves that the server has the
//! certificate's key, is always checked.
//! With a fingerprint, [`Pinned`] alone decides.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::files::Checks;

/// Says what rustls itself would, and takes what that refuses only for one of two reasons: the
/// certificate is among the trusted ones, or its fault is not to be checked.
#[derive(Debug)]
pub struct Verifier {
    strict: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    trusted: Vec<CertificateDer<'static>>,
    checks: Checks,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        checks: Checks,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let roots = Arc::new(roots);
        let strict =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        Ok(Verifier {
            strict,
            roots,
            trusted,
            checks,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    fn verify_leniently(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let is_trusted = self.trusted.iter().any(|trusted| trusted == end_entity);
        self.verify_chain(&certificate, intermediates, is_trusted, now)?;
        match verify_server_name(&certificate, name) {
            Err(_) if !self.checks.bad_identity => Ok(()),
            verified => verified,
        }
    }

    fn verify_chain(
        &self,
        certificate: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        is_trusted: bool,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut time = now;
        let mut last = Ok(());
        // Each certificate of the chain may be out of its time.
        for _ in 0..2 + intermediates.len() {
            last = verify_server_cert_signed_by_trust_anchor(
                certificate,
                &self.roots,
                intermediates,
                time,
                self.algorithms.all,
            );
            let fault = match &last {
                Err(Error::InvalidCertificate(fault)) => fault,
                _ => break,
            };
            // What stops here has not been looked at any further: who has signed it must not
            // matter then. The time is looked at first.
            let lenient = match fault {
                CertificateError::ExpiredContext { not_after, .. } if !self.checks.expired => {
                    time = *not_after;
                    continue;
                }
                CertificateError::NotValidYetContext { not_before, .. }
                    if !self.checks.not_activated =>
                {
                    time = *not_before;
                    continue;
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::BadEncoding
                | CertificateError::Revoked => false,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    is_trusted || !self.checks.unknown_ca
                }
                CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                    is_trusted || !(self.checks.insecure || self.checks.unknown_ca)
                }
                _ => is_trusted || !(self.checks.generic_error || self.checks.unknown_ca),
            };
            if lenient {
                return Ok(());
            }
            break;
        }
        last
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.strict
                .verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        if verified.is_ok() || (self.checks == Checks::default() && self.trusted.is_empty()) {
            return verified;
        }
        self.verify_leniently(end_entity, intermediates, name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.strict
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

/// Takes the one certificate with this fingerprint, by SHA-256, and no other: no CA is asked, and
/// neither name nor time counts.
#[derive(Debug)]
pub struct Pinned {
    fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    pub fn new(fingerprint: [u8; 32], provider: &Arc<CryptoProvider>) -> Self {
        Pinned {
            fingerprint,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if digest(&SHA256, end_entity).as_ref() == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
