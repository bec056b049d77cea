//! `agent bench backlog`: what happens when a link heals behind which a great deal of bulk has waited.

use std::{
    path::Path as FilePath,
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, jetstream};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hierarchy::{Lane, Path, envelope::Parsed, link::Batch, subject::Speaker};
use serde_json::json;

use super::{percentile, process, rounded, show};
use crate::{
    cli::BenchArgs,
    dev::{fleet::Fleet, plan::Plan},
    exit::ExitCode,
    link::HIERARCHY,
};

/// Bytes of a bulk event: a log file's chunk, a camera's frame.
const BULK: usize = 16 * 1024;
/// Fresh events a second while the backlog drains.
const FRESH: u32 = 100;
/// How long the heal and the drain may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the benchmark; the process's exit code.
pub fn run(args: &BenchArgs) -> ExitCode {
    super::print(args.json, to_text, async |dir| measure(args, dir).await)
}

async fn measure(args: &BenchArgs, dir: &FilePath) -> Result<serde_json::Value, String> {
    let megabytes: u64 = if args.quick { 200 } else { 1000 };
    let program = super::program(args)?;
    let paths = super::chain();
    let (cluster, node) = (paths[2].clone(), paths[3].clone());
    let plan =
        Plan::lay_out(&dir.join("mesh"), &paths, |_, config| *config = config.replacen("2GiB", "16GiB", 1))
            .map_err(|e| e.to_string())?;
    eprintln!("starting four agents");
    let mut fleet = Fleet::start_with(program, plan, |_| {}).await.map_err(|e| e.to_string())?;
    let global = jetstream::new(fleet.connect_as_agent(&Path::global()).await.map_err(|e| e.to_string())?);
    let client = fleet.connect(&node).await.map_err(|e| e.to_string())?;

    fleet.stop_one(&cluster).await;
    eprintln!("the cluster is away; {megabytes} MB of bulk wait at the node");
    let count = megabytes * 1_000_000 / BULK as u64;
    let speaker = Speaker::of(&node);
    let js = jetstream::new(client.clone());
    bulk(&js, &speaker.with_tail("bulk"), count).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let node_rss = fleet.agent_pid(&node).and_then(process::resident).unwrap_or_default();

    let clock = Instant::now();
    let mut arriving = reader(&global).await?;
    js.publish_with_headers(speaker.with_tail("alert"), lane(Lane::Critical), stamp(&clock).into())
        .await
        .map_err(|e| e.to_string())?
        .await
        .map_err(|e| e.to_string())?;
    fleet.spawn(&cluster).map_err(|e| e.to_string())?;
    fleet.wait_until_linked(&cluster, (Instant::now() + PATIENCE).into()).await.map_err(|e| e.to_string())?;
    // The link of the node heals by itself; the first of its batches at global tells when.
    let drained = async {
        let (mut seen, mut seen_bytes) = (0, 0);
        let (mut first, mut critical, mut fresh) = (None, None, Vec::new());
        while seen < count {
            let message = tokio::time::timeout(PATIENCE, arriving.next()).await;
            let Ok(Some(Ok(message))) = message else { return Err(format!("{seen} of {count} arrived")) };
            let now = clock.elapsed();
            // Global's own events are single, not in batches.
            let Ok(envelope) = Parsed::parse(&message.payload) else { continue };
            let Some(head) = envelope.batch() else { continue };
            if !envelope.subject().starts_with("lucent.hierarchy.node.n1.") {
                continue;
            }
            first.get_or_insert(now);
            match envelope.subject().rsplit('.').next() {
                Some("bulk") => {
                    seen += u64::from(head.count);
                    seen_bytes += u64::from(head.count) * BULK as u64;
                }
                Some("alert") => critical = Some(now),
                Some("fresh") => {
                    for event in Batch::read(&envelope).map_err(|e| e.to_string())?.events {
                        let sent: f64 = String::from_utf8_lossy(&event.bytes()).parse().unwrap_or(0.0);
                        fresh.push((now.as_secs_f64() * 1000.0 - sent) as f32);
                    }
                }
                _ => {}
            }
        }
        Ok((first, critical, fresh, seen_bytes, clock.elapsed()))
    };
    let publishing = async {
        let mut timer = tokio::time::interval(Duration::from_secs(1) / FRESH);
        loop {
            timer.tick().await;
            let _ = client.publish(speaker.with_tail("fresh"), stamp(&clock).into()).await;
        }
    };
    let (first, critical, mut fresh, bytes, ended) = tokio::select! {
        drained = drained => drained?,
        () = publishing => return Err("the publisher ended".into()),
    };
    let nats_server = fleet.status(&node).await.map(|status| status.nats_server).unwrap_or_default();
    fleet.stop().await;
    let first = first.unwrap_or(ended);
    let seconds = ended.saturating_sub(first).as_secs_f64();
    fresh.sort_unstable_by(f32::total_cmp);
    Ok(json!({
        "backlog_mb": megabytes,
        "drain_mb_per_s": rounded(bytes as f64 / 1e6 / seconds),
        "drain_s": rounded(seconds),
        // Since the first batch of the node was at global: the time that the link took to come up is not ours.
        "critical_after_heal_ms": critical.map(|at| rounded(at.saturating_sub(first).as_secs_f64() * 1000.0)),
        "fresh_p50_ms": rounded(percentile(&fresh, 0.5)),
        "fresh_p99_ms": rounded(percentile(&fresh, 0.99)),
        "fresh_events": fresh.len(),
        "node_agent_rss_mb": process::megabytes(node_rss),
        "bulk_event_bytes": BULK,
        "nats_server": nats_server,
        "agent_version": crate::VERSION,
    }))
}

fn lane(lane: Lane) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Lucent-Priority", lane.as_str());
    headers
}

/// Milliseconds since the benchmark's clock was started.
fn stamp(clock: &Instant) -> String {
    format!("{:.3}", clock.elapsed().as_secs_f64() * 1000.0)
}

async fn bulk(js: &jetstream::Context, subject: &str, count: u64) -> Result<(), String> {
    let body = bytes::Bytes::from(format!("\"{}\"", "x".repeat(BULK - 2)));
    let mut unacked = FuturesUnordered::new();
    for _ in 0..count {
        let ack = js.publish_with_headers(subject.to_owned(), lane(Lane::Bulk), body.clone());
        unacked.push(ack.await.map_err(|e| e.to_string())?.into_future());
        while unacked.len() >= 256
            && let Some(ack) = unacked.next().await
        {
            ack.map_err(|e: jetstream::context::PublishError| e.to_string())?;
        }
    }
    while let Some(ack) = unacked.next().await {
        ack.map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn reader(js: &jetstream::Context) -> Result<jetstream::consumer::pull::Ordered, String> {
    let stream = js.get_stream(HIERARCHY).await.map_err(|e| e.to_string())?;
    // Not "new": a reader that is made again would begin with what is new then.
    let last = stream.cached_info().state.last_sequence;
    let config = jetstream::consumer::pull::OrderedConfig {
        deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    consumer.messages().await.map_err(|e| e.to_string())
}

/// The figures for people.
fn to_text(figures: &serde_json::Value) -> String {
    format!(
        "{} MB of bulk behind a link that heals\n\
         drained                      {:>8} MB/s, {} s\n\
         a critical event at global   {:>8} ms after the first batch\n\
         fresh events meanwhile       {:>8} ms p50, {} ms p99\n\
         node agent with the backlog  {:>8} MB resident\n",
        show(figures, "backlog_mb"),
        show(figures, "drain_mb_per_s"),
        show(figures, "drain_s"),
        show(figures, "critical_after_heal_ms"),
        show(figures, "fresh_p50_ms"),
        show(figures, "fresh_p99_ms"),
        show(figures, "node_agent_rss_mb"),
    )
}
