//! `[[policy]]`, `[[priority]]`, `[[child_limit]]` and `[[runner]]`: the lists of tables.

use hierarchy::{Id, Level, link::RateLimit};

use super::{
    checked::{ChildLimit, Names, PolicyAction, PolicyRule, PriorityRule, Runner},
    error::Problem,
    reader::{Reader, program},
};

/// All policy rules, in the order of the file.
pub(super) fn policy(r: &mut Reader) -> Option<Vec<PolicyRule>> {
    let rules: Vec<_> = (0..r.tables("policy")).map(|i| policy_rule(r, &format!("policy[{i}]"))).collect();
    rules.into_iter().collect()
}

fn policy_rule(r: &mut Reader, table: &str) -> Option<PolicyRule> {
    let [subject_key, action_key, one_in_key] =
        ["subject", "action", "one_in"].map(|key| format!("{table}.{key}"));
    let subject = r.text(&subject_key).filter(|subject| {
        is_pattern(subject) || {
            r.refuse_form(&subject_key);
            false
        }
    });
    let (action, one_in) = (r.text(&action_key), r.count(&one_in_key));
    let action = match (action?.as_str(), one_in) {
        ("sample", Some(one_in)) => PolicyAction::Sample(one_in),
        ("sample", None) => {
            if !r.is_set(&one_in_key) {
                r.missing(&one_in_key, "action sample needs it: one_in = 10 forwards every tenth event");
            }
            return None;
        }
        (_, Some(_)) => {
            let problem = "is for action = \"sample\": change the action, or remove the key";
            r.refuse(&one_in_key, Problem::Contradiction(problem.to_owned()));
            return None;
        }
        ("forward", None) => PolicyAction::Forward,
        ("aggregate", None) => PolicyAction::Aggregate,
        ("drop", None) => PolicyAction::Drop,
        _ => {
            r.refuse_form(&action_key);
            return None;
        }
    };
    Some(PolicyRule { subject: subject?, action })
}

/// All rules for lanes, in the order of the file.
pub(super) fn priorities(r: &mut Reader) -> Option<Vec<PriorityRule>> {
    let rule = |r: &mut Reader, table: String| {
        let (subject_key, lane_key) = (format!("{table}.subject"), format!("{table}.lane"));
        let subject = r.parsed(&subject_key);
        let lane = r.parsed(&lane_key);
        Some(PriorityRule { subject: subject?, lane: lane? })
    };
    let rules: Vec<_> = (0..r.tables("priority")).map(|i| rule(r, format!("priority[{i}]"))).collect();
    rules.into_iter().collect()
}

/// All limits of children, in the order of the file.
pub(super) fn child_limits(r: &mut Reader) -> Option<Vec<ChildLimit>> {
    let limits: Vec<_> =
        (0..r.tables("child_limit")).map(|i| child_limit(r, &format!("child_limit[{i}]"))).collect();
    limits.into_iter().collect()
}

fn child_limit(r: &mut Reader, table: &str) -> Option<ChildLimit> {
    let [child_key, bytes_key, events_key] =
        ["child", "bytes_per_s", "events_per_s"].map(|key| format!("{table}.{key}"));
    let child = match r.text(&child_key)?.as_str() {
        "*" => Names::Any,
        id if id.parse::<Id>().is_ok() => Names::Only(id.to_owned()),
        _ => {
            r.refuse_form(&child_key);
            return None;
        }
    };
    let (bytes_per_s, events_per_s) = (r.size(&bytes_key), r.count(&events_key));
    let is_sound =
        bytes_per_s.is_some() == r.is_set(&bytes_key) && events_per_s.is_some() == r.is_set(&events_key);
    is_sound.then_some(ChildLimit { child, rate: RateLimit { bytes_per_s, events_per_s } })
}

/// All runners, in the order of the file.
pub(super) fn runners(r: &mut Reader, level: Option<Level>) -> Option<Vec<Runner>> {
    let count = r.tables("runner");
    if let (Some(level @ (Level::Cluster | Level::Site | Level::Global)), 1..) = (level, count) {
        let problem = Problem::Misplaced { level, remedy: "tasks run at nodes, move the runner there" };
        r.refuse_all("runner[0].", &problem);
    }
    let runners: Vec<_> = (0..count).map(|i| runner(r, &format!("runner[{i}]"))).collect();
    let runners: Vec<Runner> = runners.into_iter().collect::<Option<_>>()?;
    for (i, this) in runners.iter().enumerate() {
        let twin = runners[..i]
            .iter()
            .position(|other| (&other.agent_type, &other.task) == (&this.agent_type, &this.task));
        if let Some(twin) = twin {
            let problem =
                format!("runner[{twin}] serves the same agent_type and task: raise its slots, or remove one");
            r.refuse(&format!("runner[{i}].task"), Problem::Contradiction(problem));
        }
    }
    Some(runners)
}

fn runner(r: &mut Reader, table: &str) -> Option<Runner> {
    let key = |name: &str| format!("{table}.{name}");
    let (agent_type, task) = (names(r, &key("agent_type"), 1), names(r, &key("task"), usize::MAX));
    let command = r.texts(&key("command")).filter(|command| {
        command.first().is_some_and(|c| !c.is_empty()) || {
            r.refuse_form(&key("command"));
            false
        }
    });
    let slots = r.count(&key("slots"));
    let (timeout, grace) = (r.duration(&key("timeout")), r.duration(&key("grace")));
    let workdir =
        if r.is_set(&key("workdir")) { r.path(&key("workdir")) } else { Some(r.file_dir().to_owned()) };
    let env = r.map(&key("env"));
    if let Some(name) = env.iter().flat_map(|env| env.keys()).find(|name| !is_variable(name)) {
        let problem =
            format!("`{name}` is no name for a variable here: use letters, digits and `_`, but not LUCENT_");
        r.refuse(&key("env"), Problem::Contradiction(problem));
    }
    let command = command?;
    let (first, args) = command.split_first()?;
    Some(Runner {
        agent_type: agent_type?,
        task: task?,
        program: program(r.file_dir(), first),
        args: args.to_vec(),
        slots: slots?,
        timeout: timeout?,
        grace: grace?,
        workdir: workdir?,
        env: env?,
    })
}

fn names(r: &mut Reader, key: &str, most_tokens: usize) -> Option<Names> {
    let text = r.text(key)?;
    if text == "*" {
        return Some(Names::Any);
    }
    if text.split('.').count() <= most_tokens && text.split('.').all(is_token) {
        return Some(Names::Only(text));
    }
    r.refuse_form(key);
    None
}

/// Whether a text is a token that a message can be published on.
fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '*' | '>' | '.'))
}

/// Whether a text is a subject with wildcards: `*` and `>` as whole tokens, `>` at the end.
fn is_pattern(pattern: &str) -> bool {
    let mut tokens: Vec<_> = pattern.split('.').collect();
    tokens.pop_if(|last| *last == ">");
    (!tokens.is_empty() || pattern == ">") && tokens.iter().all(|token| *token == "*" || is_token(token))
}

/// Whether a text names an environment variable that a runner may set. `LUCENT_` is the task's own.
fn is_variable(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(legal)
        && !name.starts_with("LUCENT_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_wildcards_as_whole_tokens_only() {
        for good in [">", "*", "lucent.>", "lucent.hierarchy.*.*.debug.>", "a.b"] {
            assert!(is_pattern(good), "{good:?} was refused");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.>.b", "a.b>", "a.*b", "a b", ">.>"] {
            assert!(!is_pattern(bad), "{bad:?} was accepted");
        }
    }
}
