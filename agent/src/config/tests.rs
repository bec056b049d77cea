use std::{path::Path as FsPath, time::Duration};

use hierarchy::{Level, link::RateLimit};

use super::*;

/// Every layer of one configuration, the file in a directory of its own.
struct Layers {
    dir: tempfile::TempDir,
    input: Input,
}

impl Layers {
    fn file(text: &str) -> Layers {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Layers {
            dir,
            input: Input { file: Some(file), working_dir: "/etc/lucent".into(), ..Input::default() },
        }
    }

    fn env(mut self, name: &str, value: &str) -> Layers {
        self.input.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, flag: &'static str, key: &str, value: &str) -> Layers {
        self.input.flags.push(Override { flag, key: key.to_owned(), value: value.to_owned() });
        self
    }

    fn load(&self) -> Result<Config, Vec<String>> {
        let at = format!("{}", self.dir.path().join("agent.toml").display());
        load(self.input.clone()).map_err(|e| e.to_string().lines().map(|l| l.replace(&at, "FILE")).collect())
    }
}

const NODE: &str = "level = \"node\"\npath = \"s1/c1/n1\"\nparent.addresses = [\"c1.example:7422\"]\n";
const CLUSTER: &str = "level = \"cluster\"\npath = \"s1/c1\"\nparent.addresses = [\"s1.example:7422\"]\n";

fn node(more: &str) -> Result<Config, Vec<String>> {
    Layers::file(&format!("{NODE}{more}")).load()
}

fn listen(config: &Config) -> String {
    config.nats.embedded().unwrap().listen.to_string()
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let layers = Layers::file(NODE);
    assert_eq!(listen(&layers.load().unwrap()), "127.0.0.1:4222");
    let layers = Layers::file(&format!("{NODE}[nats]\nlisten = \"127.0.0.1:1\""));
    assert_eq!(listen(&layers.load().unwrap()), "127.0.0.1:1");
    let layers = layers.env("LUCENT_NATS__LISTEN", "127.0.0.1:2");
    assert_eq!(listen(&layers.load().unwrap()), "127.0.0.1:2");
    let layers = layers.flag("--set", "nats.listen", "127.0.0.1:3");
    assert_eq!(listen(&layers.load().unwrap()), "127.0.0.1:3");
}

#[test]
fn every_mistake_of_every_layer_is_named_at_once() {
    let text = "
        level = \"rack\"
        path = \"S1\"
        trust_domain = \"Lucent\"
        [nats]
        listne = \"127.0.0.1:4222\"
        mode = \"both\"
        max_file = \"a lot\"
        [link]
        linger = 5
        in_flight = 0
        [[policy]]
        subject = \"a.>.b\"
        action = \"sample\"
        [[runner]]
        agent_type = \"yield\"
        slot = 1
    ";
    let errors = Layers::file(text)
        .env("LUCENT_TELEMETRY__INTERVAL", "0s")
        .env("LUCENT_RUNNER", "x")
        .flag("--set", "http.listen", "localhost")
        .flag("--log-level", "log.level", "loud")
        .load()
        .unwrap_err();
    let expected = [
        "nats.listne = \"127.0.0.1:4222\" (FILE): is no known key; did you mean nats.listen?",
        "runner[0].slot = \"1\" (FILE): is no known key; did you mean runner[].slots?",
        "runner = \"x\" (environment variable LUCENT_RUNNER): can be set in the configuration file only",
        "level = \"rack\" (FILE): must be node, cluster, site or global",
        "path = \"S1\" (FILE): must be global, or 1 to 3 ids joined by `/`, as in s1/c1/n1; \
         an id has 1 to 63 of a-z, 0-9, `_` and `-`",
        "trust_domain = \"Lucent\" (FILE): must be 1 to 255 of a-z, 0-9, `.`, `-` and `_`",
        "nats.mode = \"both\" (FILE): must be embedded or external",
        "nats.max_file = \"a lot\" (FILE): must be a size from 64MiB to 1024TiB, in bytes or with a unit such as MiB",
        "link.linger = \"5\" (FILE): must be a duration from 100us to 10s, with its unit (us, ms, s, m, h, d)",
        "link.in_flight = \"0\" (FILE): must be a whole number from 1 to 256",
        "telemetry.interval = \"0s\" (environment variable LUCENT_TELEMETRY__INTERVAL): \
         must be a duration from 100ms to 1h, with its unit (us, ms, s, m, h, d)",
        "http.listen = \"localhost\" (flag --set): \
         must be an IP address and a port, such as 127.0.0.1:4222 (port 0: choose a free one)",
        "log.level = \"loud\" (flag --log-level): must be error, warn, info, debug or trace",
        "policy[0].subject = \"a.>.b\" (FILE): must be a NATS subject; `*` stands for one token, `>` for all the rest",
        "policy[0].one_in is missing: action sample needs it: one_in = 10 forwards every tenth event",
        "runner[0].task is missing: say which task the runner serves, `*` for any",
        "runner[0].command is missing: give the program and its arguments",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn what_an_agent_cannot_run_without_is_asked_for() {
    let errors =
        load(Input { working_dir: "/etc/lucent".into(), ..Input::default() }).unwrap_err().to_string();
    assert_eq!(
        errors,
        "level is missing: give --level node|cluster|site|global, or level in the file, or set LUCENT_LEVEL"
    );
    let errors = Layers::file("level = \"cluster\"").load().unwrap_err();
    let expected = [
        "path is missing: a cluster needs one: give --path s1/c1, or path in the file, or set LUCENT_PATH",
        "parent.addresses is missing: a cluster needs a parent: give its HOST:PORT in the file, \
         or set LUCENT_PARENT__ADDRESSES",
    ];
    assert_eq!(errors, expected);
    let global = Layers::file("level = \"global\"").load().unwrap();
    assert_eq!((global.level(), global.path.to_string().as_str()), (Level::Global, "global"));
}

#[test]
fn level_and_path_fit_each_other_and_the_sections() {
    let misfits = Layers::file(
        "level = \"node\"\npath = \"s1/c1\"\nparent.addresses = [\"h:1\"]\n[leaf]\nchildren = []",
    );
    let expected = [
        "path = \"s1/c1\" (FILE): does not fit level node, whose paths look like s1/c1/n1: change the path or the level",
        "leaf.children = [] (FILE): means nothing at level node: it has no children, remove section [leaf]",
    ];
    assert_eq!(misfits.load().unwrap_err(), expected);

    let core = Layers::file(
        "level = \"global\"\n[parent]\naddresses = [\"h:1\"]\n[[runner]]\nagent_type = \"*\"\ntask = \"*\"\ncommand = [\"x\"]",
    );
    let errors = core.load().unwrap_err();
    assert_eq!(
        errors[0],
        "parent.addresses = [\"h:1\"] (FILE): means nothing at level global: it has no parent, remove section [parent]"
    );
    assert!(
        errors[1..].iter().all(|e| e.starts_with("runner[0].") && e.contains("tasks run at nodes")),
        "{errors:?}"
    );
    assert_eq!(errors.len(), 4);
}

#[test]
fn every_default_documented_is_the_default_used() {
    let reference = explain();
    for (base, skip) in [(NODE, "leaf."), (CLUSTER, "-")] {
        let plain = Layers::file(base);
        let used = plain.load().unwrap();
        let mut text = base.to_owned();
        for key in keys::KEYS.iter().filter(|key| !key.name.contains('[') && !key.name.starts_with(skip)) {
            if let keys::Fallback::Default(value) = key.fallback {
                let value = explain::as_toml(key.kind, value);
                let name = key.name.rsplit('.').next().unwrap();
                assert!(reference.contains(&format!("\n#{name} = {value}\n")), "{name} is not documented");
                text += &format!("{} = {value}\n", key.name);
            }
        }
        std::fs::write(plain.dir.path().join("agent.toml"), &text).unwrap();
        assert_eq!(plain.load().unwrap(), used);
    }
}

#[test]
fn the_defaults_are_these() {
    let config = node("").unwrap();
    let Nats::Embedded(nats) = &config.nats else { panic!("not embedded") };
    assert_eq!((nats.max_memory, nats.max_file), (256 << 20, 10 << 30));
    let link = Link {
        batch_events: 1000,
        batch_bytes: 256 << 10,
        linger: Duration::from_millis(2),
        in_flight: 8,
        retry: Duration::from_secs(1),
        stuck_after: Duration::from_secs(30),
    };
    assert_eq!(config.link, link);
    assert_eq!(
        config.telemetry,
        Telemetry { interval: Duration::from_secs(5), window: Duration::from_secs(10) }
    );
    assert_eq!(config.log, Log { format: LogFormat::Text, level: tracing::Level::INFO });
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.spiffe_id().to_string(), "spiffe://lucent.dev/mesh/s1/c1/n1");
    assert_eq!(config.state_dir, FsPath::new("/var/lib/lucent-agent"));
}

#[test]
fn stored_messages_are_synced_at_once_above_the_node_unless_told_otherwise() {
    let sync = |text: &str| Layers::file(text).load().unwrap().nats.embedded().unwrap().sync;
    assert_eq!(sync(NODE), SyncMode::ServerDefault);
    assert_eq!(sync(CLUSTER), SyncMode::Always);
    assert_eq!(sync(&format!("{NODE}nats.sync = \"always\"")), SyncMode::Always);
    assert_eq!(sync(&format!("{CLUSTER}nats.sync = \"1s\"")), SyncMode::Every(Duration::from_secs(1)));
}

#[test]
fn the_reference_is_a_file_that_the_agent_understands() {
    let uncommented: Vec<_> = explain()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned())
        .collect();
    // Not everything in it can hold at once, but every key is known and has the form that is asked for.
    let errors = Layers::file(&uncommented.join("\n")).load().unwrap_err();
    let harmless = |e: &&String| {
        ["means nothing at", "does not fit", "is for nats.mode", "is for action"]
            .iter()
            .any(|h| e.contains(h))
    };
    assert_eq!(errors.iter().filter(|e| !harmless(e)).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn every_key_of_the_table_is_read() {
    let mut looked_up = std::collections::BTreeSet::new();
    let runner = "[[runner]]\nagent_type = \"*\"\ntask = \"*\"\ncommand = [\"x\"]\nworkdir = \"w\"\n[[policy]]\n[[priority]]\n[[child_limit]]\nchild = \"*\"";
    for text in [format!("{CLUSTER}{runner}"), format!("{CLUSTER}nats.mode = \"external\"\n{runner}")] {
        let (mut settings, mut errors) = (Settings::default(), Vec::new());
        let layers = Layers::file(&text);
        settings.add_file(layers.input.file.as_ref().unwrap(), &mut errors).unwrap();
        let mut reader = Reader::new(settings, "/".into(), "/".into(), errors);
        build::config(&mut reader);
        looked_up.extend(reader.looked_up);
    }
    let all: std::collections::BTreeSet<_> = keys::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(all.difference(&looked_up).collect::<Vec<_>>(), [&""; 0]);
}

#[test]
fn relative_paths_start_where_they_were_written() {
    let layers =
        Layers::file(&format!("{NODE}[identity]\ncert = \"id/a.pem\"\n[nats]\nserver = \"bin/nats\""))
            .env("LUCENT_IDENTITY__KEY", "b.pem")
            .flag("--state-dir", "state_dir", "state");
    let config = layers.load().unwrap();
    let dir = layers.dir.path();
    assert_eq!(config.identity.cert, dir.join("id/a.pem"));
    assert_eq!(config.identity.bundle, dir.join("bundle.pem"));
    assert_eq!(config.identity.key, FsPath::new("/etc/lucent/b.pem"));
    assert_eq!(config.state_dir, FsPath::new("/etc/lucent/state"));
    assert_eq!(config.nats.embedded().unwrap().server, dir.join("bin/nats"));
}

#[test]
fn variables_of_others_are_passed_over_and_misspelt_ones_of_ours_are_not() {
    let layers = Layers::file(NODE)
        .env("PATH", "/bin")
        .env("LUCENT_CONFIG", "/x")
        .env("LUCENT_TASK_ID", "t")
        .env("LUCENT_NATS_SERVER_OLD", "/opt/old/nats-server")
        .env("LUCENT_TEST_PYTHON", "/opt/python")
        .env("LUCENT_CACHE", "/cache")
        .env("LUCENT_GLOBAL_SERVICE_HOST", "10.0.0.1")
        .env("LUCENT_GLOBAL_PORT_4222_TCP_ADDR", "10.0.0.1")
        .env("LUCENT_PATH", "")
        .env("LUCENT_PARENT__ADDRESSES", "a.example:1, b.example:2")
        .env("LUCENT_NATS_SERVER", "/opt/nats-server");
    let config = layers.load().unwrap();
    assert_eq!(config.nats.embedded().unwrap().server, FsPath::new("/opt/nats-server"));
    assert_eq!(config.parent.unwrap().addresses.len(), 2);
    assert_eq!(
        layers.env("LUCENT_STATEDIR", "/x").load().unwrap_err(),
        [
            "statedir = \"/x\" (environment variable LUCENT_STATEDIR): is no known key; did you mean state_dir?"
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_or_parsed_is_one_line() {
    let missing =
        Input { file: Some("no.toml".into()), working_dir: "/etc/lucent".into(), ..Input::default() };
    let error = load(missing).unwrap_err().to_string();
    assert!(error.starts_with("/etc/lucent/no.toml: cannot be read (No such file"), "{error}");
    let errors = Layers::file("level = \"node\"\nlevel = \"site\"").env("LUCENT_X", "1").load().unwrap_err();
    assert!(errors[0].starts_with("FILE: is not TOML:") && errors[0].contains("line 2"), "{errors:?}");
    assert!(errors[1].starts_with("x = "), "{errors:?}");
    assert_eq!(errors.len(), 2);
}

#[test]
fn a_value_where_a_section_belongs_is_refused_and_the_other_way_round() {
    let errors = node("nats = 3\nrunner = [1]\npolicy = \"x\"\nhttp.listen.port = 1").unwrap_err();
    let expected = [
        "nats = \"3\" (FILE): must be a section, written [nats]",
        "policy = \"x\" (FILE): must be a list of tables, written [[policy]]",
        "runner = [\"1\"] (FILE): must be a list of tables, written [[runner]]",
        "http.listen = { port = ... } (FILE): \
         must be an IP address and a port, such as 127.0.0.1:4222 (port 0: choose a free one)",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn two_listeners_on_one_port_are_refused() {
    let clash = |text: &str| Layers::file(&format!("{CLUSTER}{text}")).load();
    let errors = clash("nats.listen = \"127.0.0.1:7422\"").unwrap_err();
    assert_eq!(
        errors,
        [
            "leaf.listen = \"0.0.0.0:7422\" (the default): needs a port of its own, nats.listen has the same one"
        ]
    );
    assert!(clash("nats.listen = \"127.0.0.1:0\"\nnats.monitor = \"127.0.0.1:0\"").is_ok());
    assert!(clash("nats.listen = \"127.0.0.2:8222\"").is_ok());
}

#[test]
fn an_external_server_needs_credentials_and_shows_none() {
    let external = "
        nats.mode = \"external\"
        [nats.external]
        urls = [\"tls://nats.example:4222\"]
        mesh_user = \"m\"
        mesh_password = \"hush1\"
        up_user = \"u\"
        up_password = \"hush2\"
    ";
    let config = node(external).unwrap();
    let Nats::External(server) = &config.nats else { panic!("not external") };
    assert_eq!((server.mesh.password.expose(), &server.down), ("hush1", &None));
    assert!(!format!("{config:?}").contains("hush"));

    let errors =
        node(&external.replace("tls://", "tls://a:hush@").replace("up_password", "up_pasword")).unwrap_err();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors.iter().any(|e| e.starts_with("nats.external.up_pasword = *** (")), "{errors:?}");
    assert!(errors.iter().any(|e| e.starts_with("nats.external.up_password is missing")), "{errors:?}");
    assert!(!errors.concat().contains("hush"), "{errors:?}");
    assert!(node("nats.external.mesh_user = \"m\"").unwrap_err()[0].contains("is for nats.mode"));
    let errors =
        node(&external.replace("[nats.external]", "nats.sync = \"always\"\n[nats.external]")).unwrap_err();
    assert!(errors.len() == 1 && errors[0].starts_with("nats.sync = "), "{errors:?}");
}

#[test]
fn policy_and_runners_keep_their_order_and_their_meaning() {
    let text = "
        [[policy]]
        subject = \"lucent.hierarchy.*.*.debug.>\"
        action = \"drop\"
        [[policy]]
        subject = \"lucent.>\"
        action = \"sample\"
        one_in = 10
        [[runner]]
        agent_type = \"yield\"
        task = \"*\"
        command = [\"python3\", \"worker.py\"]
        slots = 2
        env = { MODEL = \"small\", N = 3 }
        [[runner]]
        agent_type = \"*\"
        task = \"lstm.v2\"
        command = [\"bin/run\"]
        workdir = \"w\"
    ";
    let layers = Layers::file(&format!("{NODE}{text}"));
    let config = layers.load().unwrap();
    let actions: Vec<_> = config.policy.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [PolicyAction::Drop, PolicyAction::Sample(10)]);
    let [first, second] = &config.runners[..] else { panic!("not two runners") };
    assert!(first.serves("yield", "anything") && !first.serves("other", "anything"));
    assert!(second.serves("training", "lstm.v2") && !second.serves("training", "lstm"));
    assert_eq!((first.slots, first.timeout), (2, Duration::from_secs(600)));
    assert_eq!(
        (first.program.as_path(), &first.args[..]),
        (FsPath::new("python3"), &["worker.py".to_owned()][..])
    );
    assert_eq!((first.env["MODEL"].as_str(), first.env["N"].as_str()), ("small", "3"));
    assert_eq!(
        (first.workdir.as_path(), second.workdir.clone()),
        (layers.dir.path(), layers.dir.path().join("w"))
    );
    assert_eq!(second.program, layers.dir.path().join("bin/run"));

    let errors =
        node("[[runner]]\nagent_type = \"a.b\"\ntask = \"*\"\ncommand = []\nenv = { LUCENT_X = \"1\" }");
    let errors = errors.unwrap_err();
    assert_eq!(errors.len(), 3, "{errors:?}");
    let twin = "[[runner]]\nagent_type = \"a\"\ntask = \"b\"\ncommand = [\"x\"]\n";
    let errors = node(&format!("{twin}{twin}")).unwrap_err();
    assert!(errors[0].contains("runner[0] serves the same"), "{errors:?}");
}

#[test]
fn children_and_parents_are_all_different() {
    let errors = Layers::file(&format!("{CLUSTER}leaf.children = [\"n1\", \"n1\"]")).load().unwrap_err();
    assert!(
        errors[0].contains("a list of different ids") && errors[0].contains("`n1` breaks this"),
        "{errors:?}"
    );
    let config = Layers::file(&format!("{CLUSTER}leaf.children = [\"n1\", \"n2\"]")).load().unwrap();
    let children: Vec<_> = config.leaf.unwrap().children.iter().map(ToString::to_string).collect();
    assert_eq!(children, ["s1/c1/n1", "s1/c1/n2"]);
}

#[test]
fn the_first_limit_that_fits_a_child_holds() {
    let limits = "[[child_limit]]\nchild = \"n1\"\nbytes_per_s = \"1MiB\"\n\
                  [[child_limit]]\nchild = \"*\"\nevents_per_s = 100\n";
    let config =
        Layers::file(&format!("{CLUSTER}leaf.children = [\"n1\", \"n2\"]\n{limits}")).load().unwrap();
    let leaf = config.leaf.unwrap();
    let limit = |child: &str| leaf.limit_of(&child.parse().unwrap()).unwrap();
    assert_eq!(limit("s1/c1/n1"), RateLimit { bytes_per_s: Some(1 << 20), events_per_s: None });
    assert_eq!(limit("s1/c1/n2"), RateLimit { bytes_per_s: None, events_per_s: Some(100) });
    let errors = Layers::file(&format!("{CLUSTER}leaf.children = [\"n2\"]\n{limits}")).load().unwrap_err();
    assert!(errors[0].contains("is no child in leaf.children"), "{errors:?}");
    let errors = node("[[child_limit]]\nchild = \"*\"\n").unwrap_err();
    assert!(errors[0].contains("it has no children, remove [[child_limit]]"), "{errors:?}");
}

#[test]
fn applications_beyond_this_machine_need_a_password() {
    let flag =
        |key: &str, value: &str| Override { flag: "--set", key: key.to_owned(), value: value.to_owned() };
    let load_with =
        |flags: Vec<Override>| load(Input { flags, working_dir: "/etc/lucent".into(), ..Input::default() });
    let level = flag("level", "global");
    let open = flag("nats.listen", "0.0.0.0:4222");
    let errors = load_with(vec![level.clone(), open.clone()]).unwrap_err().to_string();
    assert!(errors.contains("nats.listen") && errors.contains("nats.local_password"), "{errors}");
    let password = flag("nats.local_password", "a-long-random-password");
    assert!(load_with(vec![level.clone(), open.clone(), password]).is_ok());
    assert!(load_with(vec![level, open, flag("nats.local_password", "short")]).is_err());
}

#[test]
fn replicas_are_for_global_on_a_server_that_others_run() {
    let global = "
        level = \"global\"
        [nats]
        mode = \"external\"
        [nats.external]
        urls = [\"nats://a.example:4222\", \"nats://b.example:4222\"]
        copies = 3
        mesh_user = \"m\"
        mesh_password = \"hush1\"
        down_user = \"d\"
        down_password = \"hush2\"
        [replicas]
        take_over = \"3s\"
    ";
    let load = |text: &str| Layers::file(text).load();
    let config = load(global).unwrap();
    let replicas = config.replicas.unwrap();
    assert_eq!((replicas.take_over, replicas.instance), (Duration::from_secs(3), None));
    let Nats::External(server) = &config.nats else { panic!("not external") };
    assert_eq!((server.urls.len(), server.copies), (2, 3));
    assert!(load("level = \"global\"").unwrap().replicas.is_none());

    let errors = load("level = \"global\"\nreplicas.take_over = \"3s\"").unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("is for nats.mode = \"external\""), "{errors:?}");
    let errors = node("replicas.take_over = \"3s\"").unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("only global can have replicas"), "{errors:?}");
    let errors = load(&global.replace("\"3s\"", "\"300ms\"")).unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("a duration from 1s to 1m"), "{errors:?}");
}
