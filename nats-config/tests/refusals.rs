//! Options that become no configuration, and what is said about them.

#![allow(clippy::unwrap_used)]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::time::Duration;

use nats_config::{RenderError, ServerOptions, ServerVersion, SyncPolicy, render};

fn server(level: &str) -> ServerOptions {
    let mut all = fixtures::servers(ServerVersion::new(2, 14, 5)).into_iter();
    all.find(|(name, _)| *name == level).unwrap().1
}

/// Why the server of `level` gets no configuration after `change`.
fn refusal(level: &str, change: impl FnOnce(&mut ServerOptions)) -> RenderError {
    let mut options = server(level);
    change(&mut options);
    render(&options).unwrap_err()
}

#[test]
fn listeners_without_passwords_stay_on_the_machine() {
    for open in ["0.0.0.0:4222", "10.0.0.1:4222", "[::]:4222"] {
        let client = refusal("node", |o| o.client_listen = open.parse().unwrap());
        assert!(matches!(client, RenderError::NotLoopback { key: "client_listen", .. }), "{client}");
        let monitor = refusal("node", |o| o.monitor_listen = Some(open.parse().unwrap()));
        assert!(matches!(monitor, RenderError::NotLoopback { key: "monitor_listen", .. }), "{monitor}");
    }
    let mut options = server("node");
    options.client_listen = "[::1]:4222".parse().unwrap();
    assert!(render(&options).unwrap().contains(r#"listen: "[::1]:4222""#));
}

#[test]
fn every_port_is_chosen_by_the_caller() {
    let error = refusal("node", |o| o.client_listen.set_port(0));
    assert_eq!(error.to_string(), "client_listen has port 0: choose a port");
    let error = refusal("site", |o| o.leaf_listen.as_mut().unwrap().address.set_port(0));
    assert_eq!(error, RenderError::NoPort { key: "leaf_listen" });
}

#[test]
fn only_direct_children_and_parents_that_exist_are_written() {
    for stranger in ["s2/c1", "s1", "s1/c1/n1", "global"] {
        let error = refusal("site", |o| {
            o.leaf_listen.as_mut().unwrap().children.push(stranger.parse().unwrap());
        });
        assert!(matches!(error, RenderError::NotAChild { .. }), "{stranger}: {error}");
    }
    let listen = server("site").leaf_listen;
    assert_eq!(refusal("node", |o| o.leaf_listen = listen), RenderError::NodeHasNoChildren);
    let parents = server("site").parents;
    assert_eq!(refusal("global", |o| o.parents = parents), RenderError::CoreHasNoParent);
    let none = refusal("site", |o| o.parents.as_mut().unwrap().addresses.clear());
    assert_eq!(none, RenderError::NoParentAddress);
}

#[test]
fn nothing_hostile_reaches_the_text() {
    let error = refusal("node", |o| o.store_dir = "/tmp/x\"\n}\ndebug: true".into());
    assert!(matches!(error, RenderError::Unwritable { key: "store_dir", .. }), "{error}");
    let error = refusal("node", |o| o.parents.as_mut().unwrap().tls.ca = "/ca\0".into());
    assert!(matches!(error, RenderError::Unwritable { key: "ca_file", .. }), "{error}");
    for domain in ["", "Lucent.dev", "lucent.dev/mesh", "a b", "x\"", &"a".repeat(256)] {
        let error = refusal("site", |o| o.trust_domain = domain.to_owned());
        assert!(matches!(error, RenderError::TrustDomain(_)), "{domain}: {error}");
    }
    let error = refusal("node", |o| o.parents.as_mut().unwrap().addresses[0] = "u:p@evil\n:1".into());
    assert!(matches!(error, RenderError::ParentAddress(_)), "{error}");
}

#[test]
fn numbers_have_bounds_and_say_so() {
    let out_of_range = |change: fn(&mut ServerOptions), key: &str| {
        let error = refusal("site", change);
        assert!(error.to_string().starts_with(&format!("{key} ")), "{key}: {error}");
        assert!(matches!(error, RenderError::OutOfRange { .. }), "{key}: {error}");
    };
    out_of_range(|o| o.max_file_store = 0, "max_file_store");
    out_of_range(|o| o.max_file_store = u64::MAX, "max_file_store");
    out_of_range(|o| o.max_memory_store = u64::MAX, "max_memory_store");
    out_of_range(|o| o.max_payload = (64 << 20) + 1, "max_payload");
    out_of_range(|o| o.ping_max = 0, "ping_max");
    out_of_range(|o| o.ping_interval = Duration::ZERO, "ping_interval");
    out_of_range(|o| o.reconnect = Duration::from_micros(1), "reconnect");
    out_of_range(|o| o.write_deadline = Duration::MAX, "write_deadline");
    out_of_range(|o| o.lame_duck = Duration::from_secs(29), "lame_duck");
    out_of_range(|o| o.sync = SyncPolicy::Every(Duration::ZERO), "sync");
}
