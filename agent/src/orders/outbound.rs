//! The sending end for one child: `hierarchy::link::Child`, the other way round.

use hierarchy::{
    ByLane, Lane, Path,
    link::{Child, ChildLimits, ChildMessage, ChildOutput, LaneHello, ParentMessage, Tick, resume},
};

use super::{Orders, OrdersError, book::Book};

/// Orders are few, and small; a frame must not hold up the receipts that go down beside it.
const FRAME_BYTES: usize = 64 * 1024;
const FRAMES: usize = 4;

/// The flow of orders to one child.
pub(super) struct Outbound {
    pub(super) machine: Child,
    /// Last place of each lane that was handed to the machine.
    offered: ByLane<u64>,
}

impl Outbound {
    pub(super) fn new(session: u64, now: Tick) -> Outbound {
        let limits = ChildLimits { frames: FRAMES, frame_bytes: FRAME_BYTES, ..ChildLimits::default() };
        Outbound { machine: Child::new(limits, session, now), offered: ByLane::default() }
    }

    /// The lane and place of the next order that the machine has room for.
    fn wants(&self, child: &Path, book: &Book) -> Option<(Lane, u64)> {
        Lane::ALL.into_iter().filter(|lane| self.machine.wants_more(*lane)).find_map(|lane| {
            let place = book.next(child, lane, self.offered[lane])?;
            Some((lane, place))
        })
    }
}

impl Orders {
    /// Everything that can be sent to this child now is.
    pub(super) async fn drive(&mut self, child: &Path) -> Result<(), OrdersError> {
        // Taken out while it is worked on, and put back.
        let Some(mut flow) = self.outbound.remove(child) else { return Ok(()) };
        let driven = self.drive_flow(child, &mut flow).await;
        self.outbound.insert(child.clone(), flow);
        driven
    }

    async fn drive_flow(&mut self, child: &Path, flow: &mut Outbound) -> Result<(), OrdersError> {
        loop {
            if let Some(output) = flow.machine.poll(self.clock.now()) {
                self.perform(child, flow, output).await?;
            } else if let Some((lane, place)) = flow.wants(child, &self.book) {
                let after = flow.offered[lane];
                flow.offered[lane] = place;
                self.book.offered(child, lane, place);
                // What is gone has expired, or was removed by hand.
                if let Some(parcel) = self.store.parcel(after, place).await? {
                    flow.machine.offer(lane, parcel);
                } else {
                    flow.offered[lane] = after;
                    self.book.forget(place);
                }
            } else {
                return Ok(());
            }
        }
    }

    async fn perform(
        &mut self,
        child: &Path,
        flow: &mut Outbound,
        output: ChildOutput,
    ) -> Result<(), OrdersError> {
        match output {
            ChildOutput::Greet { session } => {
                let (incarnation, last) = (self.store.notes.life, self.store.last());
                let lanes = ByLane::new(|_| LaneHello { incarnation, start: 0, last });
                let version = crate::VERSION.to_owned();
                self.tell(child, ChildMessage::Hello { session, lanes, version }, &[]).await;
            }
            ChildOutput::Send { session, lane, load, announce } => {
                let mut known = Vec::with_capacity(announce.len());
                for kid in announce {
                    if kid == self.parts.signer.kid() {
                        known.push(self.parts.signer.binding().clone());
                    } else if let Ok(Some(binding)) = self.parts.bindings.get(kid).await {
                        known.push(binding);
                    }
                }
                let (mut message, bodies) = load.message(session, lane, self.store.last());
                if let ChildMessage::Frame { bindings, .. } | ChildMessage::Piece { bindings, .. } =
                    &mut message
                {
                    *bindings = known;
                }
                self.tell(child, message, &bodies).await;
            }
            ChildOutput::Resume { lane, after, digest } => {
                let last = self.store.last();
                let at_cursor = match digest {
                    Some(_) => self.store.parcel(0, after).await?.map(|parcel| parcel.digest),
                    None => None,
                };
                let at_cursor = at_cursor.or(flow.machine.settled_at(lane, after));
                let first = self.book.next(child, lane, 0).unwrap_or(last + 1);
                // What the child has may still lie here; where places are the same ones it is passed over.
                let first = if at_cursor.is_some() && at_cursor == digest { first.min(after) } else { first };
                let held = resume::Held { first, last, at_cursor };
                match resume::decide(held, after, digest) {
                    resume::Resume::After => {
                        flow.offered[lane] = after;
                        let done = self.book.arrived(child, lane, after);
                        self.store.remove(done).await;
                    }
                    resume::Resume::Anew { .. } => {
                        tracing::warn!(%child, %lane, child_has = after,
                            "the orders here are not those that the child knows; all of them are offered again");
                        self.store.begin_anew().await?;
                        flow.machine.on_stranger(self.clock.now());
                    }
                }
            }
            ChildOutput::Release { lane, up_to, refused, .. } => {
                for parcel in refused {
                    tracing::warn!(%child, %lane, place = parcel.last, reason = %parcel.reason,
                        "the child refuses an order");
                }
                let done = self.book.arrived(child, lane, up_to);
                self.store.remove(done).await;
            }
            ChildOutput::Pause => tracing::debug!(%child, "orders wait for the child"),
        }
        Ok(())
    }

    /// A child's answer in the flow of orders.
    pub(super) fn on_child(&mut self, child: &Path, answer: &ParentMessage) {
        let now = self.clock.now();
        if let Some(flow) = self.outbound.get_mut(child) {
            flow.machine.on_message(answer, now);
        }
    }
}
