//! The verifying side: bindings that were checked, and the checks of a message in their order.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    TrustBundle,
    binding::{Binding, Bound},
};
use crate::{Digest, Millis, Refusal, envelope::Parsed};

/// How far ahead of this agent's clock a message to be acted on may be dated.
const FUTURE_SKEW: Duration = Duration::from_secs(5 * 60);

/// How old a message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeliness {
    /// Stored and forwarded: it may have waited for days below a cut link. The signer's binding must
    /// have been valid when it signed, and the message not older than this. The signer's clock may be
    /// hours ahead: its events still count.
    Stored(Duration),
    /// To be acted on: the binding must be valid now as well, and the message not older than this nor
    /// dated ahead.
    Live(Duration),
    /// Part of a conversation whose session number proves that it is fresh: clocks need not agree.
    Session,
}

/// A message whose signature holds and whose signer is known.
#[derive(Debug, Clone)]
pub struct Verified<'a> {
    /// The envelope.
    pub envelope: Parsed<'a>,
    /// What its signature covers; unique to the message.
    pub digest: Digest,
}

/// Checks signatures. Keeps a bounded number of bindings, oldest out first.
#[derive(Debug)]
pub struct Verifier {
    trust: TrustBundle,
    bindings: HashMap<Digest, Bound>,
    arrival: VecDeque<Digest>,
    capacity: usize,
}

impl Verifier {
    /// A verifier that trusts `trust` and remembers up to `capacity` bindings.
    pub fn new(trust: TrustBundle, capacity: usize) -> Verifier {
        Verifier { trust, bindings: HashMap::new(), arrival: VecDeque::new(), capacity: capacity.max(1) }
    }

    /// Whether the binding of `kid` is at hand.
    pub fn knows(&self, kid: &Digest) -> bool {
        self.bindings.contains_key(kid)
    }

    /// Checks a binding and remembers it; its key id is returned. What was checked once is not checked
    /// again; another binding around a known statement is, since whoever stores it relies on all of it.
    pub fn learn(&mut self, binding: &Binding) -> Result<Digest, Refusal> {
        let kid = binding.kid()?;
        let known = self.bindings.get(&kid);
        if known.is_some_and(|known| known.fingerprint == binding.fingerprint()) {
            return Ok(kid);
        }
        let (kid, bound) = binding.check(&self.trust)?;
        if self.bindings.insert(kid, bound).is_some() {
            return Ok(kid);
        }
        self.arrival.push_back(kid);
        if self.arrival.len() > self.capacity
            && let Some(oldest) = self.arrival.pop_front()
        {
            self.bindings.remove(&oldest);
        }
        Ok(kid)
    }

    /// The checks of DESIGN section 6 up to time: size, strict parse, slot, kid, signature,
    /// identity = sender, time. Whether the identity may speak on the subject, and what the payload
    /// means, only the receiver knows.
    pub fn verify<'a>(
        &self,
        bytes: &'a [u8],
        now: Millis,
        timeliness: Timeliness,
    ) -> Result<Verified<'a>, Refusal> {
        let envelope = Parsed::parse(bytes)?;
        let signature = envelope.signature()?;
        let bound = self.bindings.get(&envelope.kid()).ok_or(Refusal::UnknownKid)?;
        let digest = envelope.digest();
        bound
            .key
            .verify_strict(&super::message_to_sign(&envelope.kid(), &digest), &signature.into())
            .map_err(|_| Refusal::BadSignature)?;
        let path = &bound.identity.path;
        if *envelope.identity() != bound.identity
            || envelope.sender().node_id != path.to_string()
            || envelope.level() != path.level()
        {
            return Err(Refusal::IdentityMismatch);
        }
        check_time(bound, envelope.timestamp(), now, timeliness)?;
        Ok(Verified { envelope, digest })
    }
}

fn check_time(bound: &Bound, signed: Millis, now: Millis, timeliness: Timeliness) -> Result<(), Refusal> {
    if signed < bound.nbf || signed > bound.exp {
        return Err(Refusal::ExpiredBinding);
    }
    let oldest = match timeliness {
        Timeliness::Session => return Ok(()),
        Timeliness::Stored(age) => age,
        Timeliness::Live(_) if now > bound.exp => return Err(Refusal::ExpiredBinding),
        Timeliness::Live(_) if signed > now.plus(FUTURE_SKEW) => return Err(Refusal::FromTheFuture),
        Timeliness::Live(age) => age,
    };
    if now.since(signed) > oldest { Err(Refusal::Stale) } else { Ok(()) }
}
