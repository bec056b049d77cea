//! Throw-away certificate authorities and the SVIDs that they issue.

use hierarchy::{Millis, signing::SvidKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::world::{BEGIN, END};

/// An authority: a root, or an intermediate below one.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, then those above it; without the root.
    above: Vec<CertificateDer<'static>>,
    pub(crate) certificate: CertificateDer<'static>,
}

/// A certificate with its private key.
pub(crate) struct Svid {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl SvidKey for Svid {
    type Error = rcgen::Error;

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        rcgen::SigningKey::sign(&self.key, message)
    }
}

impl Authority {
    /// A root named `name`. Two roots may share a name, as a forger's does.
    pub(crate) fn root(name: &str) -> Authority {
        let (params, key) = (authority_params(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority { issuer: Issuer::new(params, key), above: Vec::new(), certificate }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Authority {
        self.intermediate_with(name, |_| {})
    }

    /// As [`Authority::intermediate`], with a say in its certificate.
    pub(crate) fn intermediate_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Authority {
        let (mut params, key) = (authority_params(name), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let above = std::iter::once(certificate.clone()).chain(self.above.iter().cloned()).collect();
        Authority { issuer: Issuer::new(params, key), above, certificate }
    }

    /// An SVID for `uri`, valid from [`BEGIN`] to [`END`].
    pub(crate) fn svid(&self, uri: &str) -> Svid {
        self.issue(KeyPair::generate().unwrap(), |params| params.subject_alt_names = vec![uri_name(uri)])
    }

    /// A certificate for `key`, as [`Authority::svid`] makes it but for `change`.
    pub(crate) fn issue(&self, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("SVID");
        (params.not_before, params.not_after) = (date(BEGIN), date(END));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = std::iter::once(leaf).chain(self.above.iter().cloned()).collect();
        Svid { chain, key }
    }
}

pub(crate) fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub(crate) fn date(time: Millis) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.0 as i64 / 1000).unwrap()
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2025, 1, 1), rcgen::date_time_ymd(2045, 1, 1));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, name);
    distinguished
}
