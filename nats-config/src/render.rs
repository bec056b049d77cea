//! From options to configuration text.

use std::time::Duration;

use crate::{
    accounts,
    error::RenderError,
    leaf,
    names::domain,
    options::{ServerOptions, SyncPolicy},
    syntax::Writer,
    version::{Feature, ServerVersion},
};

/// How long a retiring server waits before it lets go of the first client. Its default of 10 s is for
/// clients that have another server to go to.
const LAME_DUCK_GRACE: Duration = Duration::from_secs(1);

/// Every how many failed attempts to reach the parent the server says so again, after the first. On its
/// own it writes a line a second for as long as the parent is away.
const ERROR_REPORTS: u32 = 60;

/// The configuration of one server, for `nats-server --config`. It holds the agent's passwords: write
/// it to a file that the agent's user alone may read.
///
/// Errors: the first of the options that is refused.
pub fn render(options: &ServerOptions) -> Result<String, RenderError> {
    write(options, Writer::new(false))
}

/// The same configuration with a comment on each choice, to be read.
pub fn render_explained(options: &ServerOptions) -> Result<String, RenderError> {
    write(options, Writer::new(true))
}

fn write(options: &ServerOptions, mut w: Writer) -> Result<String, RenderError> {
    options.check()?;
    write_head(&mut w, options);
    write_server(&mut w, options);
    write_jetstream(&mut w, options);
    leaf::write(&mut w, options);
    accounts::write(&mut w, options);
    w.finish()
}

fn write_head(w: &mut Writer, options: &ServerOptions) {
    let who = match options.path.level() {
        hierarchy::Level::Global => "the core".to_owned(),
        level => format!("{level} {}", options.path),
    };
    w.comment(&format!(
        "nats-server {} of {who}; written by the agent, which overwrites changes",
        options.version
    ));
    if let Some(lacking) = left_out(options.version) {
        w.comment(&lacking);
    }
    w.gap();
}

fn left_out(version: ServerVersion) -> Option<String> {
    let lacks: Vec<_> = version.lacks().iter().map(Feature::to_string).collect();
    (!lacks.is_empty()).then(|| format!("This version lacks: {}", lacks.join(", ")))
}

fn write_server(w: &mut Writer, options: &ServerOptions) {
    w.note("Name and JetStream domain are the same, and unique in the mesh.");
    w.text("server_name", &domain(&options.path));
    w.note("Loopback only: applications on this machine need no password.");
    w.text("listen", &options.client_listen.to_string());
    if let Some(monitor) = options.monitor_listen {
        w.text("http", &monitor.to_string());
    }
    if let Some(pid_file) = &options.pid_file {
        w.file("pid_file", pid_file);
    }
    w.note("Logs go to standard error, where the agent stamps them.");
    w.plain("logtime", false);
    w.note("While the parent is away: the first failed attempt and every sixtieth.");
    w.plain("connect_error_reports", ERROR_REPORTS);
    w.plain("reconnect_error_reports", ERROR_REPORTS);
    w.note("A frame of a link carries a whole batch.");
    w.plain("max_payload", options.max_payload);
    w.note("Together they decide how soon a peer that hangs is given up: within 6 s with 1s and 4.");
    w.duration("ping_interval", options.ping_interval);
    w.plain("ping_max", options.ping_max);
    w.duration("write_deadline", options.write_deadline);
    w.duration("lame_duck_duration", options.lame_duck);
    w.duration("lame_duck_grace_period", LAME_DUCK_GRACE);
    w.gap();
}

fn write_jetstream(w: &mut Writer, options: &ServerOptions) {
    w.block("jetstream", |w| {
        w.file("store_dir", &options.store_dir);
        w.text("domain", &domain(&options.path));
        w.note("Bytes. Left to itself the server takes three quarters of what is free.");
        w.plain("max_memory_store", options.max_memory_store);
        w.plain("max_file_store", options.max_file_store);
        if options.version.has(Feature::SyncInterval) {
            write_sync(w, options.sync);
        }
    });
    w.gap();
}

fn write_sync(w: &mut Writer, sync: SyncPolicy) {
    match sync {
        SyncPolicy::ServerDefault => w.note("Synced to disk every two minutes, the server's default."),
        SyncPolicy::Always => {
            w.note("On disk before it is acknowledged.");
            w.text("sync_interval", "always");
        }
        SyncPolicy::Every(interval) => w.duration("sync_interval", interval),
    }
}
