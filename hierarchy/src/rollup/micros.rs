//! Numbers that can be added in any order and come out the same.

use std::{fmt, iter, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Reading;

/// A number in millionths. Floating-point sums depend on the order of their terms; these do not.
/// In JSON: a decimal text, since most readers would round a number of this size.
///
/// ```
/// use hierarchy::rollup::Micros;
/// assert_eq!("-12.5".parse::<Micros>().unwrap().to_string(), "-12.5");
/// assert_eq!(Micros::from(8u64).to_string(), "8");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Micros(i128);

/// A text that is not of the one accepted form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a decimal must look like -12.5, with at most 6 digits behind the point")]
pub struct BadDecimal;

const UNIT: i128 = 1_000_000;
const FRACTION_DIGITS: usize = 6;

impl Micros {
    /// No measured value is greater.
    pub(super) const GREATEST: Micros = Micros(u64::MAX as i128 * UNIT);
    /// No measured value is less.
    pub(super) const LEAST: Micros = Micros(-Micros::GREATEST.0);
    /// No extreme (the first) and no sum (the second) has a longer text.
    #[cfg(test)]
    pub(super) const LONGEST: [Micros; 2] = [Micros(Micros::LEAST.0 + 1), Micros(i128::MIN)];

    /// The nearest floating-point number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / UNIT as f64
    }

    /// The sum. Exact for 10^12 terms of any size that a `u64` or a [`Reading`] can have; beyond, it
    /// wraps, because saturation would make the result depend on the order.
    pub(super) fn plus(self, other: Micros) -> Micros {
        Micros(self.0.wrapping_add(other.0))
    }

    /// `count` times this, where that can be told.
    pub(super) fn times(self, count: u64) -> Option<Micros> {
        self.0.checked_mul(i128::from(count)).map(Micros)
    }
}

impl From<u64> for Micros {
    fn from(whole: u64) -> Self {
        Micros(i128::from(whole) * UNIT)
    }
}

impl From<Reading> for Micros {
    fn from(reading: Reading) -> Self {
        Micros((f64::from(reading) * UNIT as f64).round() as i128)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        let (whole, fraction) = (magnitude / UNIT as u128, magnitude % UNIT as u128);
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{whole}")?;
        if fraction > 0 {
            write!(f, ".{}", format!("{fraction:06}").trim_end_matches('0'))?;
        }
        Ok(())
    }
}

impl FromStr for Micros {
    type Err = BadDecimal;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (negative, magnitude) = s.strip_prefix('-').map_or((false, s), |rest| (true, rest));
        let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_DIGITS {
            return Err(BadDecimal);
        }
        let padding = iter::repeat_n('0', FRACTION_DIGITS - fraction.len());
        let all: String = whole.chars().chain(fraction.chars()).chain(padding).collect();
        let micros: i128 = all.parse().map_err(|_| BadDecimal)?;
        Ok(Micros(if negative { -micros } else { micros }))
    }
}

impl TryFrom<String> for Micros {
    type Error = BadDecimal;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Micros> for String {
    fn from(micros: Micros) -> Self {
        micros.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_come_back_as_they_were_written() {
        for text in ["0", "1", "-1", "0.000001", "-0.5", "18446744073709551615", "99999999999999999999999.25"]
        {
            assert_eq!(text.parse::<Micros>().unwrap().to_string(), text);
        }
        let too_large = "9".repeat(40);
        for bad in ["", "-", ".5", "5.", "1.0000001", "1e3", "+1", "--1", "NaN", "inf", " 1", "٣", &too_large]
        {
            assert_eq!(bad.parse::<Micros>(), Err(BadDecimal), "{bad:?}");
        }
    }
}
