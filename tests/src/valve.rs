//! A way to a server that can be shut for a while: what is sent meanwhile is not lost, it arrives late.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Open until it is shut. Dropped, it breaks all connections.
#[derive(Debug)]
pub struct Valve {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Valve {
    /// Puts one between the agent of this configuration and its parent; none at global.
    pub fn in_config(config: &mut String) -> Option<Valve> {
        let line = config.lines().find(|line| line.starts_with("addresses = "))?.to_owned();
        let parent = line.split('"').nth(1)?.parse().ok()?;
        let valve = Valve::before(parent, SocketAddr::from(([127, 0, 0, 1], 0)));
        *config = config.replace(&line, &format!("addresses = [\"{}\"]", valve.address));
        Some(valve)
    }

    /// Listens on `address`, where port 0 stands for a free one, and leads to `server`.
    pub fn before(server: SocketAddr, address: SocketAddr) -> Valve {
        let listener = std::net::TcpListener::bind(address).expect("the port is free");
        let address = listener.local_addr().expect("it listens");
        listener.set_nonblocking(true).expect("sockets can be made so");
        let listener = TcpListener::from_std(listener).expect("there is a runtime");
        let (open, is_open) = watch::channel(true);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(join(client, server, is_open.clone()));
            }
        });
        Valve { address, open, _task: task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds everything back, in both directions, until it is opened.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Lets everything through, first what was held back.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

async fn join(client: TcpStream, server: SocketAddr, is_open: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        _ = pass(from_client, to_server, is_open.clone()) => {}
        _ = pass(from_server, to_client, is_open) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_open: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || is_open.wait_for(|open| *open).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
