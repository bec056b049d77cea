//! JSON that means one thing to every reader.
//!
//! Parsers differ on repeated keys, on numbers no double can hold and on lone surrogates. A payload
//! that two readers understand differently can be signed honestly and still lie to one of them, so
//! such payloads are refused.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Whether `text` is one JSON value without repeated keys, with finite numbers, whole surrogate
/// pairs, and at most 127 levels of nesting.
pub fn is_strict(text: &[u8]) -> bool {
    serde_json::from_slice::<Strict>(text).is_ok()
}

/// A value that was looked at and thrown away.
struct Strict;

/// Objects with more keys than this are checked through a sorted copy instead of pairwise.
const PAIRWISE: usize = 16;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Check)
    }
}

struct Check;

impl<'de> Visitor<'de> for Check {
    type Value = Strict;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Strict, E> {
        if n.is_finite() { Ok(Strict) } else { Err(E::custom("number out of range")) }
    }

    fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        while seq.next_element::<Strict>()?.is_some() {}
        Ok(Strict)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut keys: Vec<Cow<'de, str>> = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            if keys.len() < PAIRWISE && keys.contains(&key) {
                return Err(A::Error::custom("repeated key"));
            }
            keys.push(key);
            map.next_value::<Strict>()?;
        }
        if keys.len() > PAIRWISE {
            keys.sort_unstable();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(A::Error::custom("repeated key"));
            }
        }
        Ok(Strict)
    }
}

/// A key, borrowed from the text where it holds no escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(s)))
            }

            fn visit_str<E>(self, s: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(s.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let many: String = (0..40).map(|i| format!("\"k{i}\":1,")).collect();
        let repeated_far_apart = format!("{{{many}\"k3\":1}}");
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"x":{"y":1,"y":1}}]"#,
            "1e400",
            r#""\ud800""#,
            "\u{feff}1",
            "1 2",
            "",
            "nul",
            &deep,
            &repeated_far_apart,
        ] {
            assert!(!is_strict(bad.as_bytes()), "{} was accepted", &bad[..bad.len().min(60)]);
        }
        let unique = format!("{{{many}\"z\":1}}");
        for good in [r#"{"a":1,"b":{"a":2}}"#, "9007199254740993", r#"["x",null,true,-1.5e3]"#, &unique] {
            assert!(is_strict(good.as_bytes()), "{good} was refused");
        }
    }
}
