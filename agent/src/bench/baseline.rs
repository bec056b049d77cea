//! What one would build without this product: four servers joined by leaf nodes, a stream on each, and
//! between each two a forwarder that reads one message, publishes it upward through the leaf link, and
//! acknowledges it below when it is stored above. Pipelined, unsigned, without TLS, with JetStream's
//! default sync.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    stream::{Config, RetentionPolicy},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::{broker, supervise::Tasks};

/// Messages that a forwarder has under way.
const PIPELINE: usize = 500;
const STREAM: &str = "EVENTS";

/// One subject a hop: were they equal, every stream would capture every message as it passes.
fn subject(hop: usize) -> String {
    format!("bench.hop{hop}")
}

/// Events per second through three hops.
pub(super) async fn run(server: &Path, dir: &Path, payload: &[u8], events: u64) -> Result<f64, String> {
    // From the top down, since each but the first dials the one above it.
    let mut servers = Vec::new();
    let mut above = None;
    for hop in (0..4).rev() {
        let (child, js, leaf) =
            start_server(server, &dir.join(format!("baseline-{hop}")), hop, above).await?;
        above = Some(leaf);
        servers.insert(0, (child, js));
    }
    let mut streams = Vec::new();
    for (hop, (_, js)) in servers.iter().enumerate() {
        let config = Config {
            name: format!("{STREAM}{hop}"),
            subjects: vec![subject(hop)],
            retention: RetentionPolicy::Limits,
            ..Default::default()
        };
        streams.push(js.create_stream(config).await.map_err(|e| e.to_string())?);
    }
    let mut forwarders = Tasks::new(CancellationToken::new());
    for hop in 0..3 {
        let (below, js) = (streams[hop].clone(), servers[hop].1.clone());
        forwarders.spawn("forwarder", forward(below, js, subject(hop + 1)));
    }
    let started = Instant::now();
    super::link::publish(&servers[0].1, &subject(0), events, |_| payload.to_vec()).await?;
    let top = &mut streams[3];
    loop {
        let stored = top.info().await.map_err(|e| e.to_string())?.state.messages;
        if stored >= events {
            break;
        }
        if started.elapsed() > Duration::from_secs(120) {
            return Err(format!("the baseline stored {stored} of {events} in two minutes"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = events as f64 / started.elapsed().as_secs_f64();
    forwarders.stop(Duration::from_secs(2)).await;
    Ok(rate)
}

async fn forward(
    below: jetstream::stream::Stream,
    js: jetstream::Context,
    above: String,
) -> Result<(), String> {
    let config = pull::Config {
        durable_name: Some("forwarder".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 10_000,
        ..Default::default()
    };
    let consumer = below.create_consumer(config).await.map_err(|e| e.to_string())?;
    let mut messages =
        consumer.stream().max_messages_per_batch(500).messages().await.map_err(|e| e.to_string())?;
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            message = messages.next(), if under_way.len() < PIPELINE => {
                let Some(message) = message else { return Ok(()) };
                let message = message.map_err(|e| e.to_string())?;
                let stored = js.publish(above.clone(), message.payload.clone()).await.map_err(|e| e.to_string())?;
                under_way.push(async move {
                    stored.await.map_err(|e| e.to_string())?;
                    message.ack().await.map_err(|e| e.to_string())
                });
            }
            Some(done) = under_way.next(), if !under_way.is_empty() => done?,
        }
    }
}

/// A server of the chain; also where the next one below dials it.
async fn start_server(
    program: &Path,
    dir: &Path,
    hop: usize,
    above: Option<SocketAddr>,
) -> Result<(Child, jetstream::Context, SocketAddr), String> {
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    let free = || broker::claim("baseline", SocketAddr::from(([127, 0, 0, 1], 0))).map_err(|e| e.to_string());
    let (listen, leaf) = (free()?, free()?);
    let remotes =
        above.map(|above| format!("remotes: [{{ url: \"nats-leaf://{above}\" }}]")).unwrap_or_default();
    let config = format!(
        "listen: \"{listen}\"\nserver_name: \"hop{hop}\"\n\
         jetstream {{ store_dir: \"{}\", domain: \"hop{hop}\" }}\n\
         leafnodes {{ listen: \"{leaf}\", {remotes} }}\n",
        dir.display()
    );
    let file = dir.join("server.conf");
    std::fs::write(&file, config).map_err(|e| e.to_string())?;
    let child = Command::new(program)
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(client) = async_nats::connect(listen.to_string()).await
            && broker::server::jetstream_answers(client.clone()).await
        {
            return Ok((child, jetstream::new(client), leaf));
        }
        if Instant::now() > deadline {
            return Err("a server of the baseline does not come up".into());
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
