//! Points in time as the mesh writes them: milliseconds since 1970, UTC.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::FormatItem, macros::format_description};

/// Milliseconds since 1970-01-01T00:00:00Z. The clock is read by whoever drives this crate.
///
/// ```
/// use hierarchy::Millis;
/// let t = Millis(1_756_809_000_123);
/// assert_eq!(t.to_string(), "2025-09-02T10:30:00.123Z");
/// assert_eq!("2025-09-02T10:30:00.123Z".parse(), Ok(t));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

/// A text that is not of the one accepted form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a timestamp must look like 2025-09-02T10:30:00.123Z")]
pub struct BadTimestamp;

/// The one form on the wire: milliseconds, `Z`, 24 characters.
const FORM: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

impl Millis {
    /// This time and `later`.
    pub fn plus(self, later: Duration) -> Millis {
        Millis(self.0.saturating_add(later.as_millis() as u64))
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub fn since(self, earlier: Millis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|t| t.format(FORM).ok());
        // Beyond the year 9999 there is no such form; the bare number still says what was meant.
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Millis {
    type Err = BadTimestamp;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() != 24 {
            return Err(BadTimestamp);
        }
        let t = time::PrimitiveDateTime::parse(s, FORM).map_err(|_| BadTimestamp)?;
        let millis = t.assume_utc().unix_timestamp_nanos() / 1_000_000;
        u64::try_from(millis).map(Millis).map_err(|_| BadTimestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_form_is_a_timestamp() {
        for bad in [
            "2025-09-02T10:30:00Z",
            "2025-09-02T10:30:00.123+00:00",
            "2025-09-02 10:30:00.123Z",
            "2025-13-02T10:30:00.123Z",
            "1925-09-02T10:30:00.123Z",
            "",
            "2025-09-02T10:30:00.123456Z",
        ] {
            assert_eq!(bad.parse::<Millis>(), Err(BadTimestamp), "{bad}");
        }
        assert_eq!(Millis(0).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
