//! X.509 SVIDs from files: read, checked against each other, and used to sign key bindings.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hierarchy::{
    Identity, Millis, Refusal,
    link::skew,
    signing::{SvidKey, TrustBundle},
};
use rustls::{SignatureScheme, crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use webpki::EndEntityCert;

use crate::config::IdentityFiles;

/// An SVID that was read and holds together.
pub struct Svid {
    /// Whom it names.
    pub identity: Identity,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom this agent trusts.
    pub trust: TrustBundle,
    /// From when to when the whole chain holds, to the second.
    pub validity: [Millis; 2],
    key: Arc<CertifiedKey>,
}

/// Why identity files cannot be used. Each says which file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// A file is missing, unreadable or holds no such PEM block.
    #[error("cannot read the {what} from {path}: {reason}; check [identity] in the configuration")]
    Unreadable {
        /// Certificate, key or bundle.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The key does not belong to the certificate.
    #[error("the key in {key} does not belong to the certificate in {cert}; fetch both anew from one issue")]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate does not chain to the bundle, is expired, or names no agent.
    #[error(
        "the certificate in {cert} is refused ({refusal}); check its validity, this machine's clock, its URI SAN and the bundle {bundle}"
    )]
    Refused {
        /// The certificate's file.
        cert: PathBuf,
        /// The bundle's file.
        bundle: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The certificate names another agent than the configuration.
    #[error(
        "the certificate in {cert} names {found}, but this agent is configured as {expected}; install the right identity or correct `path`"
    )]
    Other {
        /// The certificate's file.
        cert: PathBuf,
        /// Whom it names.
        found: Identity,
        /// Whom the configuration names.
        expected: Identity,
    },
}

impl Svid {
    /// Reads the files and checks them for `expected` at `now`, or at the nearest time at which they hold: as
    /// long as that is less than [`skew::DOUBT`] away, this machine's clock may be wrong, and those to whom the
    /// agent connects know better.
    pub fn load(files: &IdentityFiles, expected: &Identity, now: Millis) -> Result<Svid, SvidError> {
        let chain = read_certificates("certificate", &files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| SvidError::Unreadable {
            what: "private key",
            path: files.key.clone(),
            reason: error.to_string(),
        })?;
        let mismatch = || SvidError::Mismatch { cert: files.cert.clone(), key: files.key.clone() };
        let key = CertifiedKey::from_der(chain.clone(), key, &aws_lc_rs::default_provider())
            .map_err(|_| mismatch())?;

        let refused =
            |refusal| SvidError::Refused { cert: files.cert.clone(), bundle: files.bundle.clone(), refusal };
        let mut trust = TrustBundle::default();
        for authority in read_certificates("trust bundle", &files.bundle)? {
            trust.add(expected.trust_domain.clone(), &authority).map_err(refused)?;
        }
        let leaf = EndEntityCert::try_from(&chain[0]).map_err(|_| refused(Refusal::BadBinding))?;
        let holding = trust.nearest(&leaf, &chain[1..], now);
        let off = holding.since(now).max(now.since(holding));
        let now = if off <= skew::DOUBT { holding } else { now };
        let identity = trust.check_leaf(&leaf, &chain[1..], [now, now]).map_err(refused)?;
        if identity != *expected {
            return Err(SvidError::Other {
                cert: files.cert.clone(),
                found: identity,
                expected: expected.clone(),
            });
        }
        if off > Duration::ZERO {
            tracing::warn!(cert = %files.cert.display(), nearest = %holding,
                "the certificate does not hold at the time of this machine's clock; set the clock, or renew it");
        }
        let holds = |at: Millis| trust.check_leaf(&leaf, &chain[1..], [at, at]).is_ok();
        let validity = [
            now.0 - furthest(|back| holds(Millis(now.0 - back))),
            now.0 + furthest(|on| holds(Millis(now.0 + on))),
        ];
        let validity = validity.map(Millis);
        Ok(Svid { identity, chain, trust, validity, key: Arc::new(key) })
    }
}

/// How far from now, in milliseconds and at most a year, something that holds now goes on to hold.
///
/// The verifier of chains takes a time and tells no bounds; asking it is the one way to respect every
/// certificate of the chain.
fn furthest(holds: impl Fn(u64) -> bool) -> u64 {
    const YEAR: u64 = 365 * 24 * 3600 * 1000;
    let (mut good, mut bad) = (0, YEAR);
    while bad - good > 1000 {
        let middle = good + (bad - good) / 2;
        if holds(middle) { good = middle } else { bad = middle }
    }
    good
}

fn read_certificates(what: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let unreadable = |reason: String| SvidError::Unreadable { what, path: path.clone(), reason };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unreadable("no certificate in it".into()));
    }
    Ok(certificates)
}

impl SvidKey for Svid {
    type Error = rustls::Error;

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key
            .key
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
            .ok_or_else(|| rustls::Error::General("the SVID's key is not ECDSA P-256".into()))?
            .sign(message)
    }
}
