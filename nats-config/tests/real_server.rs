//! A real nats-server reads what is written: `LUCENT_NATS_SERVER`, or else the one on `PATH`.
//! Without any these tests say that they were skipped.

#![allow(clippy::unwrap_used)]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use fixtures::{STORE_DIR, TLS_DIR, servers};
use nats_config::{ServerVersion, render};

/// The server to ask and its version, or `None` after saying why.
fn nats_server() -> Option<(PathBuf, ServerVersion)> {
    let candidates = match env::var_os("LUCENT_NATS_SERVER") {
        Some(named) => vec![PathBuf::from(named)],
        None => {
            let path = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&path).map(|folder| folder.join("nats-server")).collect()
        }
    };
    let Some(server) = candidates.into_iter().find(|file| file.is_file()) else {
        eprintln!("SKIPPED: no nats-server found; put one on PATH or name it in LUCENT_NATS_SERVER");
        return None;
    };
    let output = Command::new(&server).arg("--version").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    Some((server, version))
}

/// What the server says of `configuration` when it only tests it, if it refuses.
fn objection(server: &Path, folder: &Path, configuration: &str) -> Option<String> {
    let file = folder.join("server.conf");
    fs::write(&file, configuration).unwrap();
    let output = Command::new(server).arg("-c").arg(&file).arg("-t").output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A certificate of its own, in the files that the fixtures name.
fn write_tls_files(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::create_dir_all(folder).unwrap();
    for (name, text) in
        [("svid.pem", cert.pem()), ("svid.key", key.serialize_pem()), ("bundle.pem", cert.pem())]
    {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn a_server_accepts_what_is_written_for_its_version() {
    let Some((server, found)) = nats_server() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls");
    write_tls_files(&tls);
    for (level, options) in servers(found) {
        let text = render(&options).unwrap();
        let text = text.replace(TLS_DIR, tls.to_str().unwrap());
        let text = text.replace(STORE_DIR, folder.path().to_str().unwrap());
        let objection = objection(&server, folder.path(), &text);
        assert_eq!(objection, None, "{found} refuses what was written for {level}");
    }
}

#[test]
fn a_server_finds_files_whose_names_are_hostile() {
    let Some((server, found)) = nats_server() else { return };
    let folder = tempfile::tempdir().unwrap();
    let hostile = folder.path().join(r#"a "b" } debug: [ \x41 $HOME # // ; 'é' \"#);
    write_tls_files(&hostile);
    let [_, _, (_, mut site), _] = servers(found);
    for tls in [&mut site.leaf_listen.as_mut().unwrap().tls, &mut site.parents.as_mut().unwrap().tls] {
        tls.cert = hostile.join("svid.pem");
        tls.key = hostile.join("svid.key");
        tls.ca = hostile.join("bundle.pem");
    }
    site.store_dir = hostile.join("store");
    site.pid_file = Some(hostile.join("pid"));
    assert_eq!(objection(&server, folder.path(), &render(&site).unwrap()), None);

    // The server does look into those files, or the test would prove nothing.
    fs::write(hostile.join("bundle.pem"), "no certificate").unwrap();
    assert!(objection(&server, folder.path(), &render(&site).unwrap()).is_some());
}
