//! The link on bad networks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use hierarchy::Lane;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    Mesh, Observer, Publisher, burst, eventually,
    eventually::{LOOK_EVERY, when},
    path, processes, program,
    random::Random,
    scrape,
    weather::{Proxy, Weather},
};

const TREE: [&str; 4] = ["global", "s1", "s1/c1", "s1/c1/n1"];
const NODE: &str = "s1/c1/n1";
const CLUSTER: &str = "s1/c1";
const ARRIVED_WITHIN: Duration = Duration::from_secs(60);

/// What a level promises: a peer that hangs is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(6);

/// A mesh with a network of the test's making between this agent and its parent.
async fn mesh_with(at: &str, random: &mut Random) -> (Mesh, Proxy) {
    let mut proxy = None;
    let mesh = Mesh::start_with(&TREE, |path, config| {
        if path.to_string() == at {
            proxy = Some(Proxy::in_config(config, Random::of(random.number())));
        }
    })
    .await;
    (mesh, proxy.expect("the agent is in the mesh"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_drains_over_50_kbit_a_second_without_the_link_breaking_and_alerts_pass_it() {
    let mut random = Random::seeded();
    let (mesh, proxy) = mesh_with(CLUSTER, &mut random).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 1).await;
    eventually!(ARRIVED_WITHIN, when(observer.seen().numbers(NODE).len() > 3, "few"));
    proxy.set(Weather::Slow(50_000));
    let (connections, before, began) = (proxy.connections(), proxy.bytes(), Instant::now());

    let node = path(NODE);
    let client = mesh.client(NODE).await;
    // Small ones, and one that is 20 s of the line's time by itself.
    burst::publish(&client, &node, Lane::Bulk, 1..=200, 250).await;
    burst::publish(&client, &node, Lane::Bulk, 201..=201, 120_000).await;
    let published = Instant::now();
    // Meanwhile alerts: how long each takes from the node's store to global's.
    let mut slowest = Duration::ZERO;
    for alert in 1..=5 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let asked = Instant::now();
        burst::publish(&client, &node, Lane::Critical, alert..=alert, 10).await;
        eventually!(ARRIVED_WITHIN, {
            let arrived = burst::arrived(&observer.seen(), NODE, Lane::Critical).len() as u64;
            when(arrived >= alert, arrived)
        });
        slowest = slowest.max(asked.elapsed());
        let bulk = burst::arrived(&observer.seen(), NODE, Lane::Bulk).len();
        println!("alert {alert} took {:.1?}; {bulk} of 201 have arrived", asked.elapsed());
    }
    eventually!(Duration::from_secs(240), {
        let arrived = burst::arrived(&observer.seen(), NODE, Lane::Bulk).len();
        when(arrived >= 201, arrived)
    });
    let (up, down) = proxy.bytes();
    println!(
        "{} bytes up and {} down in {:.1?}; the slowest alert took {slowest:.1?}; {} connections more",
        up - before.0,
        down - before.1,
        began.elapsed(),
        proxy.connections() - connections
    );
    assert!(published.elapsed() > Duration::from_secs(30), "nothing had to wait");
    assert!(slowest < Duration::from_secs(6), "an alert took {slowest:?}");
    assert_eq!(proxy.connections(), connections, "the link was made anew");
    let ledger = publisher.stop().await;
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    let numbers: Vec<u64> = (1..=201).collect();
    assert_eq!(burst::arrived(&observer.seen(), NODE, Lane::Bulk), numbers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_600_ms_and_2_percent_loss_500_events_a_second_arrive_over_one_connection() {
    let mut random = Random::seeded();
    let (mesh, proxy) = mesh_with(CLUSTER, &mut random).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 500).await;
    eventually!(ARRIVED_WITHIN, when(observer.seen().numbers(NODE).len() > 100, "few"));
    proxy.set(Weather::Far { delay: Duration::from_millis(300), loss: 2 });
    let (connections, before, began) = (proxy.connections(), proxy.bytes(), Instant::now());

    let mut behind = Vec::new();
    while began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        behind.push(publisher.acked() - observer.seen().numbers(NODE).len());
    }
    let ledger = publisher.stop().await;
    let (stopped, node) = (Instant::now(), path(NODE));
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    let (up, down) = proxy.bytes();
    println!(
        "{} events, {} bytes up, {} down; behind from second to second: {behind:?}; the last after {:.1?}",
        ledger.acked.len(),
        up - before.0,
        down - before.1,
        stopped.elapsed()
    );
    assert!(ledger.acked.len() > 500 * 20, "{} events", ledger.acked.len());
    // Not more and more, once what such a line carries has been found out.
    let most = |seconds: &[usize]| seconds.iter().copied().max().unwrap_or_default();
    assert!(most(&behind[20..]) < most(&behind[10..20]) * 3 / 2, "{behind:?}");
    assert!(stopped.elapsed() < Duration::from_secs(20), "the last after {:?}", stopped.elapsed());
    assert_eq!(proxy.connections(), connections, "the link was made anew");
}

/// Names of the servers with leaf connections in this account of the agent's server.
async fn leaves(mesh: &Mesh, at: &str, account: &str) -> Vec<String> {
    let monitor = mesh.addresses(&path(at)).unwrap().monitor.unwrap();
    let (_, page) = scrape::get(monitor, "/leafz").await.unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    let leaves = page["leafs"].as_array().cloned().unwrap_or_default();
    let of_account = leaves.iter().filter(|leaf| leaf["account"] == account);
    of_account.map(|leaf| leaf["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_passes_nothing_one_way_or_both_is_noticed_on_both_sides_and_heals() {
    let mut random = Random::seeded();
    let (mesh, proxy) = mesh_with(CLUSTER, &mut random).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 100).await;
    for (up, down) in [(true, true), (true, false), (false, true)] {
        let linked =
            async || (leaves(&mesh, CLUSTER, "UP").await.len(), leaves(&mesh, "s1", "DOWN").await.len());
        eventually!(ARRIVED_WITHIN, {
            let linked = linked().await;
            when(linked == (1, 1), linked)
        });
        let arrived = observer.seen().numbers(NODE).len();
        eventually!(ARRIVED_WITHIN, {
            let more = observer.seen().numbers(NODE).len();
            when(more > arrived + 100, more)
        });

        proxy.set(Weather::Silent { up, down });
        let silent = Instant::now();
        let (mut child, mut parent) = (None, None);
        while child.is_none() || parent.is_none() {
            let (at_child, at_parent) = linked().await;
            child = child.or((at_child == 0).then(|| silent.elapsed()));
            parent = parent.or((at_parent == 0).then(|| silent.elapsed()));
            assert!(silent.elapsed() < NOTICED_WITHIN * 3, "noticed by {child:?} and {parent:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let (child, parent) = (child.unwrap(), parent.unwrap());
        println!(
            "silent up {up}, down {down}: the child noticed after {child:.1?}, the parent after {parent:.1?}"
        );
        assert!(child.max(parent) < NOTICED_WITHIN + Duration::from_millis(500), "{child:?}, {parent:?}");
        // The session is given up, too.
        eventually!(Duration::from_secs(20), {
            let open = mesh.status(&path(CLUSTER)).await.and_then(|status| Some(status.parent?.open));
            when(open == Some(false), open)
        });
        println!("the agent says so after {:.1?}", silent.elapsed());

        proxy.set(Weather::Fair);
        let (fair, arrived) = (Instant::now(), observer.seen().numbers(NODE).len());
        eventually!(ARRIVED_WITHIN, {
            let more = observer.seen().numbers(NODE).len();
            when(more > arrived + 100, more)
        });
        println!("healed {:.1?} after the line was fair again", fair.elapsed());
        assert!(fair.elapsed() < Duration::from_secs(15), "healed after {:?}", fair.elapsed());
    }
    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_first_address_of_a_parent_is_dead_the_next_serves_and_after_it_the_third() {
    let mut random = Random::seeded();
    let mut proxies = Vec::new();
    let mesh = Mesh::start_with(&TREE, |path, config| {
        if path.to_string() == CLUSTER {
            let first = Proxy::in_config(config, Random::of(random.number()));
            let second = Proxy::before(first.parent, Random::of(random.number()));
            // A port that was free a moment ago: nobody listens there.
            let dead = agent::broker::claim("dead", "127.0.0.1:0".parse().unwrap()).unwrap();
            let addresses = format!("\"{dead}\", \"{}\", \"{}\"", first.address, second.address);
            *config = config.replace(&format!("\"{}\"", first.address), &addresses);
            proxies = vec![first, second];
        }
    })
    .await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 200).await;
    let more = async || {
        let arrived = observer.seen().numbers(NODE).len();
        eventually!(ARRIVED_WITHIN, {
            let more = observer.seen().numbers(NODE).len();
            when(more > arrived + 200, more)
        });
    };
    more().await;
    // Whichever it is on: to the other one, and back.
    for turn in 0..4 {
        let on = usize::from(proxies[1].carries());
        assert!(proxies[on].carries() && !proxies[1 - on].carries(), "the link is on one of them");
        let (cut, stood) = (Instant::now(), observer.seen().numbers(NODE).len());
        proxies[on].set(Weather::Cut);
        eventually!(ARRIVED_WITHIN, when(proxies[1 - on].carries(), "not there yet"));
        let linked = cut.elapsed();
        more().await;
        println!("turn {turn}: linked {linked:.1?} after the cut, events again after {:.1?}", cut.elapsed());
        assert!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
        assert!(observer.seen().numbers(NODE).len() > stood);
        proxies[on].set(Weather::Fair);
    }
    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
}

/// Steps that the watchdog of this agent has taken.
async fn steps(mesh: &Mesh, at: &str) -> [u64; 2] {
    let numbers = mesh.numbers(at).await;
    ["redial", "restart"]
        .map(|step| numbers.value(&format!("lucent_link_heals_total{{reason=\"{step}\"}}")) as u64)
}

/// As in an agent's configuration, but impatient.
fn impatient(path: &hierarchy::Path, config: &mut String) {
    if path.to_string() == CLUSTER {
        config.push_str("\n[link]\nstuck_after = \"3s\"\n");
    }
}

/// The defect itself cannot be called up. What is tested: a real server that runs, does not dial its parent and
/// does not try to, since it was told not to behind the agent's back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_dial_its_parent_any_more_is_made_to_and_nothing_is_lost() {
    let mesh = Mesh::start_with(&TREE, impatient).await;
    let observer = Observer::start(&mesh).await;
    let publisher = Publisher::start(&mesh, NODE, 100).await;
    eventually!(ARRIVED_WITHIN, when(observer.seen().numbers(NODE).len() > 100, "few"));
    assert_eq!(steps(&mesh, CLUSTER).await, [0, 0]);

    let config = mesh.agent(&path(CLUSTER)).state.join("nats/nats-server.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    let without = text.replace("account: \"UP\"", "account: \"UP\"\n      disabled: true");
    assert_ne!(text, without);
    std::fs::write(&config, without).unwrap();
    let pid = mesh.server_pid(&path(CLUSTER)).unwrap();
    processes::signal(pid, Signal::SIGHUP);
    eventually!(ARRIVED_WITHIN, {
        let leaves = leaves(&mesh, CLUSTER, "UP").await;
        when(leaves.is_empty(), leaves)
    });
    let cut = Instant::now();
    std::fs::write(&config, text).unwrap();

    let stuck = eventually!(ARRIVED_WITHIN, {
        let status = mesh.status(&path(CLUSTER)).await.unwrap();
        status.link_stuck.clone().ok_or(format!("{status:?}"))
    });
    println!("after {:.1?}: {stuck:?}", cut.elapsed());
    assert!(stuck.reason.contains("makes no connection"), "{stuck:?}");
    eventually!(ARRIVED_WITHIN, {
        let arrived = observer.seen().numbers(NODE).len();
        let waits = publisher.acked() - arrived;
        when(waits < 100, waits)
    });
    println!("healed {:.1?} after the connection was gone", cut.elapsed());
    assert_eq!(steps(&mesh, CLUSTER).await, [1, 0]);
    assert_eq!(mesh.server_pid(&path(CLUSTER)), Some(pid), "the server was not restarted");
    let ledger = publisher.stop().await;
    let node = path(NODE);
    observer.expect_all([(&node, &ledger)], ARRIVED_WITHIN).await;
    let stuck = mesh.status(&path(CLUSTER)).await.unwrap().link_stuck;
    assert_eq!(stuck, None);
}

/// As above, with a server on which a reload has no effect: started from a copy of its configuration that does
/// not name the parent, the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_a_reload_does_not_help_is_restarted() {
    let began = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let (real, agent, home) = (program::nats_server(), program::agent(), dir.path().display());
    let script = |name: &str, text: String| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        file
    };
    let stuck = format!(
        "#!/bin/sh\nif [ \"$1\" = --config ] && mkdir {home}/started 2>/dev/null; then\n\
         sed 's/account: \"UP\"/&\\n disabled: true/' \"$2\" > {home}/copy.conf\n\
         shift 2\nexec {real} --config {home}/copy.conf \"$@\"\nfi\nexec {real} \"$@\"\n",
        real = real.display()
    );
    let stuck = script("stuck-nats-server", stuck);
    // The variable would go before the file.
    let agent = format!("#!/bin/sh\nunset LUCENT_NATS_SERVER\nexec {} \"$@\"\n", agent.display());
    let agent = script("agent", agent);
    // The mesh is up once all are linked: it waits for the cure.
    let mesh = Mesh::start_program(agent, &TREE, |path, config| {
        impatient(path, config);
        if path.to_string() == CLUSTER {
            *config = config.replace(&format!("{real:?}"), &format!("{stuck:?}"));
        }
    })
    .await;
    println!("linked {:.1?} after the start", began.elapsed());
    assert_eq!(steps(&mesh, CLUSTER).await, [1, 1]);
    let restarts = mesh.numbers(CLUSTER).await.value("lucent_server_restarts_total");
    assert_eq!(restarts, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_restarted_for_a_parent_that_is_away_and_little_for_one_that_only_greets() {
    let mut random = Random::seeded();
    let mut proxy = None;
    let mesh = Mesh::start_with(&TREE, |path, config| {
        impatient(path, config);
        if path.to_string() == CLUSTER {
            proxy = Some(Proxy::in_config(config, Random::of(random.number())));
        }
    })
    .await;
    let proxy = proxy.unwrap();
    for away in [Weather::Cut, Weather::Silent { up: true, down: true }] {
        proxy.set(away);
        // Many times as long as the watchdog is patient with a parent that greets.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(steps(&mesh, CLUSTER).await, [0, 0], "{away:?}");
    }
    proxy.set(Weather::Mute);
    tokio::time::sleep(Duration::from_secs(30)).await;
    // At 3 s, no sooner than 6 s later, than 12 s, than 24 s.
    let [redials, restarts] = steps(&mesh, CLUSTER).await;
    println!("in 30 s of greetings alone: {redials} redials, {restarts} restarts");
    assert_eq!(redials, 1);
    assert!((1..=2).contains(&restarts), "{restarts} restarts");
    let fair = Instant::now();
    proxy.set(Weather::Fair);
    eventually!(ARRIVED_WITHIN, {
        let open = mesh.status(&path(CLUSTER)).await.and_then(|status| Some(status.parent?.open));
        when(open == Some(true), open)
    });
    println!("open {:.1?} after the line was fair", fair.elapsed());
}
