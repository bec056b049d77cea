//! Whose certificates count: one set of authorities per trust domain.

use std::collections::HashMap;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, aws_lc_rs as algs};

use crate::{Identity, Millis, Refusal, identity::TrustDomain};

/// The authorities of each trust domain.
#[derive(Debug, Clone, Default)]
pub struct TrustBundle {
    anchors: HashMap<TrustDomain, Vec<TrustAnchor<'static>>>,
}

/// Signature algorithms accepted in chains: what SPIFFE issuers use.
const CHAIN_ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    algs::ECDSA_P256_SHA256,
    algs::ECDSA_P256_SHA384,
    algs::ECDSA_P384_SHA256,
    algs::ECDSA_P384_SHA384,
    algs::RSA_PKCS1_2048_8192_SHA256,
    algs::RSA_PKCS1_2048_8192_SHA384,
    algs::RSA_PKCS1_2048_8192_SHA512,
];

impl TrustBundle {
    /// Adds an authority of `domain`. A certificate that does not parse is a [`Refusal::BadBinding`].
    pub fn add(&mut self, domain: TrustDomain, authority: &CertificateDer<'_>) -> Result<(), Refusal> {
        let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|_| Refusal::BadBinding)?.to_owned();
        let anchors = self.anchors.entry(domain).or_default();
        if !anchors.contains(&anchor) {
            anchors.push(anchor);
        }
        Ok(())
    }

    /// Checks that `leaf` chains to an authority of its own trust domain at both times, may
    /// authenticate, and names exactly one identity, which is returned.
    ///
    /// Chain building is given the window's ends, so a binding can never outlive its certificate.
    pub fn check_leaf(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        window: [Millis; 2],
    ) -> Result<Identity, Refusal> {
        let (identity, anchors) = self.issuers(leaf)?;
        for time in window {
            at(leaf, anchors, intermediates, time).map_err(|error| match error {
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                    Refusal::ExpiredBinding
                }
                webpki::Error::CaUsedAsEndEntity | webpki::Error::RequiredEkuNotFoundContext(_) => {
                    Refusal::BadBinding
                }
                _ => Refusal::UntrustedIssuer,
            })?;
        }
        Ok(identity)
    }
    /// The time at which `leaf`'s chain holds that is nearest to `now`; `now` where there is none, or where
    /// something else than the time is wrong with it.
    pub fn nearest(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Millis,
    ) -> Millis {
        let Ok((_, anchors)) = self.issuers(leaf) else { return now };
        let mut time = now;
        // Each certificate of the chain may move it once.
        for _ in 0..=intermediates.len() + 1 {
            let bound = match at(leaf, anchors, intermediates, time) {
                Ok(()) => return time,
                Err(webpki::Error::CertExpired { not_after, .. }) => not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) => not_before,
                Err(_) => return now,
            };
            time = Millis(bound.as_secs() * 1000);
        }
        now
    }

    fn issuers(&self, leaf: &EndEntityCert<'_>) -> Result<(Identity, &[TrustAnchor<'static>]), Refusal> {
        let mut uris = leaf.valid_uri_names();
        let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(Refusal::BadBinding) };
        let identity: Identity = uri.parse().map_err(|_| Refusal::BadBinding)?;
        let anchors = self.anchors.get(&identity.trust_domain).ok_or(Refusal::UntrustedIssuer)?;
        Ok((identity, anchors))
    }
}

/// Whether the chain holds at a time.
fn at(
    leaf: &EndEntityCert<'_>,
    anchors: &[TrustAnchor<'static>],
    intermediates: &[CertificateDer<'_>],
    time: Millis,
) -> Result<(), webpki::Error> {
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_millis(time.0));
    let usage = KeyUsage::client_auth();
    leaf.verify_for_usage(CHAIN_ALGORITHMS, anchors, intermediates, time, usage, None, None).map(drop)
}
