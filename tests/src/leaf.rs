//! A raw speaker of nats-server's leaf protocol over mutual TLS: what a child that has gone bad could put in the
//! place of its nats-server.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use agent::dev::identities::IssuedSvid;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::json;

/// One look for input; nothing there within it is no error.
const LOOK: Duration = Duration::from_millis(50);
/// How long handshake and greeting may take.
const GREETING: Duration = Duration::from_secs(10);

/// A leaf connection to a parent's server.
pub struct Leaf {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    line: Vec<u8>,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A message, with its subject.
    Message(String, Vec<u8>),
    /// That it wants messages on this subject.
    Interest(String),
    /// Why it will close the connection.
    Error(String),
    /// Anything else.
    Other(String),
    /// It has closed the connection.
    Closed,
}

impl Leaf {
    /// Connects under this certificate, trusting `bundle`, and claims to be the server `name`.
    pub fn connect(parent: SocketAddr, svid: &IssuedSvid, bundle: &str, name: &str) -> io::Result<Leaf> {
        let mut tcp = TcpStream::connect(parent)?;
        tcp.set_read_timeout(Some(GREETING))?;
        // The server greets in plain text where the handshake does not come first.
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"\r\n") {
            let mut byte = [0];
            tcp.read_exact(&mut byte)?;
            greeting.push(byte[0]);
        }
        let connection =
            ClientConnection::new(Arc::new(tls(svid, bundle)), ServerName::IpAddress(parent.ip().into()));
        let mut stream = StreamOwned::new(connection.map_err(io::Error::other)?, tcp);
        stream.flush()?;
        stream.sock.set_read_timeout(Some(LOOK))?;
        let mut leaf = Leaf { stream: BufReader::new(stream), line: Vec::new() };
        // As the agents' own servers write it: each is a cluster of its own and binds its account UP.
        let connect = json!({
            "version": "2.14.5",
            "name": name,
            "server_id": name,
            "cluster": name,
            "domain": name,
            "headers": true,
            "protocol": 1,
            "remote_account": "UP",
        });
        leaf.send(format!("CONNECT {connect}\r\nPING\r\n").as_bytes())?;
        Ok(leaf)
    }

    /// Publishes a message into the parent's server.
    pub fn publish(&mut self, subject: &str, data: &[u8]) -> io::Result<()> {
        let head = format!("LMSG {subject} {}\r\n", data.len());
        self.send(&[head.as_bytes(), data, b"\r\n"].concat())
    }

    /// Asks for the messages on a subject.
    pub fn subscribe(&mut self, subject: &str) -> io::Result<()> {
        self.send(format!("LS+ {subject}\r\nPING\r\n").as_bytes())
    }

    /// What the server says next within `patience`; `None` where it is silent. Its pings are answered.
    pub fn next(&mut self, patience: Duration) -> Option<Said> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => return Some(Said::Closed),
                Ok(_) if !self.line.ends_with(b"\n") => {}
                Ok(_) => {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
                    match self.understand(line) {
                        Said::Other(line) if line == "PING" => drop(self.send(b"PONG\r\n")),
                        said => return Some(said),
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(_) => return Some(Said::Closed),
            }
        }
        None
    }

    /// Everything that the server says within `patience`, up to its closing the connection.
    pub fn listen(&mut self, patience: Duration) -> Vec<Said> {
        let deadline = Instant::now() + patience;
        let mut all = Vec::new();
        while let Some(said) = self.next(deadline.saturating_duration_since(Instant::now())) {
            all.push(said);
            if all.last() == Some(&Said::Closed) {
                break;
            }
        }
        all
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    fn understand(&mut self, line: String) -> Said {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["LS+", subject, ..] => Said::Interest(subject.to_owned()),
            ["-ERR", ..] => Said::Error(line),
            // With a reply subject there is one word more, with headers (HMSG) one size more: the total stands last.
            ["LMSG" | "HMSG", subject, .., size] => match size.parse() {
                Ok(size) => Said::Message(subject.to_owned(), self.payload(size)),
                Err(_) => Said::Other(line),
            },
            _ => Said::Other(line),
        }
    }

    fn payload(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size + 2];
        let mut read = 0;
        while read < bytes.len() {
            match self.stream.read(&mut bytes[read..]) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(_) => break,
            }
        }
        bytes.truncate(size);
        bytes
    }
}

fn tls(svid: &IssuedSvid, bundle: &str) -> ClientConfig {
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(|cert| cert.expect("PEM")).collect()
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(bundle) {
        roots.add(authority).expect("an authority can be trusted");
    }
    let key = PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).expect("the key is PEM");
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&svid.cert), key)
        .expect("key and certificate belong together")
}
