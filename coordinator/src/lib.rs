//! What a level does for the levels below it.
//!
//! - [`registry`]: which direct children there are, and whether they are heard of.
//! - [`aggregate`]: one roll-up for each window of time, out of the samples and roll-ups of the children.
//! - [`policy`]: what of the children's events goes on to the parent, told by their subjects.
//! - [`lease`]: which of several replicas of one coordinator acts.
//! - [`ledger`]: what became of every event of the levels below.
//!
//! Everything here is a value that is told what happened and what time it is, and says what follows. This
//! crate does not know NATS: whatever needs a message stored or sent asks for it through a trait, and the
//! agent implements that trait.

pub mod aggregate;
pub mod dispatch;
pub mod lease;
pub mod ledger;
pub mod pattern;
pub mod policy;
pub mod registry;

pub use aggregate::Aggregator;
pub use lease::Lease;
pub use ledger::Ledger;
pub use pattern::Pattern;
pub use policy::Policy;
pub use registry::Registry;
