//! The line between a child's server and its parent's, which a test can cut: nothing passes any more, and
//! nobody is told.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// A line that passes on what either end says, until it is dropped.
#[derive(Debug)]
pub struct Wire {
    whole: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Wire {
    /// Lays a line to `target`; where it begins.
    pub fn lay(target: SocketAddr) -> (Wire, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        listener.set_nonblocking(true).expect("it is a socket");
        let address = listener.local_addr().expect("it listens");
        let listener = TcpListener::from_std(listener).expect("there is a runtime");
        let (whole, watched) = watch::channel(true);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, target, watched));
        (Wire { whole, _task: task }, address)
    }

    /// Puts a line between the agent of this configuration and its parent; none at global.
    pub fn into(config: &mut String) -> Option<Wire> {
        let line = config.lines().find(|line| line.starts_with("addresses = "))?.to_owned();
        let target = line.split('"').nth(1)?.parse().ok()?;
        let (wire, begin) = Wire::lay(target);
        *config = config.replace(&line, &format!("addresses = [\"{begin}\"]"));
        Some(wire)
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// What was held back passes, and whatever comes.
    pub fn heal(&self) {
        self.whole.send_replace(true);
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, whole: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let whole = whole.clone();
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let ((near_out, near_in), (far_out, far_in)) = (near.into_split(), far.into_split());
            // One direction that ends takes the other one with it.
            tokio::select! {
                () = pass(near_out, far_in, whole.clone()) => {}
                () = pass(far_out, near_in, whole) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if whole.wait_for(|whole| *whole).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
