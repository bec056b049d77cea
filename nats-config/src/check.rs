//! What options must fulfil before a configuration is written for them.

use std::{net::SocketAddr, time::Duration};

use hierarchy::Level;

use crate::{
    error::{RenderError, shown},
    options::{LeafListen, LeafRemote, ServerOptions, SyncPolicy},
};

const MIB: u64 = 1 << 20;

impl ServerOptions {
    /// The first thing that is wrong with these options, if any. Rendering checks by itself.
    pub fn check(&self) -> Result<(), RenderError> {
        trust_domain(&self.trust_domain)?;
        match self.local_password {
            Some(_) => port("client_listen", self.client_listen)?,
            None => private_listener("client_listen", self.client_listen)?,
        }
        if let Some(monitor) = self.monitor_listen {
            private_listener("monitor_listen", monitor)?;
        }
        self.check_bounds()?;
        if let Some(listen) = &self.leaf_listen {
            self.check_children(listen)?;
        }
        if let Some(remote) = &self.parents {
            self.check_parents(remote)?;
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), RenderError> {
        // The server reads sizes as signed numbers.
        let most = i64::MAX as u64;
        bytes("max_memory_store", self.max_memory_store, 0, most)?;
        bytes("max_file_store", self.max_file_store, 64 * MIB, most)?;
        // Above 64 MiB a message would exceed what the server keeps pending for one connection.
        bytes("max_payload", self.max_payload.into(), MIB / 16, 64 * MIB)?;
        if !(1..=100).contains(&self.ping_max) {
            return Err(out_of_range("ping_max", self.ping_max, 1, 100));
        }
        duration("ping_interval", self.ping_interval, Duration::from_millis(100))?;
        duration("reconnect", self.reconnect, Duration::from_millis(50))?;
        duration("write_deadline", self.write_deadline, Duration::from_millis(100))?;
        // The server itself refuses less.
        duration("lame_duck", self.lame_duck, Duration::from_secs(30))?;
        match self.sync {
            SyncPolicy::Every(interval) => duration("sync", interval, Duration::from_millis(1)),
            SyncPolicy::ServerDefault | SyncPolicy::Always => Ok(()),
        }
    }

    fn check_children(&self, listen: &LeafListen) -> Result<(), RenderError> {
        if self.path.level() == Level::Node {
            return Err(RenderError::NodeHasNoChildren);
        }
        port("leaf_listen", listen.address)?;
        match listen.children.iter().find(|child| child.parent().as_ref() != Some(&self.path)) {
            None => Ok(()),
            Some(child) => Err(RenderError::NotAChild {
                child: child.clone(),
                level: self.path.level(),
                path: self.path.clone(),
            }),
        }
    }

    fn check_parents(&self, remote: &LeafRemote) -> Result<(), RenderError> {
        if self.path.level() == Level::Global {
            return Err(RenderError::CoreHasNoParent);
        }
        if remote.addresses.is_empty() {
            return Err(RenderError::NoParentAddress);
        }
        match remote.addresses.iter().find(|address| !is_host_and_port(address)) {
            None => Ok(()),
            Some(address) => Err(RenderError::ParentAddress(shown(address))),
        }
    }
}

fn trust_domain(text: &str) -> Result<(), RenderError> {
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let accepted = (1..=255).contains(&text.len()) && text.bytes().all(legal);
    accepted.then_some(()).ok_or_else(|| RenderError::TrustDomain(shown(text)))
}

fn private_listener(key: &'static str, address: SocketAddr) -> Result<(), RenderError> {
    port(key, address)?;
    let private = address.ip().is_loopback();
    private.then_some(()).ok_or(RenderError::NotLoopback { key, address })
}

fn port(key: &'static str, address: SocketAddr) -> Result<(), RenderError> {
    if address.port() == 0 { Err(RenderError::NoPort { key }) } else { Ok(()) }
}

/// Whether `address` is a DNS name, an IPv4 address or an IPv6 address in brackets, and a port. It is
/// to become part of a URL, so nothing else may slip in.
fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let named = || {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        (1..=253).contains(&host.len()) && host.bytes().all(legal)
    };
    digits
        && port.parse::<u16>().is_ok_and(|port| port != 0)
        && (named() || (address.parse::<SocketAddr>().is_ok_and(|a| a.is_ipv6()) && !address.contains('%')))
}

fn bytes(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), RenderError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(|n| format!("{n} bytes"));
    Err(out_of_range(key, value, least, most))
}

fn duration(key: &'static str, value: Duration, least: Duration) -> Result<(), RenderError> {
    let most = Duration::from_secs(3600);
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(|d| format!("{d:?}"));
    Err(out_of_range(key, value, least, most))
}

fn out_of_range<T: ToString>(key: &'static str, value: T, least: T, most: T) -> RenderError {
    RenderError::OutOfRange {
        key,
        value: value.to_string(),
        least: least.to_string(),
        most: most.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_become_part_of_a_url() {
        for good in ["c1.example.net:7422", "10.0.0.1:1", "[2001:db8::1]:7422", "c_1:65535"] {
            assert!(is_host_and_port(good), "{good:?} was refused");
        }
        let long = format!("{}:1", "a".repeat(254));
        for bad in [
            "",
            "c1",
            ":7422",
            "c1:",
            "c1:0",
            "c1:65536",
            "c1:+1",
            "user:pw@c1:7422",
            "tls://c1:7422",
            "c1:7422/x",
            "c 1:7422",
            "2001:db8::1:7422",
            "[c1]:7422",
            "[fe80::1%1]:7422",
            "c1\n:7422",
            "é:1",
            &long,
        ] {
            assert!(!is_host_and_port(bad), "{bad:?} was accepted");
        }
    }
}
