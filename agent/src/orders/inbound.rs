//! The receiving end: `hierarchy::link::Parent`, the other way round. An order is stored where it is for, and
//! for those below; only then does the parent hear that it has arrived.

use bytes::Bytes;
use hierarchy::{
    Lane, Refusal,
    link::{
        ChildMessage, Origins, ParcelHead, Parent, ParentMessage, ParentOutput, Record, Verdict, message::cut,
    },
    order::{Fate, Order},
    signing::{Binding, Timeliness, Verified},
};

use super::{
    Orders, OrdersError,
    book::{Kept, Waits},
    store::Entry,
};
use crate::{dead_letters::DeadLetter, link::downlink::STORED_FOR};

/// The flow of orders from the parent.
pub(super) struct Inbound {
    pub(super) machine: Parent,
    /// Orders that are known, those on their way into the store included.
    pub(super) origins: Origins,
}

/// An order that was verified, with its envelope.
struct Judged<'a> {
    verified: Verified<'a>,
    order: Order,
}

impl Orders {
    /// The parent's part in the flow of orders.
    pub(super) async fn on_parent(&mut self, said: ChildMessage, rest: Bytes) -> Result<(), OrdersError> {
        match said {
            ChildMessage::Hello { session, lanes, .. } => self.inbound.machine.on_hello(session, lanes),
            ChildMessage::Frame { session, lane, bindings, parcels, .. } => {
                let Some(bodies) = cut(&parcels, rest) else { return Ok(()) };
                self.learn(&bindings).await?;
                self.on_frame(session, lane, &parcels, &bodies).await?;
            }
            ChildMessage::Piece { session, lane, bindings, parcel, offset, .. } => {
                self.learn(&bindings).await?;
                match self.inbound.machine.on_piece(session, lane, &parcel, offset, &rest, true) {
                    Ok(None) => {}
                    Ok(Some(whole)) => self.on_frame(session, lane, &[parcel], &[whole]).await?,
                    Err(_) => self.answer_parent(ParentMessage::Reset { session }),
                }
            }
            // Not a part of this flow.
            _ => return Ok(()),
        }
        for reply in self.inbound.machine.take_replies(self.parts.time.now(), crate::VERSION) {
            self.answer_parent(reply);
        }
        Ok(())
    }

    /// Keeps the bindings of orders' authors, so that they can be handed on with the orders.
    async fn learn(&mut self, bindings: &[Binding]) -> Result<(), OrdersError> {
        for binding in bindings {
            match self.parts.verifier.learn(binding) {
                Ok(kid) => {
                    self.parts.bindings.keep(kid, binding).await.map_err(OrdersError::store("written"))?
                }
                Err(refusal) => tracing::warn!(%refusal, "the key binding of an order's author is refused"),
            }
        }
        Ok(())
    }

    async fn on_frame(
        &mut self,
        session: u64,
        lane: Lane,
        parcels: &[ParcelHead],
        bodies: &[Bytes],
    ) -> Result<(), OrdersError> {
        let judged: Vec<_> =
            parcels.iter().zip(bodies).map(|(head, bytes)| self.judge(lane, head, bytes)).collect();
        if judged.iter().any(|judged| matches!(judged, Err(Refusal::UnknownKid))) {
            self.answer_parent(ParentMessage::Reset { session });
            return Ok(());
        }
        let verdict = |judged: &Result<Judged<'_>, Refusal>| match judged {
            Ok(Judged { order, .. }) => Verdict::Sound { origin: order.author.clone(), span: order.span },
            Err(refusal) => Verdict::Refused(*refusal),
        };
        let verdicts: Vec<_> = judged.iter().map(verdict).collect();
        let Inbound { machine, origins } = &mut self.inbound;
        let outputs = machine.on_frame(session, lane, parcels, &verdicts, origins);
        let mut stored = false;
        for output in outputs {
            match output {
                ParentOutput::Store { index, record } => {
                    let Ok(judged) = &judged[index] else { continue };
                    stored = true;
                    self.take(judged, lane, record, &bodies[index]).await?;
                    self.inbound.machine.on_stored(lane, record.last);
                    self.inbound.origins.settled(&judged.order.author, lane, judged.order.span);
                }
                ParentOutput::Bury { index, reason } => self.parts.dead_letters.bury(DeadLetter {
                    origin: self.parts.path.parent().unwrap_or_default(),
                    reason,
                    detail: "an order".into(),
                    subject: "orders".into(),
                    bytes: bodies[index].clone(),
                }),
                ParentOutput::Reset { session } => self.answer_parent(ParentMessage::Reset { session }),
                ParentOutput::Gap { .. } => {}
            }
        }
        if stored {
            self.note().await?;
        }
        Ok(())
    }

    /// Everything that must hold before an order is carried out or handed on.
    fn judge<'a>(&self, lane: Lane, head: &ParcelHead, bytes: &'a Bytes) -> Result<Judged<'a>, Refusal> {
        let verified =
            self.parts.verifier.verify(bytes, self.parts.time.now(), Timeliness::Stored(STORED_FOR))?;
        let author = verified.envelope.identity();
        if verified.digest != head.digest {
            return Err(Refusal::BadSignature);
        }
        if author.trust_domain != self.parts.signer.identity().trust_domain {
            return Err(Refusal::IdentityMismatch);
        }
        let order = Order::read(&verified.envelope)?;
        if order.author == self.parts.path || !order.target.concerns(&self.parts.path) {
            return Err(Refusal::WrongSubject);
        }
        if verified.envelope.priority() != lane {
            return Err(Refusal::BadPayload);
        }
        Ok(Judged { verified, order })
    }

    /// Stores an order for those below, and here where it is for this agent; one whose time is up is only
    /// noted as such. What carries the record comes last, since it is what a restart counts by.
    async fn take(
        &mut self,
        judged: &Judged<'_>,
        lane: Lane,
        record: Record,
        bytes: &Bytes,
    ) -> Result<(), OrdersError> {
        let Judged { verified, order } = judged;
        let kept = |waits| Kept {
            id: verified.envelope.message_id(),
            author: order.author.clone(),
            subject: order.said.subject.clone(),
            lane,
            expires: order.expires,
            waits,
        };
        if order.expires < self.parts.time.now() {
            self.report(&kept(Waits::Here), Fate::Expired, None).await;
            return Ok(());
        }
        let copies = self.copies(&order.target);
        let last = copies.len().saturating_sub(1);
        for (index, waits) in copies.into_iter().enumerate() {
            let (bytes, headers) = match waits {
                Waits::Here => (order.said.data.clone(), super::headers_of(&order.said)),
                _ => (bytes.clone(), Vec::new()),
            };
            let entry = Entry {
                kept: kept(waits),
                digest: verified.digest,
                kid: verified.envelope.kid(),
                span: order.span,
                record: (index == last).then_some(record),
                headers,
                bytes,
                once: None,
            };
            self.keep(entry).await?;
        }
        Ok(())
    }
}
