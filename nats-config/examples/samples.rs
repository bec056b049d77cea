//! Writes `golden/` and `samples/` anew: `cargo run -p nats-config --example samples`.

#![allow(clippy::unwrap_used)] // the samples are fixed: a refusal is a mistake in this file

use std::{fs, io};

#[path = "../tests/support/fixtures.rs"]
mod fixtures;
#[path = "../tests/support/generated.rs"]
mod generated;

fn main() -> io::Result<()> {
    for (file, text) in generated::files() {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&file, text)?;
        println!("{}", file.display());
    }
    Ok(())
}
