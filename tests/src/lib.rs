//! What the end-to-end and fault tests share: meshes of real processes, publishers that number what they
//! send, observers that hold it against what arrives, and impostors.
//!
//! Everything runs in temporary directories on dynamic ports and is killed on drop. As many meshes run at
//! once as the machine has cores, whichever test binaries want them.

pub mod burst;
pub mod clocks;
pub mod core;
pub mod door;
pub mod eventually;
pub mod forge;
mod guardian;
pub mod leaf;
pub mod letters;
pub mod losses;
pub mod mesh;
pub mod observer;
pub mod orders;
mod ports;
pub mod processes;
pub mod program;
pub mod publisher;
pub mod random;
pub mod scrape;
pub mod small_disk;
mod turn;
pub mod valve;
pub mod weather;

pub use core::Core;

pub use mesh::{Mesh, path};
pub use observer::Observer;
pub use publisher::Publisher;
