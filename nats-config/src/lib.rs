//! What a level's nats-server is told: typed options in, configuration text and stream definitions
//! out. Nothing here does I/O or reads a clock, so the same options always give the same text.
//!
//! Every server has four accounts. `MESH` holds JetStream and everything that local applications see;
//! it never crosses a leaf link. `UP` and `DOWN` carry the link to the parent and to the children and
//! store nothing, so that no level is a transit between the one above and the one below. `SYS`
//! monitors.

mod accounts;
mod check;
mod error;
mod leaf;
mod permissions;
mod syntax;

pub mod names;
pub mod options;
pub mod render;
pub mod streams;
pub mod version;

pub use error::RenderError;
pub use options::{LeafListen, LeafRemote, Password, Passwords, ServerOptions, SyncPolicy, TlsFiles};
pub use render::{render, render_explained};
pub use streams::{KvSpec, StreamLimits, StreamSpec, kv_buckets, streams};
pub use version::{Feature, ServerVersion};
