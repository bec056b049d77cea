//! The server's log, line by line, in the agent's own.
//!
//! The server writes to a file and not into a pipe of the agent's: should the agent be killed, the
//! server must live on, and a Go program dies of the first line it writes into a pipe without a reader.

use std::{
    collections::HashMap,
    io::SeekFrom,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::sync::CancellationToken;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_millis(200);
/// Most bytes read at one look; a server that writes more is not worth reading in full.
const AT_ONCE: u64 = 256 * 1024;

/// A meaning is not said again before this has passed.
const QUIET_FOR: Duration = Duration::from_secs(30);

/// Repeats what the server writes until cancelled.
pub(super) async fn run(path: PathBuf, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
    let mut offset = tokio::fs::metadata(&path).await.map_or(0, |meta| meta.len());
    let mut said = HashMap::new();
    let mut timer = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        if let Ok(text) = read_new(&path, &mut offset).await {
            text.lines().for_each(|line| repeat(line, &mut said));
        }
    }
}

/// The whole lines written since the last look.
async fn read_new(path: &PathBuf, offset: &mut u64) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    if length < *offset {
        // The server began a new file.
        *offset = 0;
    }
    if length == *offset {
        return Ok(String::new());
    }
    file.seek(SeekFrom::Start(*offset)).await?;
    let mut bytes = Vec::new();
    file.take(AT_ONCE).read_to_end(&mut bytes).await?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    // A line longer than a look would never end.
    let taken = if whole == 0 && bytes.len() as u64 == AT_ONCE { bytes.len() } else { whole };
    *offset += taken as u64;
    Ok(String::from_utf8_lossy(&bytes[..taken]).into_owned())
}

/// One line of the server, at its own level; what needs people to act is said in their words, and not
/// once a second.
fn repeat(line: &str, said: &mut HashMap<&'static str, Instant>) {
    let line = line.trim();
    if let Some(meaning) = meaning(line) {
        let fresh = said.get(meaning).is_none_or(|at| at.elapsed() > QUIET_FOR);
        if fresh {
            said.insert(meaning, Instant::now());
            tracing::error!(target: "nats_server", server_says = line, "{meaning}");
            return;
        }
    }
    if line.contains("[ERR]") || line.contains("[FTL]") {
        tracing::debug!(target: "nats_server", "{line}");
    } else if line.contains("[WRN]") && !line.contains("Plaintext passwords") {
        tracing::info!(target: "nats_server", "{line}");
    } else {
        tracing::debug!(target: "nats_server", "{line}");
    }
}

/// What a line means where somebody has to act. The texts are those of 2.9 to 2.14; `lid:` marks leaf
/// connections.
fn meaning(line: &str) -> Option<&'static str> {
    let has = |text: &str| line.contains(text);
    if !has("lid:") {
        return has("Error trying to connect as leafnode")
            .then_some("the parent cannot be reached; check parent.addresses and the network");
    }
    match () {
        () if has("Leafnode Error 'Authorization Violation'") => Some(
            "the parent refuses this agent's identity: it is not among the parent's leaf.children, or the certificate names another path",
        ),
        () if has("authentication error") => {
            Some("a child is refused: its certificate names no path in leaf.children")
        }
        () if has("certificate has expired") => Some(
            "a leaf link is refused: the other side's certificate does not hold now; renew its identity, or set the clock of this machine",
        ),
        () if has("handshake error") && has("unknown authority") => Some(
            "a leaf link is refused: the other side's certificate does not chain to this agent's trust bundle",
        ),
        () if has("failed to verify client certificate") => {
            Some("a child is refused: its certificate does not chain to this agent's trust bundle")
        }
        () if has("remote error: tls: bad certificate") => {
            Some("a leaf link is refused: the other side does not accept this agent's certificate")
        }
        () if has("certificate is valid for") => Some(
            "the parent's certificate does not carry the name in parent.addresses; dial a name that it carries",
        ),
        () if has("didn't provide a certificate") => {
            Some("a leaf link is refused: it came without a certificate")
        }
        () if has("Publish Violation") || has("Subscription Violation") => {
            Some("a leaf link was used to speak or listen on another's subject; it is refused")
        }
        () if has("Duplicate Remote LeafNode Connection") => Some(
            "a child's link was replaced by one that claims the same server name; where it happens again and again, another child claims to be it",
        ),
        () if has("connection closed: Read Error") => Some(
            "the other side closed a leaf link; where it happens again and again, its log says why (often a certificate that it does not trust)",
        ),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_identities_are_said_in_words_on_both_sides() {
        for (line, word) in [
            (
                "[7] [ERR] 127.0.0.1:42 - lid:5 - Leafnode Error 'Authorization Violation'",
                "parent refuses this agent",
            ),
            ("[7] [ERR] 127.0.0.1:42 - lid:5 - authentication error - User \"\"", "a child is refused"),
            (
                "[7] [ERR] 127.0.0.1:42 - lid:5 - TLS leafnode handshake error: tls: failed to verify certificate: x509: certificate signed by unknown authority",
                "trust bundle",
            ),
        ] {
            assert!(meaning(line).is_some_and(|meaning| meaning.contains(word)), "{line}");
        }
        assert_eq!(meaning("[7] [INF] Server is ready"), None);
    }
}
