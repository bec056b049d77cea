//! What is left of many values of one metric.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{Metric, Micros, sketch::Sketch};

/// Count, extremes, sum and distribution of the values of one metric. There is none of no values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "Wire")]
pub struct Summary {
    metric: Metric,
    count: u64,
    min: Micros,
    max: Micros,
    sum: Micros,
    sketch: Sketch,
}

impl Summary {
    /// The summary of one value.
    pub(super) fn of(metric: Metric, value: Micros) -> Summary {
        let mut sketch = Sketch::default();
        if let Some(scale) = metric.scale() {
            sketch.add(scale, value.as_f64());
        }
        Summary { metric, count: 1, min: value, max: value, sum: value, sketch }
    }

    /// Takes in the values of another summary of the same metric.
    pub(super) fn merge(&mut self, other: &Summary) {
        self.count = self.count.saturating_add(other.count);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.plus(other.sum);
        self.sketch.merge(&other.sketch);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least value.
    pub fn min(&self) -> f64 {
        self.min.as_f64()
    }

    /// The greatest value.
    pub fn max(&self) -> f64 {
        self.max.as_f64()
    }

    /// The sum of all values, exact to a millionth for each.
    pub fn sum(&self) -> Micros {
        self.sum
    }

    /// The arithmetic mean; never beyond the extremes, whatever rounding makes of equal values.
    pub fn mean(&self) -> f64 {
        (self.sum.as_f64() / self.count as f64).max(self.min()).min(self.max())
    }

    /// The value that a part `q` (0 to 1) of all values do not exceed: the median at 0.5. It is within
    /// 1 % of the value of rank `ceil(q * count)` where that lies inside the metric's range; smaller ones
    /// are told as nought, larger ones as the end of the range, but never beyond the extremes seen.
    /// `None` for a metric that keeps no distribution.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let told = self.sketch.quantile(self.metric.scale()?, q)?;
        // Not `clamp`, which panics should the bounds ever be out of order.
        Some(told.max(self.min()).min(self.max()))
    }

    /// Longer in JSON than any other of this metric.
    #[cfg(test)]
    pub(super) fn largest(metric: Metric) -> Summary {
        let sketch = metric.scale().map_or_else(Sketch::default, Sketch::full);
        let [extreme, sum] = Micros::LONGEST;
        Summary { metric, count: u64::MAX, min: extreme, max: extreme, sum, sketch }
    }
}

/// A summary as it stands in JSON, where the metric is its key.
#[derive(Serialize, Deserialize)]
struct Wire {
    count: u64,
    min: Micros,
    max: Micros,
    sum: Micros,
    /// See [`Sketch::encode`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    buckets: String,
}

impl From<Summary> for Wire {
    fn from(summary: Summary) -> Self {
        let Summary { count, min, max, sum, sketch, .. } = summary;
        Wire { count, min, max, sum, buckets: sketch.encode() }
    }
}

impl Wire {
    /// `None` where the figures contradict each other. Whoever sends them is signed for, but no figure
    /// may do harm to what it is merged into.
    fn into_summary(self, metric: Metric) -> Option<Summary> {
        let Wire { count, min, max, sum, buckets } = self;
        let ordered = count > 0 && Micros::LEAST <= min && min <= max && max <= Micros::GREATEST;
        let sound = ordered && min.times(count)? <= sum && sum <= max.times(count)?;
        let sketch = match metric.scale() {
            Some(scale) => Sketch::decode(scale, &buckets)?,
            None => Sketch::default(),
        };
        sound.then_some(Summary { metric, count, min, max, sum, sketch })
    }
}

/// Reads summaries by metric. A metric that this version does not know is left out: levels are not
/// upgraded all at once.
pub(super) fn read_map<'de, D>(deserializer: D) -> Result<BTreeMap<Metric, Summary>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut wires = BTreeMap::<String, Wire>::deserialize(deserializer)?;
    let known = Metric::ALL.into_iter().filter_map(|metric| Some((metric, wires.remove(metric.as_str())?)));
    known
        .map(|(metric, wire)| {
            let summary = wire.into_summary(metric);
            summary.map(|summary| (metric, summary)).ok_or(metric)
        })
        .collect::<Result<_, Metric>>()
        .map_err(|metric| {
            D::Error::custom(format_args!("the figures of {} contradict each other", metric.as_str()))
        })
}
