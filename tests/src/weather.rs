//! Bad networks: a TCP proxy on loopback that stands between a child's nats-server and the leaf port of its
//! parent, and does to their bytes what a network would. The kernels that these tests run on have no netem,
//! so this is done in user space, on the stream and not on packets: what TCP makes of a lost packet is
//! modelled (everything behind it waits for the retransmission), its congestion window is not.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::random::Random;

/// What fits into one packet on an Ethernet. The kernel is told, too: on loopback it would take 64 KiB for a
/// packet, and buffer megabytes.
const SEGMENT: usize = 1448;
/// Buffers of the proxy's own sockets: a few packets, as at the foot of a slow line.
const BUFFER: u32 = 8 * 1024;
/// Bytes on their way in one direction: beyond it the sender waits, as for TCP's window.
const ON_THE_WAY: usize = 1 << 20;
/// What a lost packet costs: one to two round trips until it has been sent again.
const RETRANSMISSION: std::ops::Range<u64> = 600..1_200;

/// What the network is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    /// Everything passes at once.
    Fair,
    /// So many bits a second in each direction.
    Slow(u64),
    /// Each way takes `delay`; of a hundred packets `loss` are lost, and hold up what is behind them.
    Far {
        /// One way.
        delay: Duration,
        /// Percent.
        loss: u64,
    },
    /// Nothing passes, and nobody is told. Connections are taken, since the kernel does that.
    Silent {
        /// From the child to the parent.
        up: bool,
        /// From the parent to the child.
        down: bool,
    },
    /// Connections pass what the parent says first, and nothing after it.
    Mute,
    /// Connections are reset and new ones refused.
    Cut,
}

/// The proxy; it ends when it is dropped.
pub struct Proxy {
    /// Where the child finds its parent.
    pub address: SocketAddr,
    /// Where the parent is.
    pub parent: SocketAddr,
    weather: watch::Sender<Weather>,
    counted: Arc<Counted>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counted {
    connections: AtomicU64,
    /// Those that stand and have carried something up.
    standing: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl Proxy {
    /// Stands before `parent`, in fair weather.
    pub fn before(parent: SocketAddr, random: Random) -> Proxy {
        let address = agent::broker::claim("proxy", SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = address.expect("a port is free");
        let (weather, seen) = watch::channel(Weather::Fair);
        let counted = Arc::<Counted>::default();
        let mut task = JoinSet::new();
        task.spawn(serve(listen(address), address, parent, seen, counted.clone(), random));
        Proxy { address, parent, weather, counted, _task: task }
    }

    /// Stands before the parent that is named in this configuration of an agent, and names itself there.
    pub fn in_config(config: &mut String, random: Random) -> Proxy {
        let (head, addresses) =
            config.split_once("[parent]\naddresses = [\"").expect("the agent has a parent");
        let (parent, rest) = addresses.split_once('"').expect("the address is a text");
        let proxy = Proxy::before(parent.parse().expect("tests name parents by address"), random);
        *config = format!("{head}[parent]\naddresses = [\"{}\"{rest}", proxy.address);
        proxy
    }

    /// Changes the weather, for what is under way, too.
    pub fn set(&self, weather: Weather) {
        println!("the weather: {weather:?}");
        self.weather.send_replace(weather);
    }

    /// How many connections children have made.
    pub fn connections(&self) -> u64 {
        self.counted.connections.load(Ordering::Relaxed)
    }

    /// Whether a connection stands over which a child has said something.
    pub fn carries(&self) -> bool {
        self.counted.standing.load(Ordering::Relaxed) > 0
    }

    /// Bytes that went up and down.
    pub fn bytes(&self) -> (u64, u64) {
        (self.counted.up.load(Ordering::Relaxed), self.counted.down.load(Ordering::Relaxed))
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("sockets can be made");
    socket.set_reuseaddr(true).expect("addresses can be used again");
    small(&socket);
    socket.bind(address).expect("the port is the proxy's");
    socket.listen(64).expect("the port can be listened on")
}

/// Before the connection is made, so that both sides keep to it.
fn small(socket: &TcpSocket) {
    socket.set_recv_buffer_size(BUFFER).expect("buffers can be small");
    socket.set_send_buffer_size(BUFFER).expect("buffers can be small");
    setsockopt(socket, sockopt::TcpMaxSeg, &(SEGMENT as u32)).expect("packets can be small");
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    parent: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    counted: Arc<Counted>,
    mut random: Random,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let now = *weather.borrow_and_update();
        match (now, listener.is_some()) {
            (Weather::Cut, true) => {
                listener = None;
                // Dropped with their linger at zero they are reset.
                connections.shutdown().await;
            }
            (Weather::Cut, false) => {}
            (_, false) => listener = Some(listen(address)),
            (_, true) => {}
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = accepted => {
                if let Ok((child, _)) = accepted {
                    counted.connections.fetch_add(1, Ordering::Relaxed);
                    let seeds = [random.number(), random.number()];
                    connections.spawn(connection(child, parent, weather.clone(), counted.clone(), seeds));
                }
            }
        }
    }
}

async fn connection(
    child: TcpStream,
    parent: SocketAddr,
    weather: watch::Receiver<Weather>,
    counted: Arc<Counted>,
    [up, down]: [u64; 2],
) {
    let socket = TcpSocket::new_v4().expect("sockets can be made");
    small(&socket);
    let Ok(parent) = socket.connect(parent).await else { return };
    for stream in [&child, &parent] {
        // Nothing is said after the last byte but that the connection is gone.
        let _ = stream.set_zero_linger();
        let _ = stream.set_nodelay(true);
    }
    let upwards =
        Pump { weather: weather.clone(), is_up: true, random: Random::of(up), counted: counted.clone() };
    let downwards = Pump { weather, is_up: false, random: Random::of(down), counted };
    // Where one side has closed, the other is told by the end of both.
    tokio::select! {
        () = upwards.run(&child, &parent) => {}
        () = downwards.run(&parent, &child) => {}
    }
}

/// A connection that has carried something up, while it stands.
struct Standing(Arc<Counted>);

impl Standing {
    fn new(counted: &Arc<Counted>) -> Standing {
        counted.standing.fetch_add(1, Ordering::Relaxed);
        Standing(counted.clone())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.standing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One direction of one connection.
struct Pump {
    weather: watch::Receiver<Weather>,
    is_up: bool,
    random: Random,
    counted: Arc<Counted>,
}

impl Pump {
    /// Until one of the two sides is gone and the network lets that be known.
    async fn run(mut self, from: &TcpStream, to: &TcpStream) {
        let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut bytes = 0;
        // When the line is free for the next packet, and when the newest arrives.
        let (mut free, mut newest) = (Instant::now(), Instant::now());
        let mut said = false;
        let mut standing = None;
        let mut ended = false;
        loop {
            let weather = *self.weather.borrow_and_update();
            let passes = self.passes(weather, said);
            if ended && on_the_way.is_empty() && passes {
                return;
            }
            let due = on_the_way.front().map(|(at, _)| *at);
            tokio::select! {
                changed = self.weather.changed() => if changed.is_err() { return },
                () = agent::clock::sleep_until(due), if passes && due.is_some() => {
                    let Some((_, segment)) = on_the_way.pop_front() else { continue };
                    bytes -= segment.len();
                    if !write(to, &segment).await {
                        // That, too, would have to come back the other way.
                        let comes_back = |weather: &Weather| match *weather {
                            Weather::Silent { up, down } => !(if self.is_up { down } else { up }),
                            _ => true,
                        };
                        let _ = self.weather.wait_for(comes_back).await;
                        return;
                    }
                    said = true;
                    if self.is_up && standing.is_none() {
                        standing = Some(Standing::new(&self.counted));
                    }
                    let counted = if self.is_up { &self.counted.up } else { &self.counted.down };
                    counted.fetch_add(segment.len() as u64, Ordering::Relaxed);
                }
                read = read(from, free), if passes && !ended && bytes < ON_THE_WAY => {
                    let Some(segment) = read else { ended = true; continue };
                    let now = Instant::now();
                    let at = match weather {
                        Weather::Slow(bits) => {
                            free = free.max(now) + Duration::from_secs_f64(segment.len() as f64 * 8.0 / bits as f64);
                            free
                        }
                        Weather::Far { delay, loss } => {
                            let lost = self.random.number() % 100 < loss;
                            now + delay + if lost { self.random.millis(RETRANSMISSION) } else { Duration::ZERO }
                        }
                        _ => now,
                    };
                    newest = newest.max(at);
                    bytes += segment.len();
                    on_the_way.push_back((newest, segment));
                }
            }
        }
    }

    fn passes(&self, weather: Weather, said: bool) -> bool {
        match weather {
            Weather::Fair | Weather::Slow(_) | Weather::Far { .. } => true,
            Weather::Silent { up, down } => !(if self.is_up { up } else { down }),
            Weather::Mute => !self.is_up && !said,
            Weather::Cut => false,
        }
    }
}

/// The next packet, no sooner than the line is free; `None` where there will be no more. Cancel-safe.
async fn read(from: &TcpStream, free: Instant) -> Option<Vec<u8>> {
    sleep_until(free).await;
    let mut segment = vec![0; SEGMENT];
    loop {
        from.readable().await.ok()?;
        match from.try_read(&mut segment) {
            Ok(0) => return None,
            Ok(read) => {
                segment.truncate(read);
                return Some(segment);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// False where nobody reads any more.
async fn write(to: &TcpStream, mut segment: &[u8]) -> bool {
    while !segment.is_empty() {
        if to.writable().await.is_err() {
            return false;
        }
        match to.try_write(segment) {
            Ok(written) => segment = &segment[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;

    async fn pair() -> (Proxy, TcpStream, TcpStream) {
        let parent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let proxy = Proxy::before(parent.local_addr().expect("it listens"), Random::of(7));
        let child = TcpStream::connect(proxy.address).await.expect("the proxy listens");
        let (parent, _) = parent.accept().await.expect("the proxy connects");
        (proxy, child, parent)
    }

    async fn pass(child: &mut TcpStream, parent: &mut TcpStream, bytes: usize) -> Duration {
        let began = Instant::now();
        let sent = vec![7; bytes];
        let mut got = vec![0; bytes];
        let (written, read) = tokio::join!(child.write_all(&sent), parent.read_exact(&mut got));
        written.expect("it is taken");
        read.expect("it arrives");
        began.elapsed()
    }

    #[tokio::test]
    async fn each_kind_of_weather_is_what_it_says() {
        let (proxy, mut child, mut parent) = pair().await;
        assert!(pass(&mut child, &mut parent, 100_000).await < Duration::from_millis(500));

        proxy.set(Weather::Slow(400_000));
        let took = pass(&mut child, &mut parent, 50_000).await;
        assert!((900..1_500).contains(&took.as_millis()), "50 kB at 50 kB/s took {took:?}");

        proxy.set(Weather::Far { delay: Duration::from_millis(300), loss: 0 });
        let took = pass(&mut child, &mut parent, 1).await;
        assert!((300..450).contains(&took.as_millis()), "one way took {took:?}");

        proxy.set(Weather::Silent { up: true, down: false });
        assert!(timeout(Duration::from_millis(300), pass(&mut child, &mut parent, 1)).await.is_err());
        pass(&mut parent, &mut child, 1).await;
        proxy.set(Weather::Fair);
        let mut held = [0];
        parent.read_exact(&mut held).await.expect("what was held up goes on");

        proxy.set(Weather::Cut);
        assert!(child.read(&mut [0]).await.is_err(), "connections are reset");
        assert!(TcpStream::connect(proxy.address).await.is_err(), "new ones are refused");
    }
}
