//! What this machine is doing, measured cheaply: a few small files of the kernel for each sample, and no
//! list of processes.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use hierarchy::{
    Millis,
    rollup::{Health, Load, Reading, Sample, Traffic, Usage, Version},
};
use nix::{libc::fsblkcnt_t, sys::statvfs::statvfs};
use sysinfo::{Components, MINIMUM_CPU_UPDATE_INTERVAL, Networks, System};

/// Measures the machine that the agent runs on.
pub struct Sampler {
    state_dir: PathBuf,
    version: Version,
    system: System,
    networks: Networks,
    components: Components,
    rates: Option<Rates>,
    rates_read: Instant,
}

/// What can only be told from two readings of a counter.
#[derive(Clone, Copy)]
struct Rates {
    cpu_percent: Option<Reading>,
    network: Traffic,
}

impl Sampler {
    /// Takes the first reading of all counters. Fails on platforms that the measurements do not know.
    pub fn new(state_dir: &Path) -> Result<Sampler, sysinfo::Error> {
        let mut system = System::new()?;
        system.refresh_cpu_usage();
        Ok(Sampler {
            state_dir: state_dir.to_owned(),
            version: env!("CARGO_PKG_VERSION").parse().expect("the version of this crate is short and plain"),
            system,
            networks: Networks::new_with_refreshed_list()?,
            components: Components::new_with_refreshed_list()?,
            rates: None,
            rates_read: Instant::now(),
        })
    }

    /// Measures. Processor and network are told as rates since the sample before; they are absent from
    /// samples less than 200 ms after [`Sampler::new`], and repeated in samples less than that after
    /// another, because the kernel's counters are too coarse for shorter times.
    pub fn sample(&mut self, now: Millis, health: Health) -> Sample {
        self.read_rates();
        self.system.refresh_memory();
        self.components.refresh(true);
        Sample {
            taken_at: now,
            version: self.version.clone(),
            health,
            cpu_percent: self.rates.and_then(|rates| rates.cpu_percent),
            memory: Usage { used_bytes: self.system.used_memory(), total_bytes: self.system.total_memory() },
            swap: Usage { used_bytes: self.system.used_swap(), total_bytes: self.system.total_swap() },
            disk: disk_of(&self.state_dir),
            network: self.rates.map(|rates| rates.network),
            load: load(),
            temperature_celsius: self.hottest(),
            uptime_seconds: System::uptime().unwrap_or_default(),
        }
    }

    fn read_rates(&mut self) {
        let elapsed = self.rates_read.elapsed();
        if elapsed < MINIMUM_CPU_UPDATE_INTERVAL {
            return;
        }
        self.system.refresh_cpu_usage();
        self.networks.refresh(true);
        self.rates_read = Instant::now();

        let outside = self.networks.iter().filter(|(name, _)| !matches!(name.to_str(), Some("lo" | "lo0")));
        let (received, transmitted) =
            outside.fold((0_u64, 0_u64), |(received, transmitted), (_, counters)| {
                (
                    received.saturating_add(counters.received()),
                    transmitted.saturating_add(counters.transmitted()),
                )
            });
        let per_second = |bytes: u64| (bytes as f64 / elapsed.as_secs_f64()) as u64;
        self.rates = Some(Rates {
            cpu_percent: reading(self.system.global_cpu_usage()),
            network: Traffic {
                receive_bytes_per_second: per_second(received),
                transmit_bytes_per_second: per_second(transmitted),
            },
        });
    }

    fn hottest(&self) -> Option<Reading> {
        // A sensor that cannot be read tells a number that is none, which `reading` sorts out.
        let readings = self.components.iter().filter_map(|sensor| reading(sensor.temperature()?));
        readings.max_by(|a, b| f64::from(*a).total_cmp(&f64::from(*b)))
    }
}

/// The file system that holds `dir`, as `df` counts it: space that is set aside for the superuser is
/// neither used nor there. One call, where a list of all disks would touch every mount, also one whose
/// server is gone.
fn disk_of(dir: &Path) -> Option<Usage> {
    let disk = statvfs(dir).ok()?;
    #[allow(clippy::unnecessary_cast, reason = "these numbers are narrower on 32-bit machines")]
    let bytes = |blocks: fsblkcnt_t| (blocks as u64).saturating_mul(disk.fragment_size() as u64);
    let used_bytes = bytes(disk.blocks().saturating_sub(disk.blocks_free()));
    let total_bytes = used_bytes.saturating_add(bytes(disk.blocks_available()));
    Some(Usage { used_bytes, total_bytes })
}

fn load() -> Option<Load> {
    let load = System::load_average().ok()?;
    Some(Load { one: reading(load.one)?, five: reading(load.five)?, fifteen: reading(load.fifteen)? })
}

fn reading(value: impl Into<f64>) -> Option<Reading> {
    Reading::try_from(value.into()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Millis = Millis(1_756_809_000_123);

    #[test]
    fn what_needs_two_readings_is_absent_from_the_first_sample_and_plausible_later() {
        let mut sampler = Sampler::new(Path::new("/")).unwrap();
        let first = sampler.sample(NOW, Health::Ok);
        // A machine that stood still for 200 ms in between has told the truth as well.
        assert!(first.cpu_percent.is_none() || sampler.rates_read.elapsed() < Duration::from_millis(100));

        let deadline = Instant::now() + Duration::from_secs(30);
        let later = loop {
            let sample = sampler.sample(NOW, Health::Degraded);
            if sample.cpu_percent.is_some() {
                break sample;
            }
            assert!(Instant::now() < deadline, "no reading of the processors in 30 s");
            std::thread::sleep(Duration::from_millis(20));
        };
        let cpu = f64::from(later.cpu_percent.unwrap());
        assert!((0.0..=100.0).contains(&cpu), "{cpu} %");
        let network = later.network.unwrap();
        // 10 Tbit/s.
        assert!(network.receive_bytes_per_second < 1_250_000_000_000, "{network:?}");
        assert_eq!((later.taken_at, later.health), (NOW, Health::Degraded));
    }

    #[test]
    fn memory_disk_load_and_uptime_are_plausible_at_once() {
        let sample = Sampler::new(Path::new("/")).unwrap().sample(NOW, Health::Ok);
        let disk = sample.disk.unwrap();
        for usage in [sample.memory, disk] {
            assert!(usage.used_bytes > 0 && usage.used_bytes < usage.total_bytes, "{usage:?}");
        }
        assert!(sample.swap.used_bytes <= sample.swap.total_bytes);
        assert!(f64::from(sample.load.unwrap().one) >= 0.0);
        assert!(sample.uptime_seconds > 0);
        if let Some(temperature) = sample.temperature_celsius {
            assert!((-60.0..=150.0).contains(&f64::from(temperature)), "{temperature:?}");
        }
    }

    #[test]
    fn a_state_directory_that_is_not_there_leaves_the_disk_out() {
        let sample = Sampler::new(Path::new("/nowhere/at/all")).unwrap().sample(NOW, Health::Ok);
        assert_eq!(sample.disk, None);
    }
}
