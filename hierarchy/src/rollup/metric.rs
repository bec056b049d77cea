//! What is measured of a machine, by name.

use serde::{Deserialize, Serialize};

use super::sketch::Scale;

/// One thing measured of a machine. Bytes are bytes, percentages 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// How busy all processors together are, in percent.
    CpuPercent,
    /// Part of the memory that is in use, in percent.
    MemoryPercent,
    /// Memory in use.
    MemoryUsedBytes,
    /// Memory built in.
    MemoryTotalBytes,
    /// Swap in use.
    SwapUsedBytes,
    /// Part of the state directory's disk that is in use, in percent.
    DiskPercent,
    /// Bytes in use on the state directory's disk.
    DiskUsedBytes,
    /// Size of the state directory's disk.
    DiskTotalBytes,
    /// Network traffic in.
    ReceiveBytesPerSecond,
    /// Network traffic out.
    TransmitBytesPerSecond,
    /// Load average of one minute.
    Load1,
    /// Load average of five minutes.
    Load5,
    /// Load average of fifteen minutes.
    Load15,
    /// The hottest sensor, in degrees Celsius.
    TemperatureCelsius,
    /// Time since the machine started; the least of a roll-up shows a restart.
    UptimeSeconds,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Metric; 15] = [
        Metric::CpuPercent,
        Metric::MemoryPercent,
        Metric::MemoryUsedBytes,
        Metric::MemoryTotalBytes,
        Metric::SwapUsedBytes,
        Metric::DiskPercent,
        Metric::DiskUsedBytes,
        Metric::DiskTotalBytes,
        Metric::ReceiveBytesPerSecond,
        Metric::TransmitBytesPerSecond,
        Metric::Load1,
        Metric::Load5,
        Metric::Load15,
        Metric::TemperatureCelsius,
        Metric::UptimeSeconds,
    ];

    /// The metric's name as it stands in a roll-up.
    pub const fn as_str(self) -> &'static str {
        match self {
            Metric::CpuPercent => "cpuPercent",
            Metric::MemoryPercent => "memoryPercent",
            Metric::MemoryUsedBytes => "memoryUsedBytes",
            Metric::MemoryTotalBytes => "memoryTotalBytes",
            Metric::SwapUsedBytes => "swapUsedBytes",
            Metric::DiskPercent => "diskPercent",
            Metric::DiskUsedBytes => "diskUsedBytes",
            Metric::DiskTotalBytes => "diskTotalBytes",
            Metric::ReceiveBytesPerSecond => "receiveBytesPerSecond",
            Metric::TransmitBytesPerSecond => "transmitBytesPerSecond",
            Metric::Load1 => "load1",
            Metric::Load5 => "load5",
            Metric::Load15 => "load15",
            Metric::TemperatureCelsius => "temperatureCelsius",
            Metric::UptimeSeconds => "uptimeSeconds",
        }
    }

    /// The range in which quantiles of this metric are exact to 1 %. Metrics without one are asked for
    /// sum, mean and extremes; the budget of a roll-up's size goes to those that people alarm on.
    pub(super) const fn scale(self) -> Option<Scale> {
        match self {
            Metric::CpuPercent | Metric::MemoryPercent | Metric::DiskPercent => {
                Some(Scale::positive(1.0, 100.0))
            }
            // 10 kB/s to a line of 100 Gbit/s.
            Metric::ReceiveBytesPerSecond | Metric::TransmitBytesPerSecond => {
                Some(Scale::positive(1e4, 1.25e10))
            }
            Metric::Load1 => Some(Scale::positive(0.1, 256.0)),
            Metric::TemperatureCelsius => Some(Scale::signed(1.0, 128.0)),
            Metric::MemoryUsedBytes
            | Metric::MemoryTotalBytes
            | Metric::SwapUsedBytes
            | Metric::DiskUsedBytes
            | Metric::DiskTotalBytes
            | Metric::Load5
            | Metric::Load15
            | Metric::UptimeSeconds => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_one_name() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.as_str());
        }
    }
}
