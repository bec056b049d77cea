//! The conversation with each child: its messages are opened and acted on, and answered.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use hierarchy::{
    ByLane, Lane, Path, Refusal,
    link::{ChildMessage, ParcelHead, Parent, ParentMessage, ParentOutput, Verdict, message::cut},
    signing::Binding,
    subject,
};

use super::{
    Downlink,
    exchange::{FromChild, WorkFromChild},
};
use crate::{
    dead_letters::DeadLetter,
    link::{header, wire},
    metrics::ChildLabel,
};

/// Bytes of batches that have come in part, of all children; beyond it no further batch is begun.
const MAX_BEGUN: usize = 256 << 20;
/// How long the pieces of a batch are kept while no more come.
const BEGUN_FOR: Duration = Duration::from_secs(60);
/// Most children of one parent.
pub(super) const MAX_CHILDREN: usize = 10_000;

impl Downlink {
    /// Handles one message; the child it came from.
    pub(super) async fn on_message(&mut self, message: Message) -> Option<Path> {
        let subject = message.subject.as_str();
        let Some(child) = subject::link_up_child(&self.parts.path, subject) else {
            self.refuse(&self.parts.path.clone(), Refusal::WrongSubject, "not a direct child", &message);
            return None;
        };
        if !self.children.contains_key(&child) {
            if self.children.len() >= MAX_CHILDREN {
                self.refuse(&child, Refusal::NotPermitted, "too many children", &message);
                return None;
            }
            let state = self.new_child(&child, Parent::new(&ByLane::default()));
            self.children.insert(child.clone(), state);
        }
        if let Err(refusal) = self.learn_peer(&child, &message).await {
            tracing::warn!(%child, %refusal, "a child's identity is refused");
            self.refuse(&child, refusal, "key binding", &message);
            return None;
        }
        let peer = self.parts.signer.identity().trust_domain.identity(child.clone());
        match wire::open::<ChildMessage>(
            &self.parts.verifier,
            &peer,
            subject,
            &message.payload,
            self.parts.time.now(),
        ) {
            Ok((said, rest)) => self.on_child(&child, said, rest, &message).await,
            Err(Refusal::UnknownKid) => {
                // This agent was restarted, or has forgotten the key: let the child greet and show it.
                self.send(&child, &ParentMessage::Reset { session: 0 }, None).await;
            }
            Err(refusal) => self.refuse(&child, refusal, "link message", &message),
        }
        Some(child)
    }

    async fn on_child(&mut self, child: &Path, said: ChildMessage, rest: Bytes, message: &Message) {
        match said {
            ChildMessage::Hello { session, lanes, version } => {
                tracing::info!(%child, version, "child greets");
                if let Some(state) = self.children.get_mut(child) {
                    state.parent.on_hello(session, lanes);
                    let parent = &state.parent;
                    state.waiting = ByLane::new(|lane| parent.greets_with_more(lane));
                    state.version = Some(version.clone());
                }
                self.report(FromChild::Hello { child: child.clone(), version });
            }
            ChildMessage::Frame { session, lane, bindings, parcels, last } => {
                let Some(bodies) = cut(&parcels, rest) else {
                    return self.refuse(child, Refusal::Malformed, "frame lengths", message);
                };
                if let Err(refusal) = self.learn_authors(&bindings).await {
                    self.refuse(child, refusal, "author's key binding", message);
                }
                self.on_frame(child, session, lane, &parcels, &bodies).await;
                // Without parcels it asks how much may come.
                let lag = parcels.last().map(|parcel| last.saturating_sub(parcel.last));
                if let Some(state) = self.children.get_mut(child) {
                    state.waiting[lane] = Some(lag != Some(0));
                }
                self.seen(child, lag.map(|lag| (lane, lag)));
            }
            ChildMessage::Piece { session, lane, bindings, parcel, offset, last } => {
                if let Err(refusal) = self.learn_authors(&bindings).await {
                    self.refuse(child, refusal, "author's key binding", message);
                }
                let lag = last.saturating_sub(parcel.last);
                self.on_piece(child, session, lane, parcel, offset, &rest).await;
                if let Some(state) = self.children.get_mut(child) {
                    state.waiting[lane] = Some(lag > 0);
                }
                self.seen(child, Some((lane, lag)));
            }
            ChildMessage::Credit { number, offers, valid_for_ms } => {
                let valid_for = Duration::from_millis(valid_for_ms.min(60_000));
                self.seen(child, None);
                let child = child.clone();
                let _ = self.parts.work.try_send(WorkFromChild::Credit { child, number, offers, valid_for });
            }
            // What finds the queue full is said again.
            ChildMessage::Orders(said) => {
                self.seen(child, None);
                let _ = self.parts.from_below.try_send((child.clone(), *said));
            }
            ChildMessage::Clock { number, skew } => {
                let received = self.parts.time.now();
                self.note_clock(child, skew);
                let sent = self.parts.time.now();
                self.send(child, &ParentMessage::Time { number, received, sent }, None).await;
            }
            ChildMessage::HandoffReply { task, attempt, refused } => {
                let child = child.clone();
                // A reply that finds the queue full is asked for again.
                let _ =
                    self.parts.work.try_send(WorkFromChild::HandoffReply { child, task, attempt, refused });
            }
        }
    }

    async fn on_piece(
        &mut self,
        child: &Path,
        session: u64,
        lane: Lane,
        head: ParcelHead,
        offset: u32,
        piece: &[u8],
    ) {
        self.hold_if_full(child, lane);
        let room = self.begun_bytes < MAX_BEGUN;
        let Some(state) = self.children.get_mut(child) else { return };
        let before = state.parent.begun_bytes();
        let taken = state.parent.on_piece(session, lane, &head, offset, piece, room);
        state.last_piece = self.clock.now();
        self.begun_bytes = self.begun_bytes + state.parent.begun_bytes() - before;
        match taken {
            Ok(None) => {}
            Ok(Some(whole)) => self.on_frame(child, session, lane, &[head], &[whole]).await,
            Err(_) => self.send(child, &ParentMessage::Reset { session }, None).await,
        }
    }

    /// A child that went away in the middle of a batch does not hold memory for ever. (A new session has its
    /// parent forget, too; so the sum is made anew.)
    pub(super) fn forget_begun(&mut self) {
        let now = self.clock.now();
        for state in self.children.values_mut() {
            if now.saturating_sub(state.last_piece) > BEGUN_FOR {
                state.parent.forget_begun();
            }
        }
        self.begun_bytes = self.children.values().map(|state| state.parent.begun_bytes()).sum();
    }

    async fn on_frame(
        &mut self,
        child: &Path,
        session: u64,
        lane: Lane,
        parcels: &[ParcelHead],
        bodies: &[Bytes],
    ) {
        self.hold_if_full(child, lane);
        let mut judged = Vec::with_capacity(parcels.len());
        for (head, bytes) in parcels.iter().zip(bodies) {
            // What is repeated because this agent is slow must not make it slower.
            let parent = self.children.get(child).map(|state| &state.parent);
            if !parent.is_some_and(|parent| parent.may_be_new(session, lane, head)) {
                judged.push(Err(Refusal::Malformed));
                continue;
            }
            match self.judge(child, lane, head, bytes) {
                Err(Refusal::UnknownKid) => {
                    return self.send(child, &ParentMessage::Reset { session }, None).await;
                }
                verdict => judged.push(verdict),
            }
        }
        let verdicts: Vec<Verdict> = judged
            .iter()
            .map(|judged| match judged {
                Ok(judged) => Verdict::Sound {
                    origin: judged.verified.envelope.identity().path.clone(),
                    span: judged.span,
                },
                Err(refusal) => Verdict::Refused(*refusal),
            })
            .collect();
        let Some(state) = self.children.get_mut(child) else { return };
        let before = state.parent.repeated();
        let outputs = state.parent.on_frame(session, lane, parcels, &verdicts, &mut self.origins);
        let repeated = state.parent.repeated() - before;
        if repeated > 0 {
            let label = ChildLabel { child: child.to_string() };
            self.parts.metrics.batches_repeated.get_or_create(&label).inc_by(repeated);
        }
        for output in outputs {
            match output {
                ParentOutput::Store { index, record } => {
                    if let Ok(batch) = &judged[index] {
                        self.store(child, lane, batch, &bodies[index], record).await;
                    }
                }
                ParentOutput::Bury { index, reason } => self.parts.dead_letters.bury(DeadLetter {
                    origin: child.clone(),
                    reason,
                    detail: format!("batch {} of {child}", parcels[index].last),
                    subject: subject::link_up(child),
                    bytes: bodies[index].clone(),
                }),
                ParentOutput::Gap { index, span } => {
                    if let Ok(judged) = &judged[index] {
                        let origin = &judged.verified.envelope.identity().path;
                        tracing::debug!(%child, %origin, %lane, %span, "not among what arrives");
                    }
                }
                ParentOutput::Reset { session } => {
                    self.send(child, &ParentMessage::Reset { session }, None).await;
                }
            }
        }
    }

    pub(super) async fn reply(&mut self, child: &Path) {
        let Some(state) = self.children.get_mut(child) else { return };
        for reply in state.parent.take_replies(self.parts.time.now(), crate::VERSION) {
            let welcome = matches!(reply, ParentMessage::Welcome { .. });
            let binding = welcome.then(|| self.parts.signer.binding().clone());
            self.send(child, &reply, binding).await;
        }
    }

    pub(super) async fn send(&mut self, child: &Path, message: &ParentMessage, binding: Option<Binding>) {
        let subject = subject::link_down(child);
        let bytes = wire::seal(&self.parts.signer, &subject, message, &[], self.parts.time.stamp());
        let sent = match binding {
            Some(binding) => {
                let mut headers = HeaderMap::new();
                headers.insert(header::BINDING, binding.to_json());
                self.parts.down.publish_with_headers(subject, headers, bytes).await
            }
            None => self.parts.down.publish(subject, bytes).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%child, %error, "an answer was not sent; the child will ask again");
        }
    }

    fn refuse(&self, origin: &Path, reason: Refusal, detail: &str, message: &Message) {
        self.parts.dead_letters.bury(DeadLetter {
            origin: origin.clone(),
            reason,
            detail: detail.to_owned(),
            subject: message.subject.to_string(),
            bytes: message.payload.clone(),
        });
    }
}
