//! The servers of the golden files and samples: one of each level, on one path.

use nats_config::{LeafListen, LeafRemote, Password, Passwords, ServerOptions, ServerVersion, TlsFiles};

/// Where the fixtures' TLS files are said to be.
pub(crate) const TLS_DIR: &str = "/etc/lucent/tls";
/// Below this the fixtures' servers store.
pub(crate) const STORE_DIR: &str = "/var/lib/lucent";

/// The options of each level's server, by the name of the level, lowest first.
pub(crate) fn servers(version: ServerVersion) -> [(&'static str, ServerOptions); 4] {
    [
        ("node", server(version, "s1/c1/n1", &[], &["c1.lucent.example:7422"])),
        (
            "cluster",
            server(
                version,
                "s1/c1",
                &["s1/c1/n1", "s1/c1/n2"],
                &["s1.lucent.example:7422", "[2001:db8::1]:7422"],
            ),
        ),
        ("site", server(version, "s1", &["s1/c1", "s1/gpu-farm_2"], &["core.lucent.example:7422"])),
        ("global", server(version, "global", &["s1"], &[])),
    ]
}

fn server(version: ServerVersion, path: &str, children: &[&str], parents: &[&str]) -> ServerOptions {
    let password = |of: &str| Password::new(format!("sample-password-of-{of}")).unwrap();
    let passwords = Passwords {
        agent: password("agent"),
        up: password("up"),
        down: password("down"),
        sys: password("sys"),
    };
    let tls = TlsFiles {
        cert: format!("{TLS_DIR}/svid.pem").into(),
        key: format!("{TLS_DIR}/svid.key").into(),
        ca: format!("{TLS_DIR}/bundle.pem").into(),
    };
    let client = "127.0.0.1:4222".parse().unwrap();
    let store = format!("{STORE_DIR}/jetstream");
    ServerOptions {
        pid_file: Some(format!("{STORE_DIR}/nats.pid").into()),
        monitor_listen: Some("127.0.0.1:8222".parse().unwrap()),
        leaf_listen: (!children.is_empty()).then(|| LeafListen {
            address: "0.0.0.0:7422".parse().unwrap(),
            tls: tls.clone(),
            children: children.iter().map(|child| child.parse().unwrap()).collect(),
        }),
        parents: (!parents.is_empty()).then(|| LeafRemote {
            addresses: parents.iter().map(|&address| address.to_owned()).collect(),
            tls: tls.clone(),
            paused: false,
        }),
        ..ServerOptions::new(path.parse().unwrap(), version, "lucent.dev", store, client, passwords)
    }
}
