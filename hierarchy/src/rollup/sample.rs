//! What one agent measures of its machine at one time.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Metric, Micros};
use crate::Millis;

/// What an agent measured of its machine, as it publishes it. What it could not measure is absent, not
/// nought. Fields that this version does not know are ignored: levels are not upgraded all at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// When, on the machine's own clock, which may be wrong.
    pub taken_at: Millis,
    /// The agent's version.
    pub version: Version,
    /// How the agent says it fares.
    pub health: Health,
    /// How busy all processors together were since the sample before, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<Reading>,
    /// The machine's memory.
    pub memory: Usage,
    /// The machine's swap; a total of 0 where there is none.
    pub swap: Usage,
    /// The disk that holds the state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Usage>,
    /// Traffic of all network interfaces but loopback since the sample before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Traffic>,
    /// Load averages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// The hottest sensor, in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<Reading>,
    /// Time since the machine started.
    pub uptime_seconds: u64,
}

/// How an agent fares, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is well.
    #[default]
    Ok,
    /// It does its work, but something needs looking after.
    Degraded,
    /// It does not do its work.
    Failing,
}

/// How much of something there is, and how much of that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// All there is.
    pub total_bytes: u64,
}

/// Network traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// In.
    pub receive_bytes_per_second: u64,
    /// Out.
    pub transmit_bytes_per_second: u64,
}

/// How many processes ran or waited to run, averaged over a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Over one minute.
    pub one: Reading,
    /// Over five minutes.
    pub five: Reading,
    /// Over fifteen minutes.
    pub fifteen: Reading,
}

/// A measured number: finite, and no larger than 10^12 either way.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Reading(f64);

/// A number that nothing measured.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not a measured number: it must be finite and at most 1e12 either way")]
pub struct NotAReading(pub f64);

/// A software version: 1 to 32 characters of `A-Z a-z 0-9 . + - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(Arc<str>);

/// A text that is not a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version has 1 to 32 characters of A-Z, a-z, 0-9, `.`, `+`, `-` and `_`")]
pub struct BadVersion;

impl Sample {
    /// The sample's values by metric.
    pub(super) fn values(&self) -> impl Iterator<Item = (Metric, Micros)> {
        let disk_bytes = |of: fn(Usage) -> u64| self.disk.map(of).map(Micros::from);
        let traffic = |of: fn(Traffic) -> u64| self.network.map(of).map(Micros::from);
        let load = |of: fn(Load) -> Reading| self.load.map(of).map(Micros::from);
        [
            (Metric::CpuPercent, self.cpu_percent.map(Micros::from)),
            (Metric::MemoryPercent, self.memory.percent()),
            (Metric::MemoryUsedBytes, Some(self.memory.used_bytes.into())),
            (Metric::MemoryTotalBytes, Some(self.memory.total_bytes.into())),
            (Metric::SwapUsedBytes, Some(self.swap.used_bytes.into())),
            (Metric::DiskPercent, self.disk.and_then(Usage::percent)),
            (Metric::DiskUsedBytes, disk_bytes(|disk| disk.used_bytes)),
            (Metric::DiskTotalBytes, disk_bytes(|disk| disk.total_bytes)),
            (Metric::ReceiveBytesPerSecond, traffic(|t| t.receive_bytes_per_second)),
            (Metric::TransmitBytesPerSecond, traffic(|t| t.transmit_bytes_per_second)),
            (Metric::Load1, load(|load| load.one)),
            (Metric::Load5, load(|load| load.five)),
            (Metric::Load15, load(|load| load.fifteen)),
            (Metric::TemperatureCelsius, self.temperature_celsius.map(Micros::from)),
            (Metric::UptimeSeconds, Some(self.uptime_seconds.into())),
        ]
        .into_iter()
        .filter_map(|(metric, value)| Some((metric, value?)))
    }
}

impl Usage {
    /// The part in use, unless there is nothing to use.
    fn percent(self) -> Option<Micros> {
        if self.total_bytes == 0 {
            return None;
        }
        let part = self.used_bytes as f64 / self.total_bytes as f64;
        Reading::try_from(part * 100.0).ok().map(Micros::from)
    }
}

impl TryFrom<f64> for Reading {
    type Error = NotAReading;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        // Not a number compares as false, and so is refused.
        if value.abs() <= 1e12 { Ok(Reading(value)) } else { Err(NotAReading(value)) }
    }
}

impl From<Reading> for f64 {
    fn from(reading: Reading) -> Self {
        reading.0
    }
}

impl Version {
    /// The version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_');
        let sound = (1..=32).contains(&s.len()) && s.bytes().all(legal);
        if sound { Ok(Version(s.into())) } else { Err(BadVersion) }
    }
}

impl TryFrom<String> for Version {
    type Error = BadVersion;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0.as_ref().to_owned()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"takenAt":1756809000123,"version":"0.1.0","health":"degraded","cpuPercent":12.5,
        "memory":{"usedBytes":1,"totalBytes":4},"swap":{"usedBytes":0,"totalBytes":0},"uptimeSeconds":60}"#;

    #[test]
    fn nothing_but_finite_numbers_becomes_a_reading() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e13, -1e13] {
            assert!(Reading::try_from(bad).is_err(), "{bad} was accepted");
        }
        for bad in ["1e999", "NaN", "1e13", "\"1\""] {
            let json = JSON.replace("12.5", bad);
            assert!(serde_json::from_str::<Sample>(&json).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn what_was_not_measured_is_no_value_and_no_swap_is_no_percentage() {
        let sample: Sample = serde_json::from_str(JSON).unwrap();
        let values: Vec<_> = sample.values().map(|(metric, v)| (metric.as_str(), v.to_string())).collect();
        let expected = [
            ("cpuPercent", "12.5"),
            ("memoryPercent", "25"),
            ("memoryUsedBytes", "1"),
            ("memoryTotalBytes", "4"),
            ("swapUsedBytes", "0"),
            ("uptimeSeconds", "60"),
        ];
        assert_eq!(values, expected.map(|(metric, value)| (metric, value.to_owned())));
        let empty_disk = Usage { used_bytes: 0, total_bytes: 0 };
        assert_eq!(empty_disk.percent(), None);
    }

    #[test]
    fn health_is_ordered_worst_last() {
        assert!(Health::Ok < Health::Degraded && Health::Degraded < Health::Failing);
    }

    #[test]
    fn versions_outside_the_alphabet_are_refused() {
        for bad in ["", "1 0", "é", "1/0", &"1".repeat(33)] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?} was accepted");
        }
        assert!("1.0.0-rc.1+g12_3".parse::<Version>().is_ok());
    }
}
