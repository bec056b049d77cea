//! Notices a server that runs and does not answer: stopped, or stuck. A server greets whoever connects
//! with one line; one that hangs still has its connections accepted, by the kernel, and stays silent.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncReadExt as _, net::TcpStream, time::Instant};

/// How often a server is asked for a sign of life.
const EVERY: Duration = Duration::from_millis(700);
/// How long it may take to greet. With [`MISSES`] it is known to hang within 6 seconds.
const GREETS_WITHIN: Duration = Duration::from_millis(1_000);
/// So many greetings must be missing in a row: a busy machine is slow now and then.
const MISSES: u32 = 3;

#[derive(Debug, PartialEq, Eq)]
enum Sign {
    Greeted,
    /// Nobody listens: it is starting, or gone, which others notice.
    Nobody,
    Silent,
}

/// Returns once the server that listens there hangs; how long it has been silent. Cancel-safe.
pub(super) async fn lost(server: SocketAddr) -> Duration {
    let (mut misses, mut since) = (0, Instant::now());
    loop {
        tokio::time::sleep(EVERY).await;
        match sign_of(server).await {
            Sign::Greeted | Sign::Nobody => (misses, since) = (0, Instant::now()),
            Sign::Silent => misses += 1,
        }
        if misses >= MISSES {
            return since.elapsed();
        }
    }
}

async fn sign_of(server: SocketAddr) -> Sign {
    let greeted = async {
        let Ok(mut stream) = TcpStream::connect(server).await else { return Sign::Nobody };
        let mut greeting = [0; 5];
        match stream.read_exact(&mut greeting).await {
            Ok(_) => Sign::Greeted,
            // It closed the connection: it lives, and refuses.
            Err(_) => Sign::Nobody,
        }
    };
    tokio::time::timeout(GREETS_WITHIN, greeted).await.unwrap_or(Sign::Silent)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_server_that_accepts_and_does_not_greet_is_silent() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(sign_of(silent.local_addr().unwrap()).await, Sign::Silent);
        let address = silent.local_addr().unwrap();
        drop(silent);
        assert_eq!(sign_of(address).await, Sign::Nobody);
    }

    #[tokio::test]
    async fn a_server_that_greets_is_alive() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let greets = async {
            let (mut stream, _) = server.accept().await.unwrap();
            stream.write_all(b"INFO {}\r\n").await.unwrap();
        };
        assert_eq!(tokio::join!(sign_of(address), greets).0, Sign::Greeted);
    }
}
