//! What the tests of envelopes, signatures and batches share: throw-away authorities, a writer that
//! signs whatever it is given, a small world of agents, and the cases that become test vectors.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "tests may")]

pub(crate) mod authority;
pub(crate) mod batch_cases;
pub(crate) mod binding_cases;
pub(crate) mod envelope_cases;
pub(crate) mod forge;
pub(crate) mod golden;
pub(crate) mod scalar;
pub(crate) mod vector;
pub(crate) mod world;
