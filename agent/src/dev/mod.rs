//! `agent dev`: a whole mesh on this machine, as separate processes, with traffic and an audit.

pub mod audit;
pub mod fleet;
pub mod identities;
pub mod plan;
mod summary;
pub mod traffic;
mod view;

use std::{path::PathBuf, time::Duration};

use hierarchy::{Level, Path};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{DevArgs, SummaryFormat},
    exit::ExitCode,
};

/// How long what was published may take to arrive once publishing has stopped.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// One global, two sites, two clusters, three nodes.
pub fn example_tree() -> Vec<Path> {
    ["global", "s1", "s2", "s1/c1", "s2/c2", "s1/c1/n1", "s1/c1/n2", "s2/c2/n3"]
        .iter()
        .map(|path| path.parse().expect("these paths are well formed"))
        .collect()
}

/// Runs the mesh; the process's exit code.
pub fn run(args: &DevArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("agent dev: {error}");
            return ExitCode::Failure;
        }
    };
    runtime.block_on(run_mesh(args))
}

async fn run_mesh(args: &DevArgs) -> ExitCode {
    let dir = match Workplace::new(args.state_dir.clone()) {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("agent dev: no place for the mesh's state: {error}");
            return ExitCode::CannotCreate;
        }
    };
    let interrupted = CancellationToken::new();
    let watcher = tokio::task::JoinSet::from_iter([watch_signals(interrupted.clone())]);
    let code = match drive(args, &dir, &interrupted).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("agent dev: {error}");
            error.code()
        }
    };
    drop(watcher);
    code
}

async fn watch_signals(interrupted: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    if let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        interrupted.cancel();
    }
}

async fn drive(
    args: &DevArgs,
    dir: &Workplace,
    interrupted: &CancellationToken,
) -> Result<ExitCode, fleet::FleetError> {
    let worker = traffic::Worker::install(dir.path())?;
    let plan = plan::Plan::lay_out(dir.path(), &example_tree(), |path, config| {
        if path.level() == Level::Node {
            config.push_str(&worker.runner());
        }
    })?;
    let mut view = view::View::new(&plan);
    let starting = fleet::Fleet::start(plan, |path| view.up(path));
    let mut fleet = tokio::select! {
        fleet = starting => fleet?,
        // Dropping the half-started fleet kills what runs of it.
        () = interrupted.cancelled() => return Ok(ExitCode::Failure),
    };
    view.say_where_to_connect(&fleet);

    let audit = audit::Audit::start(&fleet).await?;
    let traffic = traffic::Traffic::start(&fleet, args.rate).await?;
    let deadline = args.run_for.map(|time| tokio::time::Instant::now() + time);
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    let ended = loop {
        tokio::select! {
            () = interrupted.cancelled() => break Ok(()),
            () = until(deadline) => break Ok(()),
            failed = fleet.first_exit() => break Err(failed),
            _ = timer.tick() => view.refresh(&fleet, &traffic, &audit).await,
        }
    };
    view.end();
    let sent = traffic.stop(DRAIN_WITHIN).await;
    let seen = audit.settle(&sent, DRAIN_WITHIN).await;
    let summary = summary::Summary::new(&fleet, &sent, &seen).await;
    fleet.stop().await;
    ended?;
    match args.summary {
        SummaryFormat::Json => println!("{}", summary.to_json()),
        SummaryFormat::Text => print!("{}", summary.to_text()),
    }
    Ok(if summary.is_sound() { ExitCode::Ok } else { ExitCode::Failure })
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Where the mesh's state lies: given, or temporary and removed at the end.
struct Workplace {
    path: PathBuf,
    temporary: bool,
}

impl Workplace {
    fn new(given: Option<PathBuf>) -> std::io::Result<Workplace> {
        let temporary = given.is_none();
        let path = given.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("lucent-dev-{}", uuid::Uuid::new_v4().simple()))
        });
        std::fs::create_dir_all(&path)?;
        Ok(Workplace { path: std::path::absolute(path)?, temporary })
    }

    fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
