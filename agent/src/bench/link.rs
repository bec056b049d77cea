//! `agent bench link`: the way from a node to global, three hops, on one machine.

use std::{
    path::{Path as FilePath, PathBuf},
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hierarchy::{Path, envelope::Parsed, link::Batch, subject::Speaker};
use serde_json::json;

use super::{baseline, process};
use crate::{
    cli::BenchArgs,
    dev::{fleet::Fleet, plan::Plan},
    exit::ExitCode,
    link::HIERARCHY,
};

/// Bytes of an event.
const PAYLOAD: usize = 256;
/// Events a second while latency is measured.
const LATENCY_RATES: [u32; 3] = [100, 1_000, 10_000];
/// Events that wait for the store's word.
const UNACKED: u64 = 2_000;
/// One in so many events is acknowledged.
const ACKED: u64 = 100;

/// How long each part runs.
struct Extent {
    idle: Duration,
    latency: Duration,
    events: u64,
    baseline_events: u64,
    rounds: usize,
}

/// Runs the benchmark; the process's exit code.
pub fn run(args: &BenchArgs) -> ExitCode {
    super::print(args.json, to_text, async |dir| measure(args, dir).await.map(|figures| figures.to_json()))
}

/// What was measured.
struct Figures {
    events_per_s: f64,
    baseline_events_per_s: f64,
    ratio: f64,
    /// Median and 99th percentile in milliseconds, for each of [`LATENCY_RATES`].
    latency: [(f64, f64); 3],
    agent_rss: u64,
    server_rss: u64,
    idle_seconds: u64,
    binary: u64,
    nats_server: String,
    rounds: usize,
}

async fn measure(args: &BenchArgs, dir: &FilePath) -> Result<Figures, String> {
    let extent = if args.quick {
        Extent {
            idle: Duration::from_secs(5),
            latency: Duration::from_secs(5),
            events: 60_000,
            baseline_events: 20_000,
            rounds: 1,
        }
    } else {
        Extent {
            idle: Duration::from_secs(60),
            latency: Duration::from_secs(20),
            events: 300_000,
            baseline_events: 60_000,
            rounds: 3,
        }
    };
    let program = super::program(args)?;
    let binary = std::fs::metadata(&program).map_err(|e| format!("{}: {e}", program.display()))?.len();
    let paths = super::chain();
    let node = paths[3].clone();
    let plan = Plan::lay_out(&dir.join("mesh"), &paths, |_, _| {}).map_err(|e| e.to_string())?;
    eprintln!("starting four agents");
    let fleet = Fleet::start_with(program, plan, |_| {}).await.map_err(|e| e.to_string())?;

    eprintln!("idle for {} s, then reading memory", extent.idle.as_secs());
    tokio::time::sleep(extent.idle).await;
    let rss = |pid: Option<u32>| pid.and_then(process::resident).unwrap_or_default();
    let (agent_rss, server_rss) = (rss(fleet.agent_pid(&node)), rss(fleet.server_pid(&node)));
    let nats_server = fleet.status(&node).await.map(|status| status.nats_server).unwrap_or_default();

    let mut latencies = [(0.0, 0.0); 3];
    for (rate, measured) in LATENCY_RATES.into_iter().zip(&mut latencies) {
        eprintln!("latency at {rate} ev/s for {} s", extent.latency.as_secs());
        *measured = latency(&fleet, &node, rate, extent.latency).await?;
    }

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..extent.rounds {
        eprintln!("round {} of {}: {} events through three hops", round + 1, extent.rounds, extent.events);
        ours.push(throughput(&fleet, &node, extent.events).await?);
        eprintln!("  {:.0} ev/s; baseline: {} events", ours[round], extent.baseline_events);
        let payload = event(0, 0);
        let dir = dir.join(format!("round-{round}"));
        theirs.push(baseline::run(&server_program()?, &dir, &payload, extent.baseline_events).await?);
        eprintln!("  {:.0} ev/s", theirs[round]);
    }
    fleet.stop().await;
    let (events_per_s, baseline_events_per_s) = (median(&mut ours), median(&mut theirs));
    Ok(Figures {
        events_per_s,
        baseline_events_per_s,
        ratio: events_per_s / baseline_events_per_s,
        latency: latencies,
        agent_rss,
        server_rss,
        idle_seconds: extent.idle.as_secs(),
        binary,
        nats_server,
        rounds: extent.rounds,
    })
}

/// The nats-server that the agents use, too.
fn server_program() -> Result<PathBuf, String> {
    let input = crate::config::Input::from_process(None, Vec::new());
    let named = input.environment.iter().find(|(name, _)| name == "LUCENT_NATS_SERVER");
    Ok(named.map_or_else(|| PathBuf::from("nats-server"), |(_, path)| PathBuf::from(path)))
}

/// Events per second, from the first publish until the last is stored at global.
async fn throughput(fleet: &Fleet, node: &Path, events: u64) -> Result<f64, String> {
    let subject = Speaker::of(node).with_tail("bench");
    let global = jetstream::new(fleet.connect_as_agent(&Path::global()).await.map_err(|e| e.to_string())?);
    let mut arriving = reader(&global, &subject).await?;
    let js = jetstream::new(fleet.connect(node).await.map_err(|e| e.to_string())?);
    let started = Instant::now();
    let arrive = async {
        let mut arrived = 0;
        while arrived < events {
            let next = tokio::time::timeout(Duration::from_secs(60), arriving.next()).await;
            let Ok(Some(Ok(message))) = next else {
                return Err(format!("{arrived} of {events} events arrived, then nothing for a minute"));
            };
            // Every hop has verified and stored it; counting is all that is left to do.
            let envelope = Parsed::parse(&message.payload).map_err(|e| e.to_string())?;
            arrived += envelope.batch().map_or(0, |head| u64::from(head.count));
        }
        Ok(started.elapsed())
    };
    let (published, took) = tokio::join!(publish(&js, &subject, events, |n| event(n, 0)), arrive);
    published?;
    Ok(events as f64 / took?.as_secs_f64())
}

/// Median and 99th percentile, from the publisher's call until global's store tells a reader.
async fn latency(fleet: &Fleet, node: &Path, rate: u32, time: Duration) -> Result<(f64, f64), String> {
    let subject = Speaker::of(node).with_tail(&format!("latency.{rate}"));
    let global = jetstream::new(fleet.connect_as_agent(&Path::global()).await.map_err(|e| e.to_string())?);
    let mut arriving = reader(&global, &subject).await?;
    let client = fleet.connect(node).await.map_err(|e| e.to_string())?;
    let events = u64::from(rate) * time.as_secs();
    let clock = Instant::now();
    let send = async {
        let mut timer = tokio::time::interval(Duration::from_secs(1) / rate);
        for number in 0..events {
            timer.tick().await;
            let sent = clock.elapsed().as_micros() as u64;
            client.publish(subject.clone(), event(number, sent).into()).await.map_err(|e| e.to_string())?;
            client.flush().await.map_err(|e| e.to_string())?;
        }
        Ok::<(), String>(())
    };
    let arrive = async {
        let mut took = Vec::with_capacity(events as usize);
        while (took.len() as u64) < events {
            let next = tokio::time::timeout(Duration::from_secs(30), arriving.next()).await;
            let Ok(Some(Ok(message))) = next else {
                return Err(format!("{} of {events} events arrived", took.len()));
            };
            let now = clock.elapsed().as_micros() as u64;
            let envelope = Parsed::parse(&message.payload).map_err(|e| e.to_string())?;
            for event in Batch::read(&envelope).map_err(|e| e.to_string())?.events {
                let sent =
                    serde_json::from_slice::<serde_json::Value>(&event.bytes()).map_err(|e| e.to_string())?;
                took.push(now.saturating_sub(sent["sent"].as_u64().unwrap_or(now)));
            }
        }
        Ok(took)
    };
    let (sent, took) = tokio::join!(send, arrive);
    sent?;
    let mut took = took?;
    took.sort_unstable();
    let at = |q: f64| took[((took.len() as f64 * q) as usize).min(took.len() - 1)] as f64 / 1000.0;
    Ok((at(0.5), at(0.99)))
}

async fn reader(js: &jetstream::Context, subject: &str) -> Result<pull::Ordered, String> {
    let stream = js.get_stream_no_info(HIERARCHY).await.map_err(|e| e.to_string())?;
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::New,
        filter_subject: subject.to_owned(),
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    consumer.messages().await.map_err(|e| e.to_string())
}

/// Publishes so many events as fast as the store takes them. One in [`ACKED`] asks for the store's word,
/// which it gives in order and so for those before it, too.
pub(super) async fn publish(
    js: &jetstream::Context,
    subject: &str,
    events: u64,
    event: impl Fn(u64) -> Vec<u8>,
) -> Result<(), String> {
    let mut unacked = FuturesUnordered::new();
    for number in 1..=events {
        let body = event(number).into();
        if number % ACKED != 0 && number != events {
            js.client().publish(subject.to_owned(), body).await.map_err(|e| e.to_string())?;
            continue;
        }
        let ack = js.publish(subject.to_owned(), body).await.map_err(|e| e.to_string())?;
        unacked.push(ack.into_future());
        while unacked.len() as u64 >= UNACKED / ACKED
            && let Some(ack) = unacked.next().await
        {
            ack.map_err(|e| e.to_string())?;
        }
    }
    while let Some(ack) = unacked.next().await {
        ack.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// An event of [`PAYLOAD`] bytes of JSON.
fn event(number: u64, sent: u64) -> Vec<u8> {
    let head = format!(r#"{{"number":{number},"sent":{sent},"pair":"ETH-USDC","price":2847.52,"pad":""#);
    let pad = "x".repeat(PAYLOAD.saturating_sub(head.len() + 2));
    format!("{head}{pad}\"}}").into_bytes()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Figures {
    fn to_json(&self) -> serde_json::Value {
        let round = |value: f64, places: f64| (value * places).round() / places;
        let [slow, medium, fast] = self.latency;
        json!({
            "events_per_s": self.events_per_s.round(),
            "baseline_events_per_s": self.baseline_events_per_s.round(),
            "ratio": round(self.ratio, 100.0),
            "p50_ms": round(medium.0, 100.0),
            "p99_ms": round(medium.1, 100.0),
            "p50_ms_at_100": round(slow.0, 100.0),
            "p99_ms_at_100": round(slow.1, 100.0),
            "p50_ms_at_10000": round(fast.0, 100.0),
            "p99_ms_at_10000": round(fast.1, 100.0),
            "node_agent_rss_mb": process::megabytes(self.agent_rss),
            "node_server_rss_mb": process::megabytes(self.server_rss),
            "node_total_rss_mb": process::megabytes(self.agent_rss + self.server_rss),
            "rss_after_s": self.idle_seconds,
            "agent_binary_mb": process::megabytes(self.binary),
            "payload_bytes": PAYLOAD,
            "hops": 3,
            "rounds": self.rounds,
            "nats_server": self.nats_server,
            "agent_version": crate::VERSION,
        })
    }
}

/// The figures for people.
fn to_text(figures: &serde_json::Value) -> String {
    let of = |key: &str| super::show(figures, key);
    format!(
        "three hops, {PAYLOAD} B, signed and verified at each   {:>8} ev/s (median of {})\n\
         baseline: JetStream forwarders, one by one, unsigned {:>8} ev/s\n\
         ratio                                                {:>8}\n\
         latency at 100 ev/s                                  {:>8} ms p50, {} ms p99\n\
         latency at 1,000 ev/s                                {:>8} ms p50, {} ms p99\n\
         latency at 10,000 ev/s                               {:>8} ms p50, {} ms p99\n\
         node agent after {} s                                {:>8} MB resident\n\
         its nats-server                                      {:>8} MB resident\n\
         agent binary                                         {:>8} MB\n",
        of("events_per_s"),
        of("rounds"),
        of("baseline_events_per_s"),
        of("ratio"),
        of("p50_ms_at_100"),
        of("p99_ms_at_100"),
        of("p50_ms"),
        of("p99_ms"),
        of("p50_ms_at_10000"),
        of("p99_ms_at_10000"),
        of("rss_after_s"),
        of("node_agent_rss_mb"),
        of("node_server_rss_mb"),
        of("agent_binary_mb"),
    )
}
