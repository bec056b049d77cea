//! The files that are generated from the fixtures: `golden/` is what the agent writes, `samples/` is
//! for reading.

use std::path::{Path, PathBuf};

use nats_config::{ServerVersion, render, render_explained};

use super::fixtures::servers;

/// The server of production, and the oldest that a machine for development may have.
pub(crate) const VERSIONS: [ServerVersion; 2] = [ServerVersion::new(2, 14, 5), ServerVersion::new(2, 9, 10)];

/// Every generated file with the text it should have.
pub(crate) fn files() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for version in VERSIONS {
        for (level, options) in servers(version) {
            let golden = root.join(format!("golden/{level}-{version}.conf"));
            files.push((golden, render(&options).unwrap()));
        }
    }
    for (level, options) in servers(VERSIONS[0]) {
        files.push((root.join(format!("samples/{level}.conf")), render_explained(&options).unwrap()));
    }
    files
}
