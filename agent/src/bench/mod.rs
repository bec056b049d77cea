//! `agent bench`: figures with a baseline from the same run, since machines are noisy and only ratios
//! travel.

pub mod backlog;
mod baseline;
pub mod children;
pub mod ingest;
pub mod link;
mod process;

use std::path::{Path as FilePath, PathBuf};

use hierarchy::Path;

use crate::{cli::BenchArgs, exit::ExitCode};

/// Runs a benchmark in a directory of its own and prints its figures: one JSON object, or a text made of it.
fn print(
    json: bool,
    to_text: fn(&serde_json::Value) -> String,
    measure: impl AsyncFnOnce(&FilePath) -> Result<serde_json::Value, String>,
) -> ExitCode {
    let dir = std::env::temp_dir().join(format!("lucent-bench-{}", uuid::Uuid::new_v4().simple()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let measured = match runtime {
        Ok(runtime) => runtime.block_on(measure(&dir)),
        Err(error) => Err(error.to_string()),
    };
    let _ = std::fs::remove_dir_all(&dir);
    match measured {
        Ok(figures) if json => println!("{figures}"),
        Ok(figures) => print!("{}", to_text(&figures)),
        Err(error) => {
            eprintln!("agent bench: {error}");
            return ExitCode::Failure;
        }
    }
    ExitCode::Ok
}

/// The paths of one chain from global to a node, the highest first.
fn chain() -> [Path; 4] {
    ["global", "s1", "s1/c1", "s1/c1/n1"].map(|path| path.parse().expect("a path"))
}

/// The agent to measure.
fn program(args: &BenchArgs) -> Result<PathBuf, String> {
    args.agent.clone().map_or_else(|| std::env::current_exe().map_err(|e| e.to_string()), Ok)
}

/// The value that `q` of all sorted values do not exceed.
fn percentile(sorted: &[f32], q: f64) -> f64 {
    let at = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().map_or(0.0, f64::from)
}

/// To two places.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn show(figures: &serde_json::Value, key: &str) -> String {
    figures[key].to_string()
}
