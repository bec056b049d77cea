//! `agent bench ingest`: events that are on disk at one node before their publishers are answered.
//!
//! The node's server syncs every write. Through the door the agent gathers what comes while a write is
//! under way and syncs it once; the baseline is what the server does on its own, a sync for each event.

use std::{
    path::Path as FilePath,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, jetstream};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::json;

use super::{percentile, rounded, show};
use crate::{
    cli::BenchArgs,
    dev::{fleet::Fleet, plan::Plan},
    exit::ExitCode,
};

/// Publishers that each wait for an answer before they publish again.
const PUBLISHERS: usize = 256;
/// Connections that they share.
const CONNECTIONS: usize = 8;
const PAYLOAD: usize = 256;

/// Runs the benchmark; the process's exit code.
pub fn run(args: &BenchArgs) -> ExitCode {
    super::print(args.json, to_text, async |dir| measure(args, dir).await)
}

async fn measure(args: &BenchArgs, dir: &FilePath) -> Result<serde_json::Value, String> {
    let time = Duration::from_secs(if args.quick { 5 } else { 20 });
    let program = super::program(args)?;
    let paths = super::chain();
    let node = paths[3].clone();
    let plan = Plan::lay_out(&dir.join("mesh"), &paths, |_, config| {
        *config = config.replacen("[nats]\n", "[nats]\nsync = \"always\"\n", 1);
    })
    .map_err(|e| e.to_string())?;
    eprintln!("starting four agents, every write synced at every level");
    let fleet = Fleet::start_with(program, plan, |_| {}).await.map_err(|e| e.to_string())?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(fleet.connect(&node).await.map_err(|e| e.to_string())?);
    }
    eprintln!("{PUBLISHERS} publishers at the door for {} s", time.as_secs());
    let door = crowd(&clients, time, "lucent.publish.hierarchy.node.n1.bench", false).await?;
    eprintln!("  {:.0} ev/s; baseline: each event a write of its own", door.rate);
    let plain = crowd(&clients, time, "lucent.hierarchy.node.n1.bench", true).await?;
    eprintln!("  {:.0} ev/s", plain.rate);
    let nats_server = fleet.status(&node).await.map(|status| status.nats_server).unwrap_or_default();
    fleet.stop().await;
    Ok(json!({
        "events_per_s": door.rate.round(),
        "p50_ms": rounded(door.p50),
        "p99_ms": rounded(door.p99),
        "baseline_events_per_s": plain.rate.round(),
        "baseline_p99_ms": rounded(plain.p99),
        "ratio": rounded(door.rate / plain.rate),
        "publishers": PUBLISHERS,
        "payload_bytes": PAYLOAD,
        "seconds": time.as_secs(),
        "nats_server": nats_server,
        "agent_version": crate::VERSION,
    }))
}

struct Crowd {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// All publishers at once, each with one request under way. `plain` asks the server's own stream.
async fn crowd(clients: &[Client], time: Duration, subject: &str, plain: bool) -> Result<Crowd, String> {
    let body = bytes::Bytes::from(format!("\"{}\"", "x".repeat(PAYLOAD - 2)));
    let count = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let publisher = async |client: Client| -> Result<Vec<f32>, String> {
        let js = jetstream::new(client.clone());
        let mut took = Vec::new();
        while started.elapsed() < time {
            let asked = Instant::now();
            if plain {
                let ack = js.publish(subject.to_owned(), body.clone()).await.map_err(|e| e.to_string())?;
                ack.await.map_err(|e| e.to_string())?;
            } else {
                let answer =
                    client.request(subject.to_owned(), body.clone()).await.map_err(|e| e.to_string())?;
                let answer: serde_json::Value =
                    serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
                if answer["seq"].as_u64().unwrap_or(0) == 0 {
                    return Err(answer.to_string());
                }
            }
            count.fetch_add(1, Ordering::Relaxed);
            took.push(asked.elapsed().as_secs_f32() * 1000.0);
        }
        Ok(took)
    };
    let mut all: FuturesUnordered<_> =
        (0..PUBLISHERS).map(|n| publisher(clients[n % clients.len()].clone())).collect();
    let mut took = Vec::new();
    while let Some(of_one) = all.next().await {
        took.extend(of_one?);
    }
    let rate = count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    took.sort_unstable_by(f32::total_cmp);
    Ok(Crowd { rate, p50: percentile(&took, 0.5), p99: percentile(&took, 0.99) })
}

/// The figures for people.
fn to_text(figures: &serde_json::Value) -> String {
    format!(
        "{PUBLISHERS} publishers, each answered once its event is on disk\n\
         through the door   {:>10} ev/s   p50 {} ms   p99 {} ms\n\
         one by one         {:>10} ev/s   p99 {} ms\n\
         ratio              {:>10}\n",
        show(figures, "events_per_s"),
        show(figures, "p50_ms"),
        show(figures, "p99_ms"),
        show(figures, "baseline_events_per_s"),
        show(figures, "baseline_p99_ms"),
        show(figures, "ratio"),
    )
}
