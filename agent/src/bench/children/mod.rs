//! `agent bench children`: one parent and a great many children, each an event a second; then all of them lose
//! it, collect a backlog, and heal at the same moment.
//!
//! Real: the parent (an agent at level global with its nats-server), a leaf connection over mutual TLS for
//! each child, certificates, key bindings, signatures both ways, the link's messages and the child's state
//! machine. Hollow: behind a child there is no nats-server and no store, its batches are of one event and lie
//! in memory, and all children live in this process.

mod hollow;
mod leaf;

use std::{
    path::Path as FilePath,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hierarchy::{Lane, Path};
use hollow::{Hollow, Shared};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{percentile, process, rounded, show};
use crate::{
    cli::BenchChildrenArgs,
    dev::{fleet::Fleet, plan::Plan},
    exit::ExitCode,
    supervise::Tasks,
};

/// Batches of bulk that wait at each child when it heals, and bytes of each.
const BULK: (usize, usize) = (8, 32 * 1024);
/// How long the children may take to come up, and to drain.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the benchmark; the process's exit code.
pub fn run(args: &BenchChildrenArgs) -> ExitCode {
    super::print(args.bench.json, to_text, async |dir| measure(args, dir).await)
}

struct Pids {
    agent: u32,
    server: u32,
}

/// What the parent and its server take.
struct Taken {
    agent_cores: f64,
    server_cores: f64,
    agent_rss: u64,
    server_rss: u64,
}

async fn measure(args: &BenchChildrenArgs, dir: &FilePath) -> Result<serde_json::Value, String> {
    let count = args.children.unwrap_or(if args.bench.quick { 100 } else { 1000 });
    let (steady, cut) = if args.bench.quick { (8, 5) } else { (30, 15) };
    let (steady, cut) = (Duration::from_secs(steady), Duration::from_secs(cut));
    let program = super::program(&args.bench)?;
    let paths: Vec<Path> = (1..=count).filter_map(|number| format!("s{number}").parse().ok()).collect();
    let ids: Vec<String> = paths.iter().map(|path| format!("{:?}", path.id())).collect();
    let plan = Plan::lay_out(&dir.join("mesh"), &[Path::global()], |_, config| {
        *config = config.replace("children = []", &format!("children = [{}]", ids.join(",")));
        *config = config.replacen("2GiB", "16GiB", 1);
    })
    .map_err(|e| e.to_string())?;
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    let syncs_per_s = syncs_per_s(dir).map_err(|e| e.to_string())?;
    eprintln!("starting a parent; {count} children get their identities");
    let fleet = Fleet::start_with(program, plan, |_| {}).await.map_err(|e| e.to_string())?;
    let global = Path::global();
    let pids = Pids {
        agent: fleet.agent_pid(&global).ok_or("the parent is gone")?,
        server: fleet.server_pid(&global).ok_or("the parent's server is gone")?,
    };
    let parent =
        fleet.addresses(&global).and_then(|known| known.leaf).ok_or("the parent takes no children")?;
    let nats_server = fleet.status(&global).await.map(|status| status.nats_server).unwrap_or_default();

    let (latencies, mut measured) = mpsc::unbounded_channel();
    let (up, up_rx) = watch::channel(true);
    let (bulk, bulk_rx) = watch::channel((0, 0));
    let shared = Arc::new(Shared {
        parent,
        clock: Instant::now(),
        up: up_rx,
        bulk: bulk_rx,
        latencies,
        open: AtomicU64::new(0),
        waiting: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        ended: AtomicBool::new(false),
    });
    let mut children = Tasks::new(CancellationToken::new());
    let joining = Instant::now();
    for path in &paths {
        let svid = fleet.plan.authority.issue(path).map_err(|e| e.to_string())?;
        children.spawn("hollow child", Hollow::new(path, &svid, shared.clone())?.run());
    }
    wait("open", || shared.open.load(Ordering::Relaxed) == count as u64).await?;
    let joined = joining.elapsed();
    eprintln!("all are open after {joined:.1?}; an event a second each, for {steady:?}");
    // What has collected meanwhile is not what is measured.
    tokio::time::sleep(Duration::from_secs(5)).await;
    while measured.try_recv().is_ok() {}
    let (taken, _) = watch_parent(&pids, || false, steady).await;
    let (mut times, _) = times(&mut measured, 0.0);
    let events_per_s = times.len() as f64 / steady.as_secs_f64();

    eprintln!("all links are cut for {cut:?}");
    let _ = up.send(false);
    let _ = bulk.send(BULK);
    tokio::time::sleep(cut).await;
    let waited = shared.waiting.load(Ordering::Relaxed);
    while measured.try_recv().is_ok() {}
    eprintln!("{waited} batches wait; all children heal now");
    let healing = Instant::now();
    let heal_at = shared.clock.elapsed().as_secs_f32() * 1000.0;
    let _ = up.send(true);
    let mut opened = None;
    let drained = || {
        let all_open = shared.open.load(Ordering::Relaxed) == count as u64;
        // Sessions of before the cut count as open until their children notice.
        if all_open && opened.is_none() && shared.waiting.load(Ordering::Relaxed) < waited {
            opened = Some(healing.elapsed());
        }
        all_open && shared.waiting.load(Ordering::Relaxed) <= count as u64 / 10
    };
    let (heal, heal_took) = watch_parent(&pids, drained, PATIENCE).await;
    let (mut fresh, bulk_batches) = self::times(&mut measured, heal_at);
    let left = shared.waiting.load(Ordering::Relaxed);
    if heal_took >= PATIENCE {
        eprintln!("{left} batches still wait after {PATIENCE:?}");
    }
    let refused = shared.refused.load(Ordering::Relaxed);
    shared.ended.store(true, Ordering::Release);
    let _ = up.send(false);
    children.stop(Duration::from_secs(3)).await;
    fleet.stop().await;

    times.sort_unstable_by(f32::total_cmp);
    fresh.sort_unstable_by(f32::total_cmp);
    Ok(json!({
        "children": count,
        "events_per_s": rounded(events_per_s),
        "join_s": rounded(joined.as_secs_f64()),
        "parent_agent_cores": rounded(taken.agent_cores),
        "parent_agent_rss_mb": process::megabytes(taken.agent_rss),
        "parent_server_cores": rounded(taken.server_cores),
        "parent_server_rss_mb": process::megabytes(taken.server_rss),
        "p50_ms": rounded(percentile(&times, 0.5)),
        "p99_ms": rounded(percentile(&times, 0.99)),
        "heal_waiting_batches": waited,
        "heal_bulk_mb": rounded((bulk_batches * BULK.1) as f64 / 1e6),
        "heal_drained_s": (heal_took < PATIENCE).then(|| rounded(heal_took.as_secs_f64())),
        "heal_left_batches": left,
        "heal_open_s": opened.map(|opened| rounded(opened.as_secs_f64())),
        "heal_fresh_p50_ms": rounded(percentile(&fresh, 0.5)),
        "heal_fresh_p99_ms": rounded(percentile(&fresh, 0.99)),
        "heal_max_agent_rss_mb": process::megabytes(heal.agent_rss),
        "heal_max_server_rss_mb": process::megabytes(heal.server_rss),
        "heal_agent_cores": rounded(heal.agent_cores),
        "heal_server_cores": rounded(heal.server_cores),
        "refused_batches": refused,
        "baseline_syncs_per_s": syncs_per_s.round(),
        "nats_server": nats_server,
        "agent_version": crate::VERSION,
    }))
}

/// How often a second this disk syncs a small append: the parent's server does it for every batch.
fn syncs_per_s(dir: &FilePath) -> std::io::Result<f64> {
    let mut file = std::fs::File::create(dir.join("syncs"))?;
    let (began, mut syncs) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        std::io::Write::write_all(&mut file, &[b'x'; 1024])?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / began.elapsed().as_secs_f64())
}

async fn wait(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= deadline {
            return Err(format!("not all children are {what} after {PATIENCE:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What the parent takes until something is so, or so much time has passed, and how long that was. Memory is the
/// most that was seen.
async fn watch_parent(pids: &Pids, mut until: impl FnMut() -> bool, most: Duration) -> (Taken, Duration) {
    let used = || [pids.agent, pids.server].map(|pid| process::processor(pid).unwrap_or_default());
    let (began, before) = (Instant::now(), used());
    let (mut agent_rss, mut server_rss) = (0, 0);
    while began.elapsed() < most && !until() {
        agent_rss = agent_rss.max(process::resident(pids.agent).unwrap_or_default());
        server_rss = server_rss.max(process::resident(pids.server).unwrap_or_default());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (took, after) = (began.elapsed(), used());
    let cores = |which: usize| (after[which] - before[which]) / took.as_secs_f64();
    (Taken { agent_cores: cores(0), server_cores: cores(1), agent_rss, server_rss }, took)
}

/// How long events of the normal lane took that were made since then, and how many were bulk.
fn times(measured: &mut mpsc::UnboundedReceiver<(Lane, f32, f32)>, since: f32) -> (Vec<f32>, usize) {
    let (mut normal, mut bulk) = (Vec::new(), 0);
    while let Ok((lane, made, took)) = measured.try_recv() {
        match lane {
            Lane::Bulk => bulk += 1,
            _ if made >= since => normal.push(took),
            _ => {}
        }
    }
    (normal, bulk)
}

/// The figures for people.
fn to_text(figures: &serde_json::Value) -> String {
    let of = |key: &str| show(figures, key);
    format!(
        "{} children, an event a second each    {:>8} ev/s, all open after {} s\n\
         from an event to the parent's receipt {:>8} ms p50, {} ms p99\n\
         the parent's agent                    {:>8} cores, {} MB resident\n\
         its nats-server                       {:>8} cores, {} MB resident\n\
         this disk syncs small appends         {:>8} times a second; the server does for each batch\n\
         all heal at once, {} batches and {} MB of bulk wait\n\
         drained after                         {:>8} s, all open after {} s\n\
         most that the parent's agent took     {:>8} MB, its server {} MB\n",
        of("children"),
        of("events_per_s"),
        of("join_s"),
        of("p50_ms"),
        of("p99_ms"),
        of("parent_agent_cores"),
        of("parent_agent_rss_mb"),
        of("parent_server_cores"),
        of("parent_server_rss_mb"),
        of("baseline_syncs_per_s"),
        of("heal_waiting_batches"),
        of("heal_bulk_mb"),
        of("heal_drained_s"),
        of("heal_open_s"),
        of("heal_max_agent_rss_mb"),
        of("heal_max_server_rss_mb"),
    )
}
