//! The mesh's vocabulary and its protocols, as values and state machines: levels, paths, subjects,
//! envelopes, signatures, the link and tasks. Nothing here does I/O, reads a clock or draws a random
//! number; whoever drives these types passes all three in.

pub mod base64url;
pub mod envelope;
pub mod identity;
pub mod lane;
pub mod level;
pub mod link;
pub mod loss;
pub mod millis;
pub mod order;
pub mod path;
pub mod refusal;
pub mod rollup;
pub mod signing;
pub mod strict_json;
pub mod subject;
pub mod task;

pub use envelope::Digest;
pub use identity::{Identity, IdentityError, TrustDomain};
pub use lane::{ByLane, Lane};
pub use level::Level;
pub use millis::Millis;
pub use path::{Id, Path, PathError};
pub use refusal::Refusal;
