//! A leaf connection as a child's nats-server has it: the leaf protocol over mutual TLS, without the server.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::dev::identities::IssuedSvid;

/// What a connection needs to be let in.
pub(super) fn tls(svid: &IssuedSvid) -> Result<Arc<ClientConfig>, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| failed(&e))
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(&svid.bundle)? {
        roots.add(authority).map_err(|e| failed(&e))?;
    }
    let key = PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).map_err(|e| failed(&e))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&svid.cert)?, key)
        .map_err(|e| failed(&e))?;
    Ok(Arc::new(config))
}

/// A message of the parent.
pub(super) struct Message {
    pub(super) headers: Bytes,
    pub(super) payload: Bytes,
}

/// A leaf connection to a parent's server.
pub(super) struct Leaf {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
}

impl Leaf {
    /// Connects, claims to be the server `name`, and asks for the messages on `subject`.
    pub(super) async fn connect(
        parent: SocketAddr,
        tls: Arc<ClientConfig>,
        name: &str,
        subject: &str,
    ) -> io::Result<Leaf> {
        let mut tcp = TcpStream::connect(parent).await?;
        tcp.set_nodelay(true)?;
        // The server greets in plain text where the handshake does not come first.
        while tcp.read_u8().await? != b'\n' {}
        let stream = TlsConnector::from(tls).connect(ServerName::IpAddress(parent.ip().into()), tcp).await?;
        let mut leaf = Leaf { stream, input: BytesMut::new() };
        let connect = serde_json::json!({
            "version": "2.14.5", "name": name, "server_id": name, "cluster": name, "domain": name,
            "headers": true, "protocol": 1, "remote_account": "UP",
        });
        leaf.send(format!("CONNECT {connect}\r\nLS+ {subject}\r\nPING\r\n").as_bytes()).await?;
        Ok(leaf)
    }

    /// Publishes into the parent's server; `headers` as NATS writes them, or nothing.
    pub(super) async fn publish(&mut self, subject: &str, headers: &str, payload: &[u8]) -> io::Result<()> {
        let head = match headers.len() {
            0 => format!("LMSG {subject} {}\r\n", payload.len()),
            length => format!("HMSG {subject} {length} {}\r\n{headers}", length + payload.len()),
        };
        self.send(&[head.as_bytes(), payload, b"\r\n"].concat()).await
    }

    /// The next message. What was read of it is kept where this is dropped half-way.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        loop {
            while let Some((line, message)) = take(&mut self.input)? {
                match message {
                    Some(message) => return Ok(message),
                    None if line.starts_with("PING") => self.send(b"PONG\r\n").await?,
                    None if line.starts_with("-ERR") => return Err(io::Error::other(line)),
                    None => {}
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}

/// The next line, and the message behind it; `None` until all of it is there.
fn take(input: &mut BytesMut) -> io::Result<Option<(String, Option<Message>)>> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&input[..end]).into_owned();
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| word.parse::<usize>().map_err(|_| io::Error::other(line.clone()));
    let sizes = match words[..] {
        ["LMSG", _, .., size] => Some((0, number(size)?)),
        ["HMSG", _, .., headers, size] => Some((number(headers)?, number(size)?)),
        _ => None,
    };
    let Some((headers, size)) = sizes else {
        let _ = input.split_to(end + 2);
        return Ok(Some((line, None)));
    };
    if input.len() < end + 2 + size + 2 {
        return Ok(None);
    }
    let _ = input.split_to(end + 2);
    let headers_and_payload = input.split_to(size).freeze();
    let _ = input.split_to(2);
    let message = Message {
        headers: headers_and_payload.slice(..headers),
        payload: headers_and_payload.slice(headers..),
    };
    Ok(Some((line, Some(message))))
}
