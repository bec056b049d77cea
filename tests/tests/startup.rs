//! Mistakes at start-up: one line on standard error that says what to do, and the documented exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use agent::dev::{
    identities::{DevAuthority, IssuedSvid},
    plan::PlannedAgent,
};
use tempfile::TempDir;
use tests::{
    Mesh, Observer, Publisher, eventually,
    eventually::when,
    mesh::{lay_out, path},
    processes,
    program::{self, Ended},
};

const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// An agent that is laid out and does not run.
struct Planned {
    agent: PlannedAgent,
    authority: DevAuthority,
    dir: TempDir,
}

/// The agent at `at`, with its parents laid out beside it.
fn planned(at: &str) -> Planned {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = vec!["global"];
    paths.extend(at.match_indices('/').map(|(end, _)| &at[..end]));
    paths.push(at);
    paths.dedup();
    let plan = lay_out(dir.path(), &paths, |_, _| {});
    let agent = plan.agents.iter().find(|agent| agent.path == path(at)).unwrap().clone();
    Planned { agent, authority: plan.authority, dir }
}

impl Planned {
    fn identity_file(&self, name: &str) -> PathBuf {
        self.agent.config.with_file_name("identity").join(name)
    }

    /// Runs the agent, which must not get far.
    async fn run(&self, flags: &[&str]) -> Ended {
        let mut command = program::agent_command(["--level", self.agent.path.level().as_str(), "--config"]);
        let ended = program::run(command.arg(&self.agent.config).args(flags), ENDED_WITHIN).await;
        assert_eq!(processes::naming(self.dir.path()), [], "left behind");
        assert_eq!(ended.stdout, "", "standard output is for data");
        ended
    }
}

/// That the run ended with this code and one complaint that has all these words.
#[track_caller]
fn assert_complaint(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    let [complaint] = ended.complaints()[..] else { panic!("not one complaint: {}", ended.stderr) };
    for word in words {
        assert!(complaint.contains(word), "`{word}` is not said: {complaint}");
    }
    // Nobody should have to look for it among log lines.
    let errors: Vec<_> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors, Vec::<&str>::new());
}

fn executable(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let file = dir.path().join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[tokio::test]
async fn a_missing_nats_server_exits_69_and_says_how_to_get_one() {
    let ended = planned("global").run(&["--set", "nats.server=no-such-nats-server"]).await;
    assert_complaint(&ended, 69, &["no-such-nats-server", "scripts/setup nats", "nats.server"]);
}

#[tokio::test]
async fn a_nats_server_that_is_none_exits_69_and_shows_what_it_said() {
    let planned = planned("global");
    let server = executable(&planned.dir, "odd-server", "#!/bin/sh\necho something else\n");
    let ended = planned.run(&["--set", &format!("nats.server={}", server.display())]).await;
    assert_complaint(&ended, 69, &["odd-server --version", "something else"]);
}

#[tokio::test]
async fn a_nats_server_too_old_for_a_network_exits_69_and_names_the_version_to_install() {
    let planned = planned("global");
    let old = executable(&planned.dir, "old-server", "#!/bin/sh\necho nats-server: v2.9.10\n");
    let old = program::from_setup("LUCENT_NATS_SERVER_OLD").unwrap_or(old);
    let server = format!("nats.server={}", old.display());
    let ended = planned.run(&["--set", &server, "--set", "leaf.listen=0.0.0.0:0"]).await;
    assert_complaint(&ended, 69, &["too old to face a network", "2.14.4", "2.12.14"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_of_old_nats_servers_works_on_loopback_and_warns() {
    let Some(old) = program::from_setup("LUCENT_NATS_SERVER_OLD") else {
        return println!("skipped: there is no old nats-server; scripts/setup test says why");
    };
    let dir = tempfile::tempdir().unwrap();
    let lines = format!("export LUCENT_NATS_SERVER={old:?}");
    let agent_on_old = program::wrapped_agent(dir.path(), &lines);
    let mesh = Mesh::start_program(agent_on_old, &["global", "s1", "s1/c1", "s1/c1/n1"], |_, _| {}).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, "s1/c1/n1", 200).await;
    eventually!(Duration::from_secs(20), when(publisher.acked() > 500, publisher.acked()));
    let ledger = publisher.stop().await;
    observer.expect_all([(&path("s1/c1/n1"), &ledger)], Duration::from_secs(30)).await;
    assert!(mesh.log("s1").contains("below the version that production needs"), "{}", mesh.log("s1"));
}

#[tokio::test]
async fn a_port_in_use_exits_69_and_names_key_and_address() {
    let planned = planned("global");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["nats.listen", "nats.monitor", "leaf.listen", "http.listen"] {
        let ended = planned.run(&["--set", &format!("{key}={address}")]).await;
        assert_complaint(&ended, 69, &[&format!("{key} = {address} is in use")]);
    }
}

#[tokio::test]
async fn a_missing_certificate_key_or_bundle_exits_77_and_names_the_file() {
    for (file, what) in
        [("svid.pem", "certificate"), ("svid.key", "private key"), ("bundle.pem", "trust bundle")]
    {
        let planned = planned("global");
        let file = planned.identity_file(file);
        fs::remove_file(&file).unwrap();
        let ended = planned.run(&[]).await;
        assert_complaint(&ended, 77, &[what, file.to_str().unwrap(), "[identity]"]);

        fs::write(&file, "not PEM\n").unwrap();
        let ended = planned.run(&[]).await;
        assert_complaint(&ended, 77, &[what, file.to_str().unwrap(), "[identity]"]);
    }
}

#[tokio::test]
async fn a_key_of_another_certificate_exits_77_and_names_both_files() {
    let planned = planned("global");
    let other = planned.authority.issue(&path("global")).unwrap();
    let (cert, key) = (planned.identity_file("svid.pem"), planned.identity_file("svid.key"));
    fs::write(&key, &other.key).unwrap();
    let ended = planned.run(&[]).await;
    assert_complaint(&ended, 77, &["does not belong", cert.to_str().unwrap(), key.to_str().unwrap()]);
}

fn install(planned: &Planned, svid: &IssuedSvid) {
    fs::write(planned.identity_file("svid.pem"), &svid.cert).unwrap();
    fs::write(planned.identity_file("svid.key"), &svid.key).unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_agent_exits_77_and_names_both_identities() {
    let planned = planned("s1/c1/n1");
    install(&planned, &planned.authority.issue(&path("s1/c1/n2")).unwrap());
    let ended = planned.run(&[]).await;
    assert_complaint(&ended, 77, &["spiffe://lucent.dev/mesh/s1/c1/n1", "spiffe://lucent.dev/mesh/s1/c1/n2"]);
}

#[tokio::test]
async fn a_certificate_of_another_authority_exits_77_and_names_the_reason() {
    let planned = planned("global");
    install(&planned, &DevAuthority::new().unwrap().issue(&path("global")).unwrap());
    let ended = planned.run(&[]).await;
    let bundle = planned.identity_file("bundle.pem");
    assert_complaint(&ended, 77, &["untrusted-issuer", bundle.to_str().unwrap()]);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_made_exits_73_and_names_it() {
    let planned = planned("global");
    // Not by permissions: the tests may run as root.
    let file = planned.dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    let below = file.join("state");
    let ended = planned.run(&["--state-dir", below.to_str().unwrap()]).await;
    assert_complaint(&ended, 73, &[below.to_str().unwrap(), "state_dir"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_a_state_directory_exits_73_and_leaves_the_first_alone() {
    let mesh = Mesh::start(&["global"]).await;
    let agent = mesh.agent(&path("global")).clone();
    let (first, server) = (mesh.agent_pid(&agent.path), mesh.server_pid(&agent.path));
    let mut command = program::agent_command(["--level", "global", "--config"]);
    let ended = program::run(command.arg(&agent.config), ENDED_WITHIN).await;
    assert_complaint(&ended, 73, &["another agent runs", agent.state.to_str().unwrap()]);
    assert_eq!((mesh.agent_pid(&agent.path), mesh.server_pid(&agent.path)), (first, server));
    assert!(mesh.status(&agent.path).await.is_some());
}

#[tokio::test]
async fn a_bad_configuration_exits_64_and_names_every_mistake_at_once() {
    let planned = planned("s1/c1/n1");
    let config = fs::read_to_string(&planned.agent.config).unwrap();
    let config = config
        .replace("path = \"s1/c1/n1\"", "path = \"s1/c1\"")
        .replace("interval = \"2s\"", "interval = \"2\"")
        .replace("max_file", "max_fiel");
    fs::write(&planned.agent.config, config).unwrap();
    let ended = planned.run(&["--set", "link.in_flight=0"]).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let file = planned.agent.config.to_str().unwrap();
    let expected: [&[&str]; 4] = [
        &["path = \"s1/c1\"", file, "level node", "s1/c1/n1"],
        &["telemetry.interval = \"2\"", file, "duration"],
        &["nats.max_fiel", file, "did you mean nats.max_file?"],
        &["link.in_flight = \"0\"", "--set", "1 to 256"],
    ];
    let complaints = ended.complaints();
    assert_eq!(complaints.len(), expected.len(), "{}", ended.stderr);
    for words in expected {
        let named = complaints.iter().any(|complaint| words.iter().all(|word| complaint.contains(word)));
        assert!(named, "{words:?} is not said in one line: {}", ended.stderr);
    }
}

#[tokio::test]
async fn an_unknown_level_exits_64_and_lists_the_levels() {
    let mut command = program::agent_command(["--level", "rack"]);
    let ended = program::run(&mut command, ENDED_WITHIN).await;
    assert_complaint(&ended, 64, &["level = \"rack\"", "--level", "node, cluster, site or global"]);
}
