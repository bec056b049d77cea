//! The form of the test vectors in `tests/vectors`, described in `docs/wire-format.md`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hierarchy::{Millis, Refusal, signing::Timeliness};
use serde::{Deserialize, Serialize};

/// Bytes, and how they must be judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vector {
    pub(crate) name: String,
    /// Standard base64.
    pub(crate) input: String,
    /// How many times the decoded input stands behind itself.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub(crate) repeat: usize,
    /// The receiver's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) now: Option<u64>,
    /// How old the message may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeliness: Option<Age>,
    /// `ok`, or the name of the refusal.
    pub(crate) expect: String,
    /// The digest of an envelope that is sound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// The key id of a binding that is sound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kid: Option<String>,
    /// The events of a batch that is sound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) events: Option<Vec<VectorEvent>>,
}

/// See [`Timeliness`]; in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Age {
    Stored(u64),
    Live(u64),
    Session,
}

/// An event that a batch vector must yield.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VectorEvent {
    pub(crate) seq: u64,
    pub(crate) ts: u64,
    pub(crate) subject: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) hdr: BTreeMap<String, Vec<String>>,
    /// Standard base64.
    pub(crate) data: String,
}

fn once() -> usize {
    1
}

fn is_once(times: &usize) -> bool {
    *times == 1
}

impl From<Age> for Timeliness {
    fn from(age: Age) -> Self {
        match age {
            Age::Stored(ms) => Timeliness::Stored(Duration::from_millis(ms)),
            Age::Live(ms) => Timeliness::Live(Duration::from_millis(ms)),
            Age::Session => Timeliness::Session,
        }
    }
}

impl Vector {
    /// A vector that is judged by its bytes alone.
    pub(crate) fn timeless(name: &str, bytes: &[u8], expect: Result<(), Refusal>) -> Vector {
        Vector {
            name: name.into(),
            input: STANDARD.encode(bytes),
            repeat: 1,
            now: None,
            timeliness: None,
            expect: expect.err().map_or("ok", Refusal::name).into(),
            digest: None,
            kid: None,
            events: None,
        }
    }

    /// A vector that is judged at a time.
    pub(crate) fn at(name: &str, bytes: &[u8], expect: Result<(), Refusal>, now: Millis, age: Age) -> Vector {
        Vector { now: Some(now.0), timeliness: Some(age), ..Vector::timeless(name, bytes, expect) }
    }

    /// The whole input.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.input).unwrap().repeat(self.repeat)
    }
}

/// Where the vectors lie.
pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The text of a vector file.
pub(crate) fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}
