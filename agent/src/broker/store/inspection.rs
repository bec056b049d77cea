//! What the server says of its streams, asked over its own HTTP: which are frozen and which it refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use nats_config::names;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long the server may take to answer.
const WITHIN: Duration = Duration::from_secs(2);
/// Most bytes of an answer that are read.
const MOST: u64 = 256 * 1024;
/// Most characters of a reason that are repeated.
const REASON: usize = 300;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Whether it answered in a form that is understood: servers before 2.10 do not.
    pub(super) answered: bool,
    /// Streams into which a write failed, with the reason.
    pub(super) frozen: BTreeMap<String, String>,
    /// Streams whose directory is there and which it did not open.
    pub(super) refused: BTreeSet<String>,
    /// Whether JetStream is off.
    pub(super) disabled: bool,
}

impl Found {
    pub(super) fn is_sound(&self) -> bool {
        self.frozen.is_empty() && !self.disabled
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    account: String,
    #[serde(default)]
    stream: String,
    error: String,
}

/// Whether the server at this address answers that all its streams take writes.
pub async fn is_sound(monitor: Option<SocketAddr>) -> bool {
    look(monitor).await.is_sound()
}

pub(super) async fn look(monitor: Option<SocketAddr>) -> Found {
    let Some(monitor) = monitor else { return Found::default() };
    match tokio::time::timeout(WITHIN, ask(monitor)).await {
        Ok(Ok(body)) => read(&body),
        // A server that is away or hangs is noticed by others.
        _ => Found::default(),
    }
}

async fn ask(monitor: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(monitor).await?;
    stream.write_all(b"GET /healthz?details=1 HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    Ok(answer.split_off(head))
}

fn read(body: &[u8]) -> Found {
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Found::default() };
    let mut found = Found { answered: true, ..Found::default() };
    for fault in answer.errors {
        match fault.kind.as_str() {
            "JETSTREAM" => found.disabled = true,
            "STREAM" if fault.account == names::MESH => {
                if let Some((_, reason)) = fault.error.split_once("write error: ") {
                    found.frozen.insert(fault.stream, reason.chars().take(REASON).collect());
                } else if fault.error.contains("could not be recovered") {
                    found.refused.insert(fault.stream);
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_server_are_understood() {
        let body = br#"{"status":"error","errors":[
            {"type":"STREAM","account":"MESH","stream":"A","error":"JetStream stream 'MESH > A' write error: write /x/1.blk: file too large"},
            {"type":"STREAM","account":"MESH","stream":"B","error":"JetStream stream 'MESH > B' could not be recovered"}]}"#;
        let found = read(body);
        assert_eq!(found.frozen.get("A").map(String::as_str), Some("write /x/1.blk: file too large"));
        assert!(found.refused.contains("B") && !found.is_sound() && found.answered);

        let off = read(
            br#"{"status":"unavailable","errors":[{"type":"JETSTREAM","error":"JetStream not enabled"}]}"#,
        );
        assert!(off.disabled && !off.is_sound());
        assert!(read(br#"{"status":"ok"}"#).is_sound());
        assert!(!read(b"404 page not found").answered);
    }
}
