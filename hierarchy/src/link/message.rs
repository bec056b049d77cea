//! What child and parent say to each other. Each is the payload of a signed envelope whose
//! `messageType` is [`ChildMessage::kind`] or [`ParentMessage::kind`].
//!
//! A frame's envelope is followed by `\n` and the batches it announces, one after the other, without
//! anything between them; the signed heads give their lengths and digests.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Parcel, Skew};
use crate::{ByLane, Digest, Lane, Level, Millis, Path, Refusal, signing::Binding};

/// What a child tells its parent, on `lucent.link.up.{level}.{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ChildMessage {
    /// Opens a session. Sent until it is answered.
    Hello {
        /// A number of the child's choosing, fresh for each session, below 2^53.
        session: u64,
        /// What the child holds.
        lanes: ByLane<LaneHello>,
        /// The child's software version.
        version: String,
    },
    /// Hands over batches.
    Frame {
        /// The session that this belongs to.
        session: u64,
        /// The lane that all of them travel in.
        lane: Lane,
        /// Bindings of keys that the parent may not have seen.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bindings: Vec<Binding>,
        /// The batches that follow.
        parcels: Vec<ParcelHead>,
        /// Last place in the child's store of this lane.
        last: u64,
    },
    /// Hands over a piece of a batch that would hold up a slow line for too long as a whole. The bytes of the
    /// piece follow, as a frame's batches do.
    Piece {
        /// The session that this belongs to.
        session: u64,
        /// The lane that the batch travels in.
        lane: Lane,
        /// Bindings of keys that the parent may not have seen; with the last piece.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bindings: Vec<Binding>,
        /// The whole batch.
        parcel: ParcelHead,
        /// Where in it the piece begins.
        offset: u32,
        /// Last place in the child's store of this lane.
        last: u64,
    },
    /// The child's answer to a [`ParentMessage::Handoff`].
    HandoffReply {
        /// The task.
        task: String,
        /// Which try of it.
        attempt: u32,
        /// Taken into custody, or why not.
        refused: Option<String>,
    },
    /// The child's offer to take work; the newest replaces all older ones.
    Credit {
        /// Increases with every offer of one run of the child.
        number: u64,
        /// Free slots by kind of work.
        offers: Vec<Offer>,
        /// How long the offer holds, in milliseconds from its arrival.
        valid_for_ms: u64,
    },
    /// The child's part in the flow of orders, which is the link's other way round: there the parent sends
    /// and the child receives. A welcome, a receipt or a reset.
    Orders(Box<ParentMessage>),
    /// Asks what time it is.
    Clock {
        /// Of the question: fresh for each, below 2^53.
        number: u64,
        /// What the child has found so far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        skew: Option<Skew>,
    },
}

/// Room for one kind of work below a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Offer {
    /// First name in `lucent.agents.{agent_type}.{task}`.
    pub agent_type: String,
    /// Second name; `*` where the child runs every task of the type.
    pub task: String,
    /// How many more of them it can start now.
    pub slots: u32,
}

/// Where a batch lies in the child's store and in the frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParcelHead {
    /// See [`Parcel::after`].
    pub after: u64,
    /// See [`Parcel::last`].
    pub last: u64,
    /// Bytes of the batch.
    pub len: u32,
    /// What its origin signed.
    pub digest: Digest,
}

/// What a parent tells its child, on `lucent.link.down.{level}.{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ParentMessage {
    /// Accepts a session.
    Welcome {
        /// The child's number.
        session: u64,
        /// Where to go on.
        lanes: ByLane<LaneWelcome>,
        /// The parent's software version.
        version: String,
    },
    /// A receipt: everything up to the cursor is durable at the parent, or was refused by name.
    Ack {
        /// The child's number.
        session: u64,
        /// The lane that the cursor is of.
        lane: Lane,
        /// The new cursor.
        cursor: u64,
        /// How many bytes the parent will take beyond the cursor.
        credit: u64,
        /// What it has of the next batch, where that comes in pieces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begun: Option<Begun>,
        /// When the parent accepted the last of it.
        received_at: Millis,
        /// What was refused since the last receipt.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused: Vec<RefusedParcel>,
    },
    /// A batch that asked for it ([`crate::envelope::BatchHead::tell`]) is durable at a level. Handed down
    /// from agent to agent, to the batch's origin.
    Reached {
        /// Where it is durable.
        level: Level,
        /// Whose batch it is.
        origin: Path,
        /// The lane.
        lane: Lane,
        /// The origin's incarnation.
        incarnation: u64,
        /// The batch's first number. Of what the origin numbered before nothing is said: it may have been
        /// dropped on the way.
        first: u64,
        /// The batch's last number.
        last: u64,
    },
    /// Somebody wants to see what an outage does: the link of `cut` to its parent is to be cut for a while.
    /// Handed down from agent to agent.
    Drill {
        /// Whose link.
        cut: Path,
        /// For how long.
        seconds: u64,
    },
    /// The parent knows no such session: greet again.
    Reset {
        /// The session it does not know; 0 where it could not even read which one was meant.
        session: u64,
    },
    /// What time it is.
    Time {
        /// Of the question.
        number: u64,
        /// When the question came, by the parent's time.
        received: Millis,
        /// When this answer goes.
        sent: Millis,
    },
    /// A task is handed down.
    Handoff {
        /// The task.
        task: String,
        /// Which try of it.
        attempt: u32,
        /// What is to be done.
        spec: Box<RawValue>,
    },
    /// The parent's part in the flow of orders, see [`ChildMessage::Orders`]: a greeting or a frame.
    Orders(Box<ChildMessage>),
}

/// What a child holds of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaneHello {
    /// The incarnation that the places belong to.
    pub incarnation: u64,
    /// The place after which this incarnation begins: 0 for a new store.
    pub start: u64,
    /// Last place in the child's store, so that the parent knows how far behind it is.
    pub last: u64,
}

/// Where a child is to go on in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaneWelcome {
    /// Everything up to here is durable at the parent.
    pub cursor: u64,
    /// The batch that the parent had from there. A child that holds another one at this place has a
    /// store that went back in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// How many bytes the parent will take beyond the cursor.
    pub credit: u64,
}

/// A batch that has come in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Begun {
    /// Its place.
    pub last: u64,
    /// How many bytes of it are there, from its beginning on.
    pub have: u32,
}

/// A parcel that the parent will not take, now or later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefusedParcel {
    /// Its place.
    pub last: u64,
    /// Why.
    pub reason: Refusal,
}

impl ChildMessage {
    /// The envelope's `messageType`.
    pub const fn kind(&self) -> &'static str {
        match self {
            ChildMessage::Hello { .. } => "LinkHello",
            ChildMessage::Frame { .. } => "LinkFrame",
            ChildMessage::Piece { .. } => "LinkPiece",
            ChildMessage::HandoffReply { .. } => "LinkHandoffReply",
            ChildMessage::Credit { .. } => "LinkCredit",
            ChildMessage::Orders(_) => "LinkOrders",
            ChildMessage::Clock { .. } => "LinkClock",
        }
    }
}

impl ParentMessage {
    /// The envelope's `messageType`.
    pub const fn kind(&self) -> &'static str {
        match self {
            ParentMessage::Welcome { .. } => "LinkWelcome",
            ParentMessage::Ack { .. } => "LinkAck",
            ParentMessage::Reached { .. } => "LinkReached",
            ParentMessage::Drill { .. } => "LinkDrill",
            ParentMessage::Reset { .. } => "LinkReset",
            ParentMessage::Handoff { .. } => "LinkHandoff",
            ParentMessage::Orders(_) => "LinkOrders",
            ParentMessage::Time { .. } => "LinkTime",
        }
    }
}

impl From<&Parcel> for ParcelHead {
    fn from(parcel: &Parcel) -> Self {
        ParcelHead {
            after: parcel.after,
            last: parcel.last,
            len: parcel.bytes.len() as u32,
            digest: parcel.digest,
        }
    }
}

/// Cuts the bytes behind a frame's envelope into its batches. `None` where the lengths do not add up.
pub fn cut(heads: &[ParcelHead], mut body: bytes::Bytes) -> Option<Vec<bytes::Bytes>> {
    let total: u64 = heads.iter().map(|head| u64::from(head.len)).sum();
    if total != body.len() as u64 {
        return None;
    }
    Some(heads.iter().map(|head| body.split_to(head.len as usize)).collect())
}
