//! Numbered events as fast as a level's store takes them.

use std::ops::RangeInclusive;

use async_nats::{Client, jetstream};
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use hierarchy::{Lane, Path, subject::Speaker};
use serde::{Deserialize, Serialize};

use crate::{door, observer::Seen, random::Random};

/// The tail of their subject.
const TAIL: &str = "burst";
/// Events that wait for the store's word.
const UNACKED: usize = 64;

#[derive(Serialize, Deserialize)]
struct Body {
    number: u64,
    padding: String,
}

/// Publishes events with these numbers and about so many bytes each in a lane, as an application of the agent
/// at `at`, and waits until the stream HIERARCHY has them all.
pub async fn publish(client: &Client, at: &Path, lane: Lane, numbers: RangeInclusive<u64>, bytes: usize) {
    let js = jetstream::new(client.clone());
    let subject = Speaker::of(at).with_tail(TAIL);
    let mut unacked = FuturesOrdered::new();
    for number in numbers {
        let body = Body { number, padding: padding(number, bytes) };
        let body = serde_json::to_vec(&body).expect("it is JSON");
        let sent = js.publish_with_headers(subject.clone(), door::in_lane(lane), body.into()).await;
        unacked.push_back(sent.expect("the level's server is there").into_future());
        if unacked.len() >= UNACKED {
            taken(unacked.next().await);
        }
    }
    while !unacked.is_empty() {
        taken(unacked.next().await);
    }
}

/// Text that does not become smaller where links compress.
fn padding(number: u64, bytes: usize) -> String {
    let mut random = Random::of(number);
    let letter = |_| char::from(b'#' + (random.number() % 57) as u8);
    (0..bytes).map(letter).collect()
}

fn taken<E: std::fmt::Display>(word: Option<Result<jetstream::publish::PublishAck, E>>) {
    if let Some(Err(error)) = word {
        panic!("the store of the level does not take an event: {error}");
    }
}

/// The numbers of those that have arrived from this origin in this lane, in the order in which they did.
pub fn arrived(seen: &Seen, origin: &str, lane: Lane) -> Vec<u64> {
    let events =
        seen.of(origin).into_iter().filter(|event| event.lane == lane && event.subject.ends_with(TAIL));
    events.map(|event| serde_json::from_slice::<Body>(&event.data).expect("it is a body").number).collect()
}
