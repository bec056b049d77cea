//! Who an agent is: a SPIFFE id that spells a path.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::path::{Path, PathError};

/// A SPIFFE trust domain: lowercase letters, digits, `.`, `-`, `_`, at most 255 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// The identity of an agent, `spiffe://{trust domain}/mesh/{path}`: the core's ends after `/mesh`.
///
/// ```
/// use hierarchy::Identity;
/// let id: Identity = "spiffe://lucent.dev/mesh/s1/c1".parse()?;
/// assert_eq!(id.path.to_string(), "s1/c1");
/// # Ok::<(), hierarchy::IdentityError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    /// Whose authority vouches for the path.
    pub trust_domain: TrustDomain,
    /// Where the agent stands.
    pub path: Path,
}

/// Why a text is not an [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not `spiffe://.../mesh...`.
    #[error("`{0}` is not an agent's identity: it must look like spiffe://lucent.dev/mesh/s1/c1")]
    NotMesh(String),
    /// The trust domain breaks its rule.
    #[error("trust domain `{0}` is refused: use a-z, 0-9, `.`, `-` and `_`, at most 255 characters")]
    BadTrustDomain(String),
    /// What follows `/mesh/` is no path.
    #[error(transparent)]
    BadPath(#[from] PathError),
}

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity of the agent at `path` in this domain.
    pub fn identity(&self, path: Path) -> Identity {
        Identity { trust_domain: self.clone(), path }
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if (1..=255).contains(&s.len()) && s.bytes().all(legal) {
            Ok(TrustDomain(s.into()))
        } else {
            Err(IdentityError::BadTrustDomain(s.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/mesh", self.trust_domain)?;
        self.path.segments().iter().try_for_each(|segment| write!(f, "/{segment}"))
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let not_mesh = || IdentityError::NotMesh(s.chars().take(80).collect());
        let (domain, rest) =
            s.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(not_mesh)?;
        let path = match rest.strip_prefix("mesh").ok_or_else(not_mesh)? {
            "" => Path::global(),
            // `global` is how the empty path is written elsewhere; here it would be a second
            // spelling of one identity.
            "/global" => return Err(not_mesh()),
            segments => segments.strip_prefix('/').ok_or_else(not_mesh)?.parse()?,
        };
        Ok(Identity { trust_domain: domain.parse()?, path })
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identity_has_one_spelling() {
        for text in ["spiffe://lucent.dev/mesh", "spiffe://lucent.dev/mesh/s1", "spiffe://a/mesh/s1/c1/n1"] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        for bad in [
            "spiffe://lucent.dev/mesh/",
            "spiffe://lucent.dev/mesh/global",
            "spiffe://lucent.dev/meshx",
            "spiffe://LUCENT.dev/mesh",
            "spiffe://lucent.dev:80/mesh",
            "spiffe:///mesh",
            "https://lucent.dev/mesh",
            "spiffe://lucent.dev/mesh/s1//n1",
            "spiffe://lucent.dev/mesh/s1/../n1",
            "spiffe://lucent.dev/mesh/s%2e1",
            "spiffe://lucent.dev/mesh/a/b/c/d",
            "spiffe://lucent.dev/service/trading",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad} was accepted");
        }
    }
}
