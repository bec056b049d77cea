//! Nothing missing, or exactly this: what is dropped on the way up is stated in loss receipts, and global
//! holds what arrives against what was published.
//!
//! ```text
//!   uplink, keeper, ingest --note--> LossNotes --receipts--> HIERARCHY (critical lane) ==> global
//!                                        |                                                   |
//!                                        +--> guards: what was noted stays until it is told   +--> Ledger
//! ```

pub mod audit;
mod heard;
pub mod notes;
pub mod told;

pub use notes::LossNotes;
pub use told::Numbered;
