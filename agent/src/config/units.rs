//! Texts with units: durations, sizes, addresses with host names.

use std::{fmt, str::FromStr, time::Duration};

/// Nanoseconds in each unit, largest first.
const DURATION_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];

/// Bytes in each unit, largest first within each family.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Parses a whole number with a unit: `500us`, `2ms`, `5s`, `10m`, `24h`, `7d`.
///
/// A number without a unit is refused: nobody can see whether it means seconds or milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    number_with_unit(text, &DURATION_UNITS).map(Duration::from_nanos).ok_or_else(|| {
        format!("`{text}` is no duration: write a whole number and us, ms, s, m, h or d, as in 30s")
    })
}

/// Parses a number of bytes, bare or with a unit: `1048576`, `128KiB`, `10GiB`, `5MB`.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| number_with_unit(text, &SIZE_UNITS))
}

/// `number × unit`, unless that is no number, no unit, or more than a `u64` holds.
fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A size in the largest unit that leaves no fraction.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE_UNITS)
}

/// A duration in the largest unit that leaves no fraction.
pub(super) fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), &DURATION_UNITS)
}

fn show(number: u64, units: &[(&str, u64)]) -> String {
    match units.iter().find(|(_, factor)| number >= *factor && number.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", number / factor),
        None => number.to_string(),
    }
}

/// A host, by name or address, and a port other than 0: where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A DNS name or an IP address, the latter without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or(())?;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => {
                let address = bracketed.strip_suffix(']').ok_or(())?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| ())?;
                address
            }
            None => host,
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
        let is_name = (1..=253).contains(&host.len()) && host.bytes().all(legal);
        let is_address = text.starts_with('[');
        if is_name || is_address { Ok(HostPort { host: host.to_owned(), port }) } else { Err(()) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in
            [("2ms", 2), ("5s", 5_000), ("10 m", 600_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "1.5s", "5 parsecs", "99999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes_know_binary_and_decimal_units_and_bare_bytes() {
        let cases = [("128KiB", 131_072), ("10 GiB", 10 << 30), ("5MB", 5_000_000), ("7", 7), ("7B", 7)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in ["", "MiB", "1.5GiB", "-1", "10gib", "99999999999TiB"] {
            assert_eq!(parse_size(bad), None, "{bad:?} was accepted");
        }
    }

    #[test]
    fn what_is_shown_is_what_would_be_parsed() {
        for text in ["128KiB", "1TiB", "3B", "5MB"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
        for text in ["500us", "2ms", "90s", "1h", "7d"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn a_parent_has_a_host_and_a_port() {
        for good in ["cluster.example:7422", "10.0.0.1:1", "[2001:db8::1]:7422"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "cluster",
            "cluster:",
            ":7422",
            "h:0",
            "h:70000",
            "a b:1",
            "tls://h:1",
            "::1:7422",
            "[x]:1",
            "[::1:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?} was accepted");
        }
    }
}
