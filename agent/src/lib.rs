//! The mesh agent: everything of the product that touches the world. The `agent` binary is a thin shell
//! around this library, so that the end-to-end tests run the same code.

pub mod accounting;
pub mod app;
pub mod attach;
#[cfg(feature = "dev")]
pub mod bench;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dead_letters;
#[cfg(feature = "dev")]
pub mod dev;
pub mod dispatch;
pub mod drill;
pub mod exit;
pub mod http;
pub mod ingest;
pub mod lanes;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod orders;
pub mod replicas;
pub mod runner;
pub mod status;
pub mod supervise;
pub mod svid;
pub mod telemetry;
pub mod watch;

/// The agent's version, as told to parents and children.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
