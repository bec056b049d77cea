//! Who may say and hear what. A deny beats an allow, so each list is what is open, minus exceptions.

use hierarchy::{Level, Path, order, subject};

use crate::{
    names::{AGENT_CONSUMERS, AGENT_INBOX},
    streams::bucket_names,
};

/// What a user may publish and subscribe to.
pub(crate) struct Permissions {
    pub(crate) publish: Rules,
    pub(crate) subscribe: Rules,
}

impl Permissions {
    fn only(publish: String, subscribe: String) -> Permissions {
        let rules = |subject| Rules { allow: vec![subject], deny: Vec::new() };
        Permissions { publish: rules(publish), subscribe: rules(subscribe) }
    }
}

/// Subject patterns that are open, and exceptions from them.
pub(crate) struct Rules {
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
}

/// What the agent says to all of its children.
const LINK_DOWN_ALL: &str = "lucent.link.down.>";

/// What a local application may publish beside `lucent.hierarchy.>`.
const LOCAL_SUBJECTS: [&str; 11] = [
    subject::PUBLISH_ALL,
    order::SEND_ALL,
    subject::AGENTS_ALL,
    "lucent.events.>",
    "lucent.commands.>",
    "lucent.responses.>",
    "lucent.services.>",
    "jobs.>",
    "signals.>",
    "_INBOX.>",
    "$KV.>",
];

/// What a local application may ask of JetStream: to look at streams and to run consumers of its own,
/// but not to change streams.
///
/// `$JS.API.DIRECT.GET` is left out on purpose. Whoever asks names the subject of the reply, and the
/// server publishes it there whatever the asker's own permissions are; a direct get replies with the
/// stored bytes, so it would put any bytes on any subject, a child's included. So is creating a
/// consumer without its name in the subject, as clients did before 2.9: the name in the body may be
/// one of the agent's, and the server then changes the agent's consumer.
const LOCAL_JETSTREAM: [&str; 14] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.CONSUMER.NAMES.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.INFO.*.*",
    "$JS.API.CONSUMER.CREATE.*.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.*.*",
    "$JS.API.CONSUMER.DELETE.*.*",
    "$JS.API.CONSUMER.MSG.NEXT.*.*",
    "$JS.ACK.>",
    "$JS.FC.>",
];

/// What an application on the machine of `path` may do without a password.
pub(crate) fn local(path: &Path) -> Permissions {
    let mut allow = vec![subject::HIERARCHY_ALL.to_owned()];
    allow.extend(LOCAL_SUBJECTS.into_iter().chain(LOCAL_JETSTREAM).map(str::to_owned));

    // Below this level stand the verified words of children; under `agent` those of the agent itself.
    let mut deny: Vec<String> =
        path.level().below().map(|level| format!("lucent.hierarchy.{level}.>")).collect();
    deny.push("lucent.hierarchy.*.*.agent.>".into());
    if path.level() == Level::Global {
        deny.push("lucent.hierarchy.global.agent.>".into());
    }
    deny.extend(bucket_names().map(|bucket| format!("$KV.{bucket}.>")));
    for name in AGENT_CONSUMERS {
        deny.push(format!("$JS.API.CONSUMER.*.*.{name}"));
        deny.push(format!("$JS.API.CONSUMER.*.*.{name}.>"));
        deny.push(format!("$JS.API.CONSUMER.*.*.*.{name}"));
        // Acknowledgements name stream and consumer, since 2.14 optionally behind domain and account.
        deny.push(format!("$JS.ACK.*.{name}.>"));
        deny.push(format!("$JS.ACK.*.*.*.{name}.>"));
    }

    let subscribe = Rules { allow: vec![">".into()], deny: vec![format!("{AGENT_INBOX}.>")] };
    Permissions { publish: Rules { allow, deny }, subscribe }
}

/// What the agent may do in UP: speak and hear as itself.
pub(crate) fn up(path: &Path) -> Permissions {
    Permissions::only(subject::link_up(path), subject::link_down(path))
}

/// What the agent may do in DOWN: hear its children and answer them.
pub(crate) fn down() -> Permissions {
    Permissions::only(LINK_DOWN_ALL.to_owned(), subject::LINK_UP_ALL.to_owned())
}

/// What a child may do over its leaf connection: speak and hear as itself.
///
/// The denials repeat what the allow-list already leaves out, because some versions let a leaf's
/// acknowledgements and system requests past the allow-list.
pub(crate) fn child(path: &Path) -> Permissions {
    let mut own = up(path);
    for rules in [&mut own.publish, &mut own.subscribe] {
        rules.deny = vec!["$SYS.>".to_owned(), "$JS.>".to_owned()];
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    /// Whether the subject pattern covers the literal subject, by nats-server's rules.
    fn covers(pattern: &str, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for p in pattern.split('.') {
            match (p, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (p, Some(t)) if p == t => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    fn may(rules: &Rules, subject: &str) -> bool {
        let any = |list: &[String]| list.iter().any(|pattern| covers(pattern, subject));
        any(&rules.allow) && !any(&rules.deny)
    }

    fn local_may_publish(path: &str, subject: &str) -> bool {
        may(&local(&path.parse().unwrap()).publish, subject)
    }

    #[test]
    fn an_application_speaks_for_its_own_level_and_never_for_one_below() {
        for (path, subject, allowed) in [
            ("s1/c1/n1", "lucent.hierarchy.node.n1.ticks", true),
            // The agent refuses these into the dead letters, with a reason.
            ("s1/c1/n1", "lucent.hierarchy.node.n2.ticks", true),
            ("s1/c1/n1", "lucent.hierarchy.site.s1", true),
            ("s1/c1", "lucent.hierarchy.cluster.c1.alerts", true),
            ("s1/c1", "lucent.hierarchy.node.n1", false),
            ("s1", "lucent.hierarchy.cluster.c1.x.y", false),
            ("s1", "lucent.hierarchy.node.n1", false),
            ("global", "lucent.hierarchy.site.s1", false),
            ("global", "lucent.hierarchy.global", true),
            ("global", "lucent.hierarchy.global.news", true),
            // What the agent says of itself.
            ("s1/c1/n1", "lucent.hierarchy.node.n1.agent.telemetry", false),
            ("s1", "lucent.hierarchy.site.s1.agent.rollup", false),
            ("global", "lucent.hierarchy.global.agent.rollup", false),
        ] {
            assert_eq!(local_may_publish(path, subject), allowed, "{path}: {subject}");
        }
    }

    #[test]
    fn an_application_uses_streams_but_changes_none() {
        for open in [
            "lucent.agents.yield.analysis",
            "lucent.send.site.s1.commands.trading.halt",
            "lucent.events.domain.trade.executed",
            "lucent.commands.trading.execute",
            "lucent.responses.trading.1",
            "lucent.services.x.health",
            "jobs.data_export",
            "signals.created",
            "_INBOX.abc.1",
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.JOBS",
            "$JS.API.CONSUMER.CREATE.JOBS.w.jobs.x",
            "$JS.API.CONSUMER.DURABLE.CREATE.JOBS.w",
            "$JS.API.CONSUMER.MSG.NEXT.JOBS.w",
            "$JS.ACK.JOBS.w.1.2.2.3.0",
            "$JS.ACK.d.h.JOBS.w.1.2.2.3.0.r",
            "$JS.FC.JOBS.w.x",
            "$KV.settings.a",
        ] {
            assert!(local_may_publish("s1", open), "{open} was refused");
        }
        for closed in [
            "$JS.API.STREAM.CREATE.X",
            "$JS.API.STREAM.UPDATE.JOBS",
            "$JS.API.STREAM.DELETE.JOBS",
            "$JS.API.STREAM.PURGE.JOBS",
            "$JS.API.STREAM.MSG.DELETE.JOBS",
            "$JS.API.STREAM.RESTORE.JOBS",
            "$JS.API.STREAM.SNAPSHOT.JOBS",
            "$JS.API.CONSUMER.CREATE.JOBS",
            "$JS.API.STREAM.LEADER.STEPDOWN.JOBS",
            "$JS.API.DIRECT.GET.JOBS",
            "$JS.API.SERVER.REMOVE",
            "$JS.site:s1.API.STREAM.DELETE.JOBS",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
            "lucent.deadletter.s1",
            "lucent.link.up.site.s1",
            "orders.here.commands.trading.halt",
            "lucent.order.site.s1",
            "_INBOX_LUCENT.x.1",
            "$O.bucket.C.x",
            "anything",
        ] {
            assert!(!local_may_publish("s1", closed), "{closed} was allowed");
        }
    }

    #[test]
    fn what_is_the_agents_stays_the_agents() {
        for spec in crate::kv_buckets(Level::Site, &crate::streams::StreamLimits::new(1 << 30)) {
            assert!(!local_may_publish("s1", &format!("$KV.{}.key", spec.bucket)));
        }
        for name in AGENT_CONSUMERS {
            for request in [
                "CREATE.HIERARCHY.@",
                "CREATE.HIERARCHY.@.lucent.x",
                "DURABLE.CREATE.HIERARCHY.@",
                "DELETE.HIERARCHY.@",
                "MSG.NEXT.HIERARCHY.@",
                "PAUSE.HIERARCHY.@",
            ] {
                let subject = format!("$JS.API.CONSUMER.{}", request.replace('@', name));
                assert!(!local_may_publish("s1", &subject), "{subject} was allowed");
            }
            assert!(!local_may_publish("s1", &format!("$JS.ACK.HIERARCHY.{name}.1.2.2.3.0")));
            assert!(!local_may_publish("s1", &format!("$JS.ACK.site:s1.h.HIERARCHY.{name}.1.2.2.3.0.r")));
        }
        let local = local(&"s1".parse().unwrap());
        assert!(may(&local.subscribe, "lucent.hierarchy.site.s1"));
        assert!(!may(&local.subscribe, &format!("{}.abc.1", names::AGENT_INBOX)));
    }

    #[test]
    fn a_child_speaks_and_hears_only_as_itself() {
        let child = child(&"s1/c1/n1".parse().unwrap());
        assert!(may(&child.publish, "lucent.link.up.node.n1"));
        assert!(may(&child.subscribe, "lucent.link.down.node.n1"));
        for other in [
            "lucent.link.up.node.n2",
            "lucent.link.up.cluster.n1",
            "lucent.link.up.node.n1.x",
            "lucent.link.down.node.n1",
            "$SYS.REQ.ACCOUNT.PING.CONNZ",
            "$JS.ACK.HIERARCHY.lucent.1.2.2.3.0",
        ] {
            assert!(!may(&child.publish, other), "{other} was allowed");
        }
        for other in ["lucent.link.down.node.n2", "lucent.link.up.node.n1", "_INBOX.x.1"] {
            assert!(!may(&child.subscribe, other), "{other} was allowed");
        }
    }
}
