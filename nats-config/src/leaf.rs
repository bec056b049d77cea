//! The leaf connections: where children arrive and where the parent is.

use std::{collections::BTreeSet, time::Duration};

use hierarchy::Path;

use crate::{
    names::UP,
    options::{LeafListen, LeafRemote, ServerOptions, TlsFiles},
    syntax::Writer,
    version::Feature,
};

/// Room for a TLS handshake and a greeting over a slow link; the server's own are 2 s and 1 s.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long the listener waits for a handshake before it greets first, as older servers expect.
const HANDSHAKE_FIRST: Duration = Duration::from_millis(300);
/// `s2_fast` halves the bytes for some 6 % of the throughput; `s2_best` would halve the throughput.
const COMPRESSION: &str = "s2_fast";

/// The `leafnodes` block, unless the server has neither children nor a parent.
pub(crate) fn write(w: &mut Writer, options: &ServerOptions) {
    if options.leaf_listen.is_none() && options.parents.is_none() {
        return;
    }
    w.block("leafnodes", |w| {
        if let Some(listen) = &options.leaf_listen {
            write_listener(w, options, listen);
        }
        w.note("The pause between attempts to reach the parent: the time that fail-over takes.");
        if options.version.has(Feature::PreciseReconnect) {
            w.duration("reconnect", options.reconnect);
        } else {
            w.plain("reconnect", options.reconnect.as_millis().div_ceil(1000));
        }
        if let Some(remote) = &options.parents {
            w.list("remotes", |w| w.item(|w| write_remote(w, options, remote)));
        }
    });
    w.gap();
}

/// The children that the server admits, each once and always in the same order, so that a reload
/// changes only what changed.
pub(crate) fn children(options: &ServerOptions) -> BTreeSet<&Path> {
    options.leaf_listen.iter().flat_map(|listen| &listen.children).collect()
}

fn write_listener(w: &mut Writer, options: &ServerOptions, listen: &LeafListen) {
    w.text("listen", &listen.address.to_string());
    w.note("Servers of a cluster do not tell children of each other.");
    w.plain("no_advertise", true);
    if options.version.has(Feature::IsolateLeafInterest) {
        w.note("A child cannot cut its sibling off by echoing the subject that detects loops.");
        w.plain("isolate_leafnode_interest", true);
    }
    write_compression(w, options);
    w.block("tls", |w| {
        write_tls_files(w, &listen.tls);
        w.note("The URI in a child's certificate is its user name in DOWN.");
        w.plain("verify_and_map", true);
        w.plain("timeout", HANDSHAKE.as_secs());
        if options.version.has(Feature::HandshakeFirst) {
            w.duration("handshake_first", HANDSHAKE_FIRST);
        }
    });
}

fn write_remote(w: &mut Writer, options: &ServerOptions, remote: &LeafRemote) {
    let urls: Vec<_> = remote.addresses.iter().map(|address| format!("tls://{address}")).collect();
    w.texts("urls", &urls);
    w.note("In the order written: the first is the parent, the others stand in.");
    w.plain("no_randomize", true);
    if options.version.has(Feature::IgnoreDiscoveredServers) {
        w.note("Only these: the address that the parent takes for its own need not be in its certificate.");
        w.plain("ignore_discovered_servers", true);
    }
    w.text("account", UP);
    if remote.paused && options.version.has(Feature::PausedRemotes) {
        w.plain("disabled", true);
    }
    write_compression(w, options);
    if options.version.has(Feature::FirstInfoTimeout) {
        w.duration("first_info_timeout", HANDSHAKE);
    }
    w.block("tls", |w| {
        write_tls_files(w, &remote.tls);
        w.plain("timeout", HANDSHAKE.as_secs());
    });
}

fn write_compression(w: &mut Writer, options: &ServerOptions) {
    if options.version.has(Feature::LeafCompression) {
        w.text("compression", COMPRESSION);
    }
}

fn write_tls_files(w: &mut Writer, tls: &TlsFiles) {
    w.file("cert_file", &tls.cert);
    w.file("key_file", &tls.key);
    w.file("ca_file", &tls.ca);
}
