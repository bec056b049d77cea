//! Quantiles from counted buckets whose widths grow with their values.
//!
//! A bucket spans about 2 % of its values, so whatever lies in it is told to 1 %. The buckets are fixed
//! by the metric alone: values beyond a metric's range are counted in its outermost buckets, and no
//! bucket is ever split or joined on account of what was seen. So merging is adding counts, and the
//! order of merging cannot show.

use std::collections::BTreeMap;

use crate::base64url;

/// Natural logarithm of the quotient of two neighbouring bucket bounds: (1 + a) / (1 - a) with a = 0.0099,
/// which leaves something of the 1 % for rounding.
const LN_GAMMA: f64 = 0.019_800_646_904_042_287;

/// Most that a bucket is said to hold on the wire; three bytes of seven bits.
const WIRE_CAP: u64 = (1 << 21) - 1;

/// The magnitudes between which values are told apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// Magnitudes up to here count as nought.
    floor: f64,
    /// Magnitudes beyond count as this.
    ceiling: f64,
    /// Whether there are buckets for negative values; without them they count as nought.
    signed: bool,
}

impl Scale {
    pub(super) const fn positive(floor: f64, ceiling: f64) -> Scale {
        Scale { floor, ceiling, signed: false }
    }

    pub(super) const fn signed(floor: f64, ceiling: f64) -> Scale {
        Scale { floor, ceiling, signed: true }
    }

    /// How many buckets there are beside the one around nought, on one side of it.
    fn steps(self) -> u16 {
        ((self.ceiling / self.floor).ln() / LN_GAMMA).ceil() as u16
    }

    /// Which bucket holds nought.
    fn nought(self) -> u16 {
        if self.signed { self.steps() } else { 0 }
    }

    /// How many buckets there are.
    pub(super) fn buckets(self) -> u16 {
        self.nought() + self.steps() + 1
    }

    fn bucket(self, value: f64) -> u16 {
        let magnitude = value.abs().min(self.ceiling);
        if magnitude <= self.floor || (value < 0.0 && !self.signed) {
            return self.nought();
        }
        let step = (((magnitude / self.floor).ln() / LN_GAMMA).ceil() as u16).clamp(1, self.steps());
        if value < 0.0 { self.nought() - step } else { self.nought() + step }
    }

    /// The value that is within 1 % of every value in the bucket.
    fn value(self, bucket: u16) -> f64 {
        let step = f64::from(bucket) - f64::from(self.nought());
        if step == 0.0 {
            return 0.0;
        }
        let upper = self.floor * (LN_GAMMA * step.abs()).exp();
        (2.0 * upper / (1.0 + LN_GAMMA.exp())).copysign(step)
    }
}

/// How many values fell into which bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sketch(BTreeMap<u16, u64>);

impl Sketch {
    pub(super) fn add(&mut self, scale: Scale, value: f64) {
        self.count(scale.bucket(value), 1);
    }

    pub(super) fn merge(&mut self, other: &Sketch) {
        for (&bucket, &count) in &other.0 {
            self.count(bucket, count);
        }
    }

    fn count(&mut self, bucket: u16, more: u64) {
        let count = self.0.entry(bucket).or_default();
        *count = count.saturating_add(more);
    }

    /// Every bucket at its largest.
    #[cfg(test)]
    pub(super) fn full(scale: Scale) -> Sketch {
        Sketch((0..scale.buckets()).map(|bucket| (bucket, u64::MAX)).collect())
    }

    /// The value of rank `ceil(q * n)` among `n` values in order.
    pub(super) fn quantile(&self, scale: Scale, q: f64) -> Option<f64> {
        let total = self.0.values().fold(0_u64, |sum, &count| sum.saturating_add(count));
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total.max(1));
        let mut passed = 0_u64;
        self.0.iter().find_map(|(&bucket, &count)| {
            passed = passed.saturating_add(count);
            (passed >= rank).then(|| scale.value(bucket))
        })
    }

    /// The counts from the lowest bucket on as base-128 numbers, low digits first; a zero is followed by
    /// how many zeros it stands for. In base64url.
    pub(super) fn encode(&self) -> String {
        let mut bytes = Vec::new();
        let mut next = 0;
        for (&bucket, &count) in &self.0 {
            if bucket > next {
                bytes.push(0);
                push_number(&mut bytes, u64::from(bucket - next));
            }
            push_number(&mut bytes, count.min(WIRE_CAP));
            next = bucket + 1;
        }
        base64url::encode(&bytes)
    }

    /// Reads what [`Sketch::encode`] writes; `None` where the text is no sketch of this scale.
    pub(super) fn decode(scale: Scale, text: &str) -> Option<Sketch> {
        let mut bytes = base64url::decode(text)?.into_iter();
        let mut counts = BTreeMap::new();
        let mut bucket = 0;
        while let Some(first) = bytes.next() {
            match take_number(first, &mut bytes)? {
                0 => {
                    let first = bytes.next()?;
                    bucket += take_number(first, &mut bytes)?;
                }
                count => {
                    counts.insert(u16::try_from(bucket).ok().filter(|&b| b < scale.buckets())?, count);
                    bucket += 1;
                }
            }
        }
        Some(Sketch(counts))
    }
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A number of at most three bytes, so that no text can make a sum of them overflow.
fn take_number(first: u8, rest: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut number = u64::from(first & 0x7f);
    let mut last = first;
    for shift in [7, 14] {
        if last & 0x80 == 0 {
            break;
        }
        last = rest.next()?;
        number |= u64::from(last & 0x7f) << shift;
    }
    (last & 0x80 == 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALES: [Scale; 2] = [Scale::positive(1.0, 100.0), Scale::signed(0.1, 1e6)];

    #[test]
    fn neighbouring_bounds_leave_an_error_below_one_percent() {
        assert!(((1.0099_f64 / 0.9901).ln() - LN_GAMMA).abs() < 1e-12);
    }

    #[test]
    fn every_value_in_range_is_within_one_percent_of_its_bucket() {
        for scale in SCALES {
            let mut value = scale.floor * 1.000_001;
            while value < scale.ceiling {
                let told = scale.value(scale.bucket(value));
                assert!((told - value).abs() <= 0.01 * value, "{value} is told as {told}");
                if scale.signed {
                    assert_eq!(scale.value(scale.bucket(-value)), -told);
                }
                value *= 1.0007;
            }
        }
    }

    #[test]
    fn values_out_of_range_fall_into_the_outermost_buckets() {
        let [positive, signed] = SCALES;
        assert_eq!((positive.bucket(0.0), positive.bucket(-7.0), positive.bucket(1.0)), (0, 0, 0));
        assert_eq!(positive.bucket(1e300), positive.buckets() - 1);
        assert_eq!(signed.bucket(-1e300), 0);
        assert_eq!(signed.value(signed.bucket(0.0)), 0.0);
    }

    #[test]
    fn a_sketch_survives_the_wire_and_a_damaged_one_is_refused() {
        let [scale, _] = SCALES;
        let sketch = Sketch([(0, 1), (1, 127), (3, 128), (40, WIRE_CAP), (232, 5)].into());
        assert_eq!(Sketch::decode(scale, &sketch.encode()), Some(sketch));
        assert_eq!(Sketch::decode(scale, ""), Some(Sketch::default()));
        let beyond = Sketch([(scale.buckets(), 1)].into()).encode();
        let endless = base64url::encode(&[0x80, 0x80, 0x80, 0x01]);
        let cut = base64url::encode(&[0x00]);
        for bad in [beyond.as_str(), &endless, &cut, "!"] {
            assert_eq!(Sketch::decode(scale, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_count_beyond_the_wire_is_capped_there_and_nowhere_else() {
        let [scale, _] = SCALES;
        let mut sketch = Sketch([(7, WIRE_CAP)].into());
        sketch.merge(&sketch.clone());
        assert_eq!(sketch.0[&7], 2 * WIRE_CAP);
        assert_eq!(Sketch::decode(scale, &sketch.encode()).unwrap().0[&7], WIRE_CAP);
    }
}
