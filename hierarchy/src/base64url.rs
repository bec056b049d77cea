//! Base64url without padding, in its one canonical spelling.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// The text form of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of a canonical text: no padding, no stray bits in the last character.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// As [`decode`], for a known number of bytes.
pub fn decode_exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    decode(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_spelling_of_the_same_bytes_is_refused() {
        assert_eq!(encode(&[0xff]), "_w");
        assert_eq!(decode("_w"), Some(vec![0xff]));
        for bad in ["_x", "_w==", "/w", "_w\n", "_"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
