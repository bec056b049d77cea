//! Why a message is refused: one closed list, so that logs, counters and dead letters agree.

/// A named refusal. The name ([`Refusal::name`]) is stable: metrics, dead letters and tests use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// More bytes than the receiver takes.
    Oversized,
    /// Not an envelope: bad JSON, an unknown, missing, repeated or escaped outer field, stray bytes.
    Malformed,
    /// The envelope's version is not one that this agent speaks.
    UnsupportedVersion,
    /// The signature slot is missing, empty, of the wrong width or not canonical base64url.
    BadSlot,
    /// No binding for this key id has been shown.
    UnknownKid,
    /// The signature does not fit the bytes.
    BadSignature,
    /// A key binding that does not hold: chain, proof of possession, audience or form.
    BadBinding,
    /// The binding's certificate comes from an authority that this agent does not trust.
    UntrustedIssuer,
    /// The identity in the message is not the one that its key is bound to.
    IdentityMismatch,
    /// The identity may not speak on this subject, or not through this link.
    WrongSubject,
    /// The binding was not valid when the message says it was signed.
    ExpiredBinding,
    /// The timestamp lies too far ahead of this agent's clock.
    FromTheFuture,
    /// The timestamp lies too far behind for this kind of message.
    Stale,
    /// The message was for another receiver or conversation.
    WrongAudience,
    /// The payload is not what its type promises, or repeats keys, or nests too deep.
    BadPayload,
    /// A task, command or runner that this agent has no permission or configuration for.
    NotPermitted,
    /// No one below can do the work.
    Unroutable,
    /// A task failed on each of its permitted tries.
    TriesExhausted,
    /// The lane that an event would wait in is full, and what waits there does not give way.
    LaneFull,
}

impl Refusal {
    /// Every refusal, for metrics that must show zeroes too.
    pub const ALL: [Refusal; 19] = [
        Refusal::Oversized,
        Refusal::Malformed,
        Refusal::UnsupportedVersion,
        Refusal::BadSlot,
        Refusal::UnknownKid,
        Refusal::BadSignature,
        Refusal::BadBinding,
        Refusal::UntrustedIssuer,
        Refusal::IdentityMismatch,
        Refusal::WrongSubject,
        Refusal::ExpiredBinding,
        Refusal::FromTheFuture,
        Refusal::Stale,
        Refusal::WrongAudience,
        Refusal::BadPayload,
        Refusal::NotPermitted,
        Refusal::Unroutable,
        Refusal::TriesExhausted,
        Refusal::LaneFull,
    ];

    /// The stable name, kebab-case.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::Oversized => "oversized",
            Refusal::Malformed => "malformed",
            Refusal::UnsupportedVersion => "unsupported-version",
            Refusal::BadSlot => "bad-slot",
            Refusal::UnknownKid => "unknown-kid",
            Refusal::BadSignature => "bad-signature",
            Refusal::BadBinding => "bad-binding",
            Refusal::UntrustedIssuer => "untrusted-issuer",
            Refusal::IdentityMismatch => "identity-mismatch",
            Refusal::WrongSubject => "wrong-subject",
            Refusal::ExpiredBinding => "expired-binding",
            Refusal::FromTheFuture => "from-the-future",
            Refusal::Stale => "stale",
            Refusal::WrongAudience => "wrong-audience",
            Refusal::BadPayload => "bad-payload",
            Refusal::NotPermitted => "not-permitted",
            Refusal::Unroutable => "unroutable",
            Refusal::TriesExhausted => "tries-exhausted",
            Refusal::LaneFull => "lane-full",
        }
    }

    /// The refusal of this name.
    pub fn from_name(name: &str) -> Option<Refusal> {
        Refusal::ALL.into_iter().find(|refusal| refusal.name() == name)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Refusal {}

impl serde::Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Refusal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Refusal::from_name(&name).ok_or_else(|| serde::de::Error::custom("unknown refusal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_round_trip() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_name(refusal.name()), Some(refusal));
        }
    }
}
