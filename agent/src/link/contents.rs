//! What is in a stored batch, told by the headers beside it.

use hierarchy::{
    Lane, Path,
    link::Span,
    loss::{Loss, LossReason},
};

use super::header;

/// What is in a batch, as the headers beside it tell.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Whose events; `None` for this agent's own.
    pub origin: Option<Path>,
    /// Their numbers.
    pub span: Span,
    /// How many they are.
    pub count: u64,
}

impl Contents {
    /// What the headers tell; `None` where no agent wrote them.
    pub fn read(headers: &async_nats::HeaderMap) -> Option<Contents> {
        let text = |name| headers.get(name).map(|value| value.as_str());
        Some(Contents {
            origin: match text(header::ORIGIN) {
                Some(origin) => Some(origin.parse().ok()?),
                None => None,
            },
            span: text(header::EVENTS)?.parse().ok()?,
            count: text(header::COUNT)?.parse().ok()?,
        })
    }

    /// The loss of all of them.
    pub fn lost(&self, own: &Path, lane: Lane, reason: LossReason) -> Loss {
        let Span { incarnation, first, last } = self.span;
        let origin = self.origin.clone().unwrap_or_else(|| own.clone());
        Loss { origin, lane, incarnation, reason, first, last, count: self.count }
    }
}
