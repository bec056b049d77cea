//! The two ends of the link over lines that are slow, long or lossy, in simulated time: how much gets through, how
//! long alerts take, and how long the servers' pings would stand in the queue.
#![allow(clippy::unwrap_used)]

#[path = "link_simulation/random.rs"]
mod random;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use hierarchy::{
    ByLane, Digest, Lane, Millis, Path,
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, LaneHello, Origins, Parcel, Parent, ParentMessage,
        ParentOutput, Span, Tick, Verdict,
    },
};
use random::Random;

/// What the envelope of a link message takes on the line.
const ENVELOPE: usize = 900;
const CREDIT: ByLane<u64> = ByLane { critical: 4 << 20, normal: 4 << 20, bulk: 4 << 20 };

/// One direction.
struct Line<T> {
    bytes_a_second: f64,
    delay: Duration,
    loss_percent: u64,
    free: Tick,
    newest: Tick,
    on_the_way: VecDeque<(Tick, T)>,
    sent: usize,
}

impl<T> Line<T> {
    fn send(&mut self, message: T, bytes: usize, now: Tick, random: &mut Random) {
        self.sent += bytes;
        self.free = self.free.max(now) + Duration::from_secs_f64(bytes as f64 / self.bytes_a_second);
        let mut at = self.free + self.delay;
        if (0..bytes.div_ceil(1448)).any(|_| random.chance(self.loss_percent)) {
            at += Duration::from_millis(600 + random.below(600));
        }
        self.newest = self.newest.max(at);
        self.on_the_way.push_back((self.newest, message));
    }

    fn due(&mut self, now: Tick) -> Option<T> {
        self.on_the_way.pop_front_if(|(at, _)| *at <= now).map(|(_, message)| message)
    }

    /// How long something sent now would take.
    fn queue(&self, now: Tick) -> Duration {
        self.newest.max(self.free + self.delay).saturating_sub(now)
    }
}

struct World {
    now: Tick,
    random: Random,
    child: Child,
    parent: Parent,
    origins: Origins,
    up: Line<(ChildMessage, Vec<Bytes>)>,
    down: Line<ParentMessage>,
    /// Batches of each lane by size, and when each was made; the next to be read; what has arrived.
    store: ByLane<Vec<(usize, Tick)>>,
    read: ByLane<Option<usize>>,
    arrived: ByLane<Vec<Duration>>,
    longest_queue: Duration,
    greetings: usize,
}

impl World {
    fn new(bytes_a_second: f64, delay: Duration, loss_percent: u64) -> World {
        let mut parent = Parent::new(&ByLane::default());
        for (lane, credit) in CREDIT.iter() {
            parent.set_credit(lane, *credit);
        }
        World {
            now: Tick::ZERO,
            random: Random::new(7),
            child: Child::new(ChildLimits::default(), 1, Tick::ZERO),
            parent,
            origins: Origins::new(),
            up: line(bytes_a_second, delay, loss_percent),
            down: line(bytes_a_second, delay, loss_percent),
            store: ByLane::default(),
            read: ByLane::default(),
            arrived: ByLane::default(),
            longest_queue: Duration::ZERO,
            greetings: 0,
        }
    }

    fn publish(&mut self, lane: Lane, bytes: usize) {
        self.store[lane].push((bytes, self.now));
    }

    fn has_all(&self) -> bool {
        Lane::ALL.iter().all(|lane| self.arrived[*lane].len() == self.store[*lane].len())
    }

    /// A hundredth of a second.
    fn step(&mut self) {
        self.now += Duration::from_millis(10);
        while let Some(said) = self.down.due(self.now) {
            self.child.on_message(&said, self.now);
        }
        while let Some((said, bodies)) = self.up.due(self.now) {
            self.on_child(said, &bodies);
        }
        self.child_speaks();
        self.longest_queue = self.longest_queue.max(self.up.queue(self.now));
    }

    fn child_speaks(&mut self) {
        loop {
            for lane in Lane::ALL {
                while self.child.wants_more(lane)
                    && let Some(index) = self.read[lane]
                    && let Some((bytes, _)) = self.store[lane].get(index)
                {
                    let place = index as u64 + 1;
                    let (bytes, digest) = (Bytes::from(vec![0; *bytes]), Digest([place as u8; 32]));
                    let parcel =
                        Parcel { after: place - 1, last: place, bytes, digest, kid: Digest([1; 32]) };
                    self.child.offer(lane, parcel);
                    self.read[lane] = Some(index + 1);
                }
            }
            let Some(output) = self.child.poll(self.now) else { return };
            let (said, bodies) = match output {
                ChildOutput::Greet { session } => {
                    self.greetings += 1;
                    let lanes = ByLane::new(|_| LaneHello { incarnation: 1, start: 0, last: 0 });
                    (ChildMessage::Hello { session, lanes, version: String::new() }, Vec::new())
                }
                ChildOutput::Send { session, lane, load, .. } => load.message(session, lane, 0),
                ChildOutput::Resume { lane, after, .. } => {
                    self.read[lane] = Some(after as usize);
                    continue;
                }
                ChildOutput::Release { .. } => continue,
                ChildOutput::Pause => {
                    self.read = ByLane::default();
                    continue;
                }
            };
            let bytes = ENVELOPE + bodies.iter().map(Bytes::len).sum::<usize>();
            self.up.send((said, bodies), bytes, self.now, &mut self.random);
        }
    }

    fn on_child(&mut self, said: ChildMessage, bodies: &[Bytes]) {
        let (session, lane, heads) = match said {
            ChildMessage::Hello { session, lanes, .. } => {
                self.parent.on_hello(session, lanes);
                return self.answer();
            }
            ChildMessage::Frame { session, lane, parcels, .. } => (session, lane, parcels),
            ChildMessage::Piece { session, lane, parcel, offset, .. } => {
                match self.parent.on_piece(session, lane, &parcel, offset, &bodies[0], true) {
                    Ok(Some(_)) => (session, lane, vec![parcel]),
                    _ => return self.answer(),
                }
            }
            other => unreachable!("{other:?}"),
        };
        let origin: Path = "s1/c1/n1".parse().unwrap();
        let sound = |head: &hierarchy::link::ParcelHead| Verdict::Sound {
            origin: origin.clone(),
            span: Span { incarnation: 1, first: head.last, last: head.last },
        };
        let verdicts: Vec<_> = heads.iter().map(sound).collect();
        for output in self.parent.on_frame(session, lane, &heads, &verdicts, &mut self.origins) {
            if let ParentOutput::Store { record, .. } = output {
                let made = self.store[lane][record.last as usize - 1].1;
                self.arrived[lane].push(self.now - made);
                self.parent.on_stored(lane, record.last);
            }
        }
        self.answer();
    }

    fn answer(&mut self) {
        for reply in self.parent.take_replies(Millis(0), "") {
            self.down.send(reply, ENVELOPE, self.now, &mut self.random);
        }
    }
}

fn line<T>(bytes_a_second: f64, delay: Duration, loss_percent: u64) -> Line<T> {
    let (free, newest) = (Tick::ZERO, Tick::ZERO);
    Line { bytes_a_second, delay, loss_percent, free, newest, on_the_way: VecDeque::new(), sent: 0 }
}

#[test]
fn over_50_kbit_a_second_nothing_is_sent_twice_pings_get_through_and_alerts_pass_a_batch_of_40_seconds() {
    let mut world = World::new(6_250.0, Duration::from_millis(50), 0);
    world.publish(Lane::Bulk, 256 * 1024);
    for _ in 0..20 {
        world.publish(Lane::Normal, 3_000);
    }
    let published = 256 * 1024 + 20 * 3_000;
    for step in 1.. {
        if step % 500 == 0 && step < 5_000 {
            world.publish(Lane::Critical, 600);
        }
        world.step();
        if world.has_all() {
            break;
        }
    }
    let slowest = *world.arrived[Lane::Critical].iter().max().unwrap();
    let (sent, took) = (world.up.sent, world.now);
    println!(
        "{took:.1?}, {sent} bytes for {published}, queue {:.1?}, alert {slowest:.1?}",
        world.longest_queue
    );
    assert_eq!(world.greetings, 1);
    assert!(sent < published * 5 / 4 + 9 * 1_500, "{sent} bytes were sent for {published}");
    assert!(took < Duration::from_secs(70), "the line was idle: {took:?}");
    assert!(world.longest_queue < Duration::from_millis(3_500), "{:?}", world.longest_queue);
    assert!(slowest < Duration::from_secs(4), "an alert took {slowest:?}");
}

#[test]
fn over_600_ms_with_lost_packets_200_small_batches_a_second_are_sent() {
    let mut world = World::new(1e6, Duration::from_millis(300), 2);
    for step in 0..6_000 {
        (0..2).for_each(|_| world.publish(Lane::Normal, 1_300));
        world.step();
        if step % 1_000 == 0 {
            println!(
                "{:?}: window {} of {}",
                world.now,
                world.child.budget(),
                world.arrived[Lane::Normal].len()
            );
        }
    }
    let late = world.arrived[Lane::Normal].iter().skip(1_000).max().unwrap();
    let (made, arrived) = (world.store[Lane::Normal].len(), world.arrived[Lane::Normal].len());
    println!("{arrived} of {made}, {late:?} late at most, {} bytes sent", world.up.sent);
    assert_eq!(world.greetings, 1);
    assert!(made - arrived < 400, "{arrived} of {made}");
    assert!(world.up.sent < made * 1_300 * 3 / 2, "{} bytes", world.up.sent);
}

#[test]
fn what_was_under_way_when_a_connection_broke_is_sent_again_within_seconds_and_only_that() {
    let mut world = World::new(1e6, Duration::from_millis(20), 0);
    for _ in 0..400 {
        world.publish(Lane::Normal, 5_000);
    }
    while world.arrived[Lane::Normal].len() < 200 {
        world.step();
    }
    let (lost, broke) = (world.up.on_the_way.len(), world.now);
    world.up.on_the_way.clear();
    while !world.has_all() {
        world.step();
        assert!(world.now < broke + Duration::from_secs(6), "{} of 400", world.arrived[Lane::Normal].len());
    }
    println!("{lost} messages were lost; all were there {:?} later", world.now - broke);
    assert!(lost > 0);
    assert_eq!(world.greetings, 1);
    assert!(world.up.sent < 400 * 5_000 * 7 / 4, "{} bytes", world.up.sent);
}
