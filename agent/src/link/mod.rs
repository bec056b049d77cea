//! The link's shells: what carries out what the state machines of `hierarchy::link` ask for.

pub mod bindings;
pub mod cursors;
pub mod custody;
pub mod downlink;
pub mod uplink;
mod wire;

/// The stream of events, at every level.
pub const HIERARCHY: &str = "HIERARCHY";

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
    /// The sender's key binding, on greetings and welcomes.
    pub const BINDING: &str = "Lucent-Binding";
}
