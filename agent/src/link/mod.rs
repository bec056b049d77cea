//! The link's shells: what carries out what the state machines of `hierarchy::link` ask for.

pub mod bindings;
pub mod contents;
pub mod cursors;
pub mod custody;
pub mod downlink;
pub mod fences;
pub mod uplink;
pub mod watchdog;
pub(crate) mod wire;
mod words;

pub use nats_config::streams::HIERARCHY;

/// Headers that this agent puts on batches it stores. Only the agent may write on the subjects of the
/// levels below, so what they say can be relied on.
pub mod header {
    /// The chain of the link, see [`hierarchy::link::Record`].
    pub const RECORD: &str = "Lucent-Link";
    /// The direct child that brought the batch.
    pub const CHILD: &str = "Lucent-Child";
    /// The batch's author.
    pub const ORIGIN: &str = "Lucent-Origin";
    /// What the author signed.
    pub const DIGEST: &str = "Lucent-Digest";
    /// The author's key.
    pub const KID: &str = "Lucent-Kid";
    /// The lane that the batch travels in.
    pub const LANE: &str = "Lucent-Lane";
    /// The numbers of the author's events, see [`hierarchy::link::Span`].
    pub const EVENTS: &str = "Lucent-Events";
    /// How many events the batch holds.
    pub const COUNT: &str = "Lucent-Count";
    /// On batches made here: the last place of the inbox that is in it, and the latest time there.
    pub const INBOX: &str = "Lucent-Inbox";
    /// The sender's key binding, on greetings and welcomes.
    pub const BINDING: &str = "Lucent-Binding";
}
