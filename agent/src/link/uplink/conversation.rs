//! The conversation with the parent: its messages are opened and passed on to whom they are for, ours are signed
//! and sent. What the parent says of the time is held against this machine's clock.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use hierarchy::{
    Digest, Lane, Refusal,
    link::{ChildMessage, Load, ParentMessage, Skew},
    signing::Binding,
    subject,
};

use super::Uplink;
use crate::{
    clock,
    drill::Order,
    ingest::Reached,
    link::{downlink::ToChild, header, wire},
    metrics::PeerLabel,
};

impl Uplink {
    pub(super) fn is_cut(&self) -> bool {
        self.parts.cut.borrow().is_some_and(|until| until > tokio::time::Instant::now())
    }

    pub(super) fn on_parent(&mut self, message: Message) {
        if self.is_cut() {
            return;
        }
        let now = self.clock.now();
        if let Some(binding) = message.headers.as_ref().and_then(|headers| headers.get(header::BINDING)) {
            let learned = Binding::from_json(binding.as_str().as_bytes())
                .and_then(|binding| self.parts.verifier.learn(&binding));
            if let Err(refusal) = learned {
                tracing::warn!(%refusal, parent = %self.parent.path, "the parent's identity is refused");
                self.parts.metrics.refuse(refusal);
                return;
            }
        }
        let subject = message.subject.as_str();
        let time = self.parts.time.now();
        match wire::open(&self.parts.verifier, &self.parent, subject, &message.payload, time) {
            Ok((said @ ParentMessage::Handoff { .. }, _)) => {
                // Full means that the parent will hand it down again.
                let _ = self.parts.handoffs.try_send(said);
            }
            Ok((ParentMessage::Orders(said), rest)) => {
                // Full means that the parent will send it again.
                let _ = self.parts.from_above.try_send((*said, rest));
            }
            Ok((said @ ParentMessage::Reached { .. }, _)) => self.on_reached(said),
            Ok((ParentMessage::Drill { cut, seconds }, _)) => {
                // Full means that others are to be cut first; whoever asked hears no report.
                let _ = self.parts.drills.try_send(Order { cut, seconds });
            }
            Ok((ParentMessage::Time { number, received, sent }, _)) => {
                self.parent_clock.answered(number, received, sent, now);
                self.note_clock();
            }
            Ok((said, _)) => {
                let was_open = self.machine.is_open();
                self.machine.on_message(&said, now);
                if self.machine.is_open() && !was_open {
                    self.parent_clock.opened(now);
                }
                self.note_answer(&said);
            }
            Err(Refusal::UnknownKid) => self.machine.on_stranger(now),
            Err(refusal) => {
                tracing::warn!(%refusal, parent = %self.parent.path, "a message of the parent is refused");
                self.parts.metrics.refuse(refusal);
            }
        }
    }

    /// Words that find a queue full are lost; who waits for them is told that it is not known.
    fn on_reached(&self, said: ParentMessage) {
        let ParentMessage::Reached { level, ref origin, lane, incarnation, first, last } = said else {
            return;
        };
        if *origin == self.parts.path {
            let _ = self.parts.reached.try_send(Reached { level, lane, incarnation, first, last });
        } else if let Some(child) = self.parts.path.child_towards(origin)
            && let Some(to_children) = &self.parts.to_children
        {
            let _ = to_children.try_send(ToChild { child, message: said });
        }
    }

    pub(super) async fn send_load(&mut self, session: u64, lane: Lane, load: Load, announce: Vec<Digest>) {
        let mut known = Vec::with_capacity(announce.len());
        for kid in announce {
            if kid == self.parts.signer.kid() {
                continue;
            }
            match self.parts.bindings.get(kid).await {
                Ok(Some(binding)) => known.push(binding),
                Ok(None) => {
                    tracing::warn!(%kid, "the binding of a stored batch is gone; the parent will refuse it");
                }
                Err(error) => tracing::warn!(%error, "a binding could not be read"),
            }
        }
        let (mut message, bodies) = load.message(session, lane, self.readers[lane].end());
        if let ChildMessage::Frame { bindings, .. } | ChildMessage::Piece { bindings, .. } = &mut message {
            *bindings = known;
        }
        self.send(&message, &bodies).await;
    }

    pub(super) async fn send(&mut self, message: &ChildMessage, bodies: &[Bytes]) {
        if self.is_cut() {
            return;
        }
        let subject = subject::link_up(&self.parts.path);
        let bytes = wire::seal(&self.parts.signer, &subject, message, bodies, self.parts.time.stamp());
        self.parts.metrics.frames_sent.inc();
        self.parts.metrics.frame_bytes_sent.inc_by(bytes.len() as u64);
        let sent = if matches!(message, ChildMessage::Hello { .. }) {
            let mut headers = HeaderMap::new();
            headers.insert(header::BINDING, self.parts.signer.binding().to_json());
            self.parts.up.publish_with_headers(subject, headers, bytes).await
        } else {
            self.parts.up.publish(subject, bytes).await
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a frame was not sent; it will be repeated");
        }
    }

    fn note_answer(&mut self, said: &ParentMessage) {
        let version = match said {
            ParentMessage::Welcome { version, .. } => Some(version.clone()),
            _ => None,
        };
        let now = self.parts.time.now().0;
        self.parts.state.send_modify(|state| {
            state.last_answer = Some(now);
            if version.is_some() {
                state.parent_version = version;
            }
        });
    }

    pub(super) async fn ask_the_time(&mut self) {
        if !self.machine.is_open() {
            return;
        }
        if let Some(number) = self.parent_clock.ask(self.clock.now()) {
            let skew = self.skew();
            self.send(&ChildMessage::Clock { number, skew }, &[]).await;
        }
    }

    /// How far this machine's clock is ahead of the parent's.
    pub(super) fn skew(&self) -> Option<Skew> {
        let now = self.clock.now();
        self.parent_clock.best(now).map(|best| best.skew(now, clock::wall()))
    }

    fn note_clock(&mut self) {
        self.parts.time.tell(self.parent_clock.best(self.clock.now()));
        let Some(skew) = self.skew() else { return };
        let label = PeerLabel { peer: self.parent.path.to_string() };
        self.parts.metrics.clock_ahead.get_or_create(&label).set(skew.ahead_seconds());
        let was_apart = self.parts.state.borrow().is_apart();
        self.parts.state.send_modify(|state| state.clock = Some(skew));
        if skew.is_apart() && !was_apart {
            let (child, parent) = (&self.parts.path, &self.parent.path);
            tracing::warn!(%child, %parent, seconds_ahead = skew.ahead_seconds(),
                "this machine's clock differs from the parent's, whose time is used; set the one that is wrong");
        } else if was_apart && !skew.is_apart() {
            tracing::info!(parent = %self.parent.path, "this machine's clock agrees with the parent's again");
        }
    }
}
