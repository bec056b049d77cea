//! What must hold before a child's batch may be stored, and the keys to tell it by.

use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use hierarchy::{
    Lane, Path, Refusal,
    link::{Batch, ParcelHead, Span, batch::check_speaker},
    signing::{Binding, Timeliness, Verified},
};

use super::Downlink;
use crate::link::header;

/// Batches may have waited this long below a cut link.
pub const STORED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// A batch that may be stored.
pub(super) struct Judged<'a> {
    pub(super) verified: Verified<'a>,
    pub(super) span: Span,
    pub(super) events: Option<Batch<'a>>,
}

impl Downlink {
    /// Everything that must hold before a batch may be stored.
    pub(super) fn judge<'a>(
        &self,
        child: &Path,
        lane: Lane,
        head: &ParcelHead,
        bytes: &'a Bytes,
    ) -> Result<Judged<'a>, Refusal> {
        let verified =
            self.parts.verifier.verify(bytes, self.parts.time.now(), Timeliness::Stored(STORED_FOR))?;
        let author = verified.envelope.identity();
        if verified.digest != head.digest {
            return Err(Refusal::BadSignature);
        }
        if author.trust_domain != self.parts.signer.identity().trust_domain || !child.contains(&author.path) {
            return Err(Refusal::IdentityMismatch);
        }
        check_speaker(&author.path, &verified.envelope)?;
        let span = verified.envelope.batch().and_then(Span::of).ok_or(Refusal::BadPayload)?;
        if verified.envelope.priority() != lane {
            return Err(Refusal::BadPayload);
        }
        // The author's direct parent looks into the events; the levels above need not do it again.
        let events = if author.path == *child { Some(Batch::read(&verified.envelope)?) } else { None };
        Ok(Judged { verified, span, events })
    }

    /// A greeting brings the child's own binding.
    pub(super) async fn learn_peer(&mut self, child: &Path, message: &Message) -> Result<(), Refusal> {
        let Some(text) = message.headers.as_ref().and_then(|headers| headers.get(header::BINDING)) else {
            return Ok(());
        };
        let binding = Binding::from_json(text.as_str().as_bytes())?;
        self.learn_authors(std::slice::from_ref(&binding)).await?;
        tracing::debug!(%child, "binding learned");
        Ok(())
    }

    pub(super) async fn learn_authors(&mut self, bindings: &[Binding]) -> Result<(), Refusal> {
        for binding in bindings {
            let kid = self.parts.verifier.learn(binding)?;
            if let Err(error) = self.parts.bindings.keep(kid, binding).await {
                tracing::warn!(%error, "a key binding was not kept");
                return Err(Refusal::UnknownKid);
            }
        }
        Ok(())
    }
}
