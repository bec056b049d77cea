//! The link: the acknowledged, flow-controlled conversation between a child agent and its parent.
//!
//! Both ends are state machines without I/O or clock. A shell feeds them messages and the time, and
//! carries out what they ask for:
//!
//! ```text
//!   store -> Packer -> Parcel -> Child ==== Hello, Frame, Piece ====> Parent -> store, then ack
//!                                      <====== Welcome, Ack, Reset ======
//! ```
//!
//! Each lane is a queue of its own with a cursor of its own. The cursor, the place up to which
//! everything has arrived, belongs to the parent and lives in its durable store. Custody follows from
//! it: the child forgets nothing above the parent's cursor. That nothing is taken twice, whatever
//! becomes of a child's store, rests on the origins' numbers ([`Origins`]).

pub mod batch;
pub mod child;
pub mod credit;
pub mod cursor;
mod flow;
pub mod limit;
pub mod message;
pub mod origins;
mod pace;
pub mod packer;
pub mod parent;
pub mod resume;
pub mod skew;

pub use batch::{Batch, BatchEvent, Event};
pub use child::{Child, ChildLimits, ChildOutput};
pub use credit::{Budget, BudgetLimits, Need, WHOLE_BATCH};
pub use cursor::{Cursor, Record};
pub use flow::Load;
pub use limit::{Limiter, RateLimit};
pub use message::{Begun, ChildMessage, LaneHello, ParcelHead, ParentMessage};
pub use origins::{Origins, Span, Standing};
pub use packer::{Pack, PackLimits, Packer};
pub use parent::{Parent, ParentOutput, Verdict};
pub use skew::{ParentClock, Reading, Skew};

use bytes::Bytes;

use crate::Digest;

/// Time on a monotonic clock, counted from any fixed start.
pub type Tick = std::time::Duration;

/// One signed batch on its way up, with its place in the child's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The place in the child's store that this parcel follows: the previous parcel's `last`.
    pub after: u64,
    /// The last place in the child's store that this parcel covers.
    pub last: u64,
    /// The batch: an envelope signed by its origin.
    pub bytes: Bytes,
    /// What the origin signed.
    pub digest: Digest,
    /// The origin's key.
    pub kid: Digest,
}
