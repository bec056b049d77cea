//! JSON that means one thing to every reader.
//!
//! Parsers differ on repeated keys, on numbers no double can hold and on lone surrogates. A payload
//! that two readers understand differently can be signed honestly and still lie to one of them, so
//! such payloads are refused.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Serialize,
    de::{
        Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor,
        value::{BorrowedStrDeserializer, MapAccessDeserializer},
    },
};

/// Whether `text` is one JSON value without repeated keys, with finite numbers, whole surrogate
/// pairs, and at most 127 levels of nesting.
pub fn is_strict(text: &[u8]) -> bool {
    serde_json::from_slice::<Strict>(text).is_ok()
}

/// A struct that is written as a JSON object and as nothing else. Derived readers also take its
/// values as an array, which other languages' readers do not.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// Reads an optional field that is there: `null` is a value and not a second way to leave it out.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads an enum without data from a string; derived readers also take `{"name":null}`.
pub fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(BorrowedStrDeserializer::new(<&str>::deserialize(deserializer)?))
}

/// Reads a list of words as [`word`] reads one.
pub fn words<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let words = Vec::<&str>::deserialize(deserializer)?;
    words.into_iter().map(|word| T::deserialize(BorrowedStrDeserializer::new(word))).collect()
}

/// Reads a map whose keys do not repeat; derived readers keep the last of equal keys.
pub fn unique<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct Entries<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((key, value)) = map.next_entry()? {
                if entries.insert(key, value).is_some() {
                    return Err(A::Error::custom("repeated key"));
                }
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Entries(PhantomData))
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

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    #[test]
    fn a_repeated_key_is_found_in_an_object_of_any_size() {
        for keys in 1..40 {
            let object: String = (0..keys).map(|i| format!("\"k{i}\":1,")).collect();
            assert!(is_strict(format!("{{{object}\"z\":1}}").as_bytes()), "{keys} keys");
            for again in [0, keys - 1] {
                assert!(
                    !is_strict(format!("{{{object}\"k{again}\":1}}").as_bytes()),
                    "{keys} keys, k{again}"
                );
            }
        }
    }
}
