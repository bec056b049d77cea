//! Loss receipts: exact statements of which events were dropped on their way up, where and why.
//!
//! An origin numbers its events without a gap, so a loss is a range of numbers. Such a statement is
//! idempotent: the same range may be stated twice, by one hop or by several, and what is stated lost may
//! arrive after all; arrived wins over lost. Receipts travel in the critical lane, and so may overtake the
//! batches before the loss.

mod log;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

pub use log::{LossLog, MAX_HELD, NotNoted};

use crate::{
    ByLane, Lane, Path,
    link::Span,
    strict_json::{Object, word},
};

/// Most losses in one receipt.
pub const MAX_LOSSES: usize = 256;
/// The largest receipt that is read, in bytes of JSON: room for [`MAX_LOSSES`] with the longest paths.
pub const MAX_BYTES: usize = 112 * 1024;
/// The highest number that an event can have: 2^53 - 1, which readers that keep numbers as doubles hold
/// exactly, too.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Why events were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossReason {
    /// A lane was full, and the oldest went.
    Overflow,
    /// They had waited for longer than the lane keeps them.
    Age,
    /// A level's policy does not let them go on.
    Policy,
    /// The level above refused their batch for good.
    Refused,
    /// Their batch is with the dead letters of the level that could not take it.
    Quarantine,
    /// The store that held them was lost or went back in time.
    StoreLost,
}

impl LossReason {
    /// All reasons.
    pub const ALL: [LossReason; 6] = [
        LossReason::Overflow,
        LossReason::Age,
        LossReason::Policy,
        LossReason::Refused,
        LossReason::Quarantine,
        LossReason::StoreLost,
    ];

    /// The name, as in JSON and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LossReason::Overflow => "overflow",
            LossReason::Age => "age",
            LossReason::Policy => "policy",
            LossReason::Refused => "refused",
            LossReason::Quarantine => "quarantine",
            LossReason::StoreLost => "store-lost",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A range of one origin's numbers, the events of which were dropped for one reason.
///
/// Ordered so that ranges that could be one are neighbours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Loss {
    /// Who numbered them.
    pub origin: Path,
    /// The lane that they were numbered in.
    #[serde(deserialize_with = "word")]
    pub lane: Lane,
    /// The origin's incarnation.
    pub incarnation: u64,
    /// Why they were dropped.
    #[serde(deserialize_with = "word")]
    pub reason: LossReason,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
    /// How many events were really there. The rest of the range the origin's own policy had dropped
    /// before; so an origin that states what its policy dropped says 0.
    pub count: u64,
}

impl Loss {
    /// Its numbers.
    pub fn span(&self) -> Span {
        Span { incarnation: self.incarnation, first: self.first, last: self.last }
    }

    /// Whether `next` goes on where this one ends, and says the same of it.
    fn touches(&self, next: &Loss) -> bool {
        self.last + 1 == next.first
            && self.incarnation == next.incarnation
            && (self.lane, self.reason) == (next.lane, next.reason)
            && self.origin == next.origin
    }
}

/// Whether a range of numbers can be one and hold so many events: numbers begin with 1, end at
/// [`MAX_NUMBER`], and each has at most one event.
pub fn is_sound(span: Span, count: u64) -> bool {
    1 <= span.first && span.first <= span.last && span.last <= MAX_NUMBER && count <= span.len()
}

/// How far an origin has numbered: the highest number that it has given in each lane, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Published {
    /// The origin's incarnation.
    pub incarnation: u64,
    /// The numbers.
    #[serde(deserialize_with = "object")]
    pub lanes: ByLane<u64>,
}

/// The data of an event on a hop's own subject with the tail [`crate::subject::LOSS`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LossReceipt {
    /// What the hop dropped since its last receipt; at most [`MAX_LOSSES`].
    #[serde(deserialize_with = "objects")]
    pub losses: Vec<Loss>,
    /// How far the hop itself has numbered.
    #[serde(default, deserialize_with = "some_object", skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
}

/// Bytes that are not a loss receipt.
#[derive(Debug, thiserror::Error)]
pub enum BadLossReceipt {
    /// Larger than any receipt is.
    #[error("a loss receipt of {0} bytes is refused: none has more than {MAX_BYTES}; send several")]
    TooLarge(usize),
    /// More losses than a receipt has.
    #[error("a loss receipt of {0} losses is refused: none has more than {MAX_LOSSES}; send several")]
    TooMany(usize),
    /// Not the JSON of a receipt.
    #[error("not a loss receipt: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Numbers that contradict each other.
    #[error(
        "a loss receipt is refused: numbers run from 1 to {MAX_NUMBER}, a range's first is not above its last, \
         and it holds no more events than numbers"
    )]
    Unsound,
}

impl LossReceipt {
    /// Reads a receipt from its JSON.
    pub fn parse(json: &[u8]) -> Result<LossReceipt, BadLossReceipt> {
        if json.len() > MAX_BYTES {
            return Err(BadLossReceipt::TooLarge(json.len()));
        }
        let Object(receipt) = serde_json::from_slice::<Object<LossReceipt>>(json)?;
        if receipt.losses.len() > MAX_LOSSES {
            return Err(BadLossReceipt::TooMany(receipt.losses.len()));
        }
        let exists = |published: Published| published.lanes.iter().all(|(_, last)| *last <= MAX_NUMBER);
        let sound = receipt.losses.iter().all(|loss| is_sound(loss.span(), loss.count));
        if !sound || !receipt.published.is_none_or(exists) {
            return Err(BadLossReceipt::Unsound);
        }
        Ok(receipt)
    }
}

fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

fn some_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    object(deserializer).map(Some)
}

fn objects<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|Object(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: &str = r#"{"origin":"s1/c1/n1","lane":"bulk","incarnation":7,"reason":"store-lost","first":3,"last":9,"count":5}"#;

    fn of(losses: &str, rest: &str) -> Result<LossReceipt, BadLossReceipt> {
        LossReceipt::parse(format!(r#"{{"losses":[{losses}]{rest}}}"#).as_bytes())
    }

    #[test]
    fn a_receipt_survives_the_wire() {
        let published = r#","published":{"incarnation":7,"lanes":{"critical":1,"normal":0,"bulk":9}}"#;
        for (losses, rest) in [(LOSS, published), (LOSS, ""), ("", published)] {
            let receipt = of(losses, rest).unwrap();
            let json = serde_json::to_string(&receipt).unwrap();
            assert_eq!(json, format!(r#"{{"losses":[{losses}]{rest}}}"#));
        }
        for reason in LossReason::ALL {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
        }
    }

    #[test]
    fn what_contradicts_itself_or_is_of_another_form_is_refused() {
        for (from, to) in [
            ("\"first\":3", "\"first\":10"),
            ("\"first\":3", "\"first\":0"),
            ("\"first\":3", "\"first\":3,\"first\":3"),
            ("\"last\":9", "\"last\":9007199254740992"),
            ("\"last\":9", "\"last\":18446744073709551615"),
            ("\"count\":5", "\"count\":8"),
            ("\"count\":5", "\"count\":-1"),
            ("\"count\":5", "\"count\":5,\"hop\":\"s1\""),
            (",\"count\":5", ""),
            ("\"store-lost\"", "\"stolen\""),
            ("\"store-lost\"", "{\"store-lost\":null}"),
            ("s1/c1/n1", "s1/c1/N1"),
        ] {
            assert!(LOSS.contains(from) && of(LOSS, "").is_ok());
            assert!(of(&LOSS.replace(from, to), "").is_err(), "{to}");
        }
        assert!(of(r#"["s1/c1/n1","bulk",7,"age",3,9,5]"#, "").is_err());
        for published in [
            "null",
            "[7,[1,0,9]]",
            r#"{"incarnation":7,"lanes":[1,0,9]}"#,
            r#"{"incarnation":7,"lanes":{"critical":1,"bulk":9}}"#,
            r#"{"incarnation":7,"lanes":{"critical":1,"normal":9007199254740992,"bulk":9}}"#,
        ] {
            assert!(of(LOSS, &format!(",\"published\":{published}")).is_err(), "{published}");
        }
        assert!(LossReceipt::parse(b"[[]]").is_err());
    }

    #[test]
    fn the_largest_receipt_there_can_be_is_read_and_no_larger_one() {
        let origin: Path = [&*"x".repeat(63); 3].join("/").parse().unwrap();
        let (lane, reason) = (Lane::Critical, LossReason::Quarantine);
        let largest = Loss {
            origin,
            lane,
            incarnation: u64::MAX,
            reason,
            first: MAX_NUMBER,
            last: MAX_NUMBER,
            count: 1,
        };
        let lanes = ByLane::new(|_| MAX_NUMBER);
        let mut receipt = LossReceipt {
            losses: vec![largest.clone(); MAX_LOSSES],
            published: Some(Published { incarnation: u64::MAX, lanes }),
        };
        let json = serde_json::to_vec(&receipt).unwrap();
        assert_eq!(LossReceipt::parse(&json).unwrap(), receipt);
        receipt.losses.push(Loss { origin: Path::global(), ..largest });
        let json = serde_json::to_vec(&receipt).unwrap();
        assert!(matches!(LossReceipt::parse(&json), Err(BadLossReceipt::TooMany(257))));
        let spaces = vec![b' '; MAX_BYTES + 1];
        assert!(matches!(LossReceipt::parse(&spaces), Err(BadLossReceipt::TooLarge(_))));
    }
}
