//! A throw-away certificate authority for development: it lives as long as the mesh does.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::Path as FilePath, time::Duration};

use hierarchy::{Identity, Path, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The trust domain of development meshes.
pub const TRUST_DOMAIN: &str = "lucent.dev";

/// An authority that can issue SVIDs for any path in its trust domain.
pub struct DevAuthority {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// An SVID as PEM texts.
pub struct IssuedSvid {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
    /// The authority's certificate.
    pub bundle: String,
}

impl DevAuthority {
    /// A fresh authority of [`TRUST_DOMAIN`].
    pub fn new() -> Result<DevAuthority, rcgen::Error> {
        let domain: TrustDomain = TRUST_DOMAIN.parse().expect("the development domain is well formed");
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lucent development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
        let certificate = params.self_signed(&key)?.pem();
        Ok(DevAuthority { domain, issuer: Issuer::new(params, key), certificate })
    }

    /// An SVID for the agent at `path`, also good as a server certificate on loopback.
    pub fn issue(&self, path: &Path) -> Result<IssuedSvid, rcgen::Error> {
        self.issue_for(&self.domain.identity(path.clone()))
    }

    /// An SVID for any identity, so that tests can play the impostor.
    pub fn issue_for(&self, identity: &Identity) -> Result<IssuedSvid, rcgen::Error> {
        self.issue_lasting(identity, Duration::from_secs(30 * 24 * 3600))
    }

    /// An SVID that holds from an hour ago until so long from now.
    pub fn issue_lasting(&self, identity: &Identity, left: Duration) -> Result<IssuedSvid, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![
            SanType::URI(identity.to_string().try_into()?),
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        let now = Duration::from_millis(crate::clock::wall().0);
        let start = time::OffsetDateTime::UNIX_EPOCH + now;
        params.not_before = start - time::Duration::hours(1);
        params.not_after = start + left;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedSvid { cert: cert.pem(), key: key.serialize_pem(), bundle: self.certificate.clone() })
    }

    /// The authority's certificate.
    pub fn bundle(&self) -> &str {
        &self.certificate
    }
}

impl IssuedSvid {
    /// Writes `svid.pem`, `svid.key` and `bundle.pem`.
    pub fn write(&self, dir: &FilePath) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("svid.pem"), &self.cert)?;
        fs::write(dir.join("bundle.pem"), &self.bundle)?;
        let key = dir.join("svid.key");
        let _ = fs::remove_file(&key);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(key)?;
        io::Write::write_all(&mut file, self.key.as_bytes())
    }
}
