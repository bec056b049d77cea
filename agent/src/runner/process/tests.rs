use std::time::Duration;

use serde_json::value::RawValue;

use super::*;
use crate::runner::LOG_TAIL_BYTES;

/// Longer than any test takes that does not hang.
const LONG: Duration = Duration::from_secs(60);

fn sh(script: &str) -> ProcessSpec {
    ProcessSpec {
        program: "sh".into(),
        args: vec!["-c".to_owned(), script.to_owned()],
        workdir: std::env::temp_dir(),
        env: BTreeMap::new(),
        timeout: LONG,
        grace: LONG,
    }
}

fn job(payload: &str) -> Job {
    Job {
        task_id: "t-1".to_owned(),
        attempt: 2,
        agent_type: "yield".to_owned(),
        task: "analysis".to_owned(),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
        metadata: RawValue::from_string("{}".to_owned()).unwrap(),
        epoch: 7,
        idempotency_key: "key-1".to_owned(),
    }
}

/// Runs to the end; the progress reports come along.
async fn run_all(spec: &ProcessSpec, job: Job) -> (Outcome, Vec<Progress>) {
    let (progress, mut reports) = mpsc::channel(64);
    let outcome = run(spec, job, progress, CancellationToken::new()).await;
    let mut received = Vec::new();
    while let Ok(report) = reports.try_recv() {
        received.push(report);
    }
    (outcome, received)
}

fn failure(outcome: Outcome) -> (FailureReason, String) {
    match outcome {
        Outcome::Failed { reason, log_tail } => (reason, log_tail),
        other => panic!("{other:?} is no failure"),
    }
}

fn result(outcome: Outcome) -> String {
    match outcome {
        Outcome::Succeeded { result } => result.get().to_owned(),
        other => panic!("{other:?} is no success"),
    }
}

/// Waits until the process is dead. An orphan may stay a zombie where process 1 reaps nobody.
async fn assert_dies(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X'])) {
            None | Some(true) => return,
            Some(false) => assert!(Instant::now() < deadline, "process {pid} is alive"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_reaped(pid: &str) {
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} was not reaped");
}

#[tokio::test]
async fn a_process_reports_progress_and_a_result() {
    let mut spec = sh("");
    spec.program = "python3".into();
    spec.args[1] = r#"
import json, os, sys
job = json.load(sys.stdin)
print(json.dumps({"progress": 0.4, "message": "reading"}), flush=True)
print("a line for people")
print(json.dumps({"progress": 1}))
print(json.dumps({"result": {"job": job, "env": dict(os.environ)}}))
"#
    .to_owned();
    spec.env.insert("MODEL".to_owned(), "small".to_owned());
    let (outcome, reports) = run_all(&spec, job("{\"pool\":\"a\\nb\"}")).await;

    let fractions: Vec<_> = reports.iter().map(|r| (r.fraction, r.message.as_str())).collect();
    assert_eq!(fractions, [(0.4, "reading"), (1.0, "")]);
    let result: serde_json::Value = serde_json::from_str(&result(outcome)).unwrap();
    let expected = serde_json::json!({
        "task_id": "t-1", "attempt": 2, "agent_type": "yield", "task": "analysis",
        "payload": {"pool": "a\nb"}, "metadata": {}
    });
    assert_eq!(result["job"], expected);
    let env = &result["env"];
    assert_eq!([&env["LUCENT_TASK_ID"], &env["LUCENT_EPOCH"], &env["MODEL"]], ["t-1", "7", "small"]);
    assert_eq!(env["LUCENT_IDEMPOTENCY_KEY"], "key-1");
    // Cargo gives this variable to the test, as a service manager may give secrets to the agent.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(env.get("CARGO_MANIFEST_DIR").is_none(), "the process sees the agent's environment");
}

#[tokio::test]
async fn a_failure_says_why_and_shows_the_end_of_the_log() {
    let script = "echo >&2 \"$(seq 1 5000)\"; echo 'out of luck' >&2; exit 3";
    let (reason, log_tail) = failure(run_all(&sh(script), job("1")).await.0);
    assert_eq!(reason, FailureReason::Exit(3));
    assert!(log_tail.ends_with("5000\nout of luck\n"), "{log_tail}");
    assert!(log_tail.len() <= LOG_TAIL_BYTES && !log_tail.contains("\n100\n"));

    let (reason, _) = failure(run_all(&sh("kill -SEGV $$"), job("1")).await.0);
    assert_eq!(reason, FailureReason::Signal(Signal::SIGSEGV as i32));
}

#[tokio::test]
async fn a_good_end_without_a_result_is_a_failure_and_a_result_without_a_good_end_too() {
    let (reason, log_tail) = failure(run_all(&sh("echo hello"), job("1")).await.0);
    assert!(reason.to_string().starts_with("no result:"), "{reason}");
    assert!(matches!(reason, FailureReason::NoResult(ignored) if ignored.other == 1));
    assert_eq!(log_tail, "hello\n");

    let (reason, _) = failure(run_all(&sh("echo '{\"result\":1}'; exit 1"), job("1")).await.0);
    assert_eq!(reason, FailureReason::Exit(1));
}

#[tokio::test]
async fn much_input_and_much_output_at_once_block_nobody() {
    // Both pipes are far smaller than this, and the process reads only after it has written.
    let payload = format!("\"{}\"", "x".repeat(1 << 20));
    let script =
        "head -c 8000000 /dev/zero; head -c 8000000 /dev/zero >&2; echo; wc -c >&2; echo '{\"result\":1}'";
    assert_eq!(result(run_all(&sh(script), job(&payload)).await.0), "1");

    // A process that never reads its input may succeed as well.
    assert_eq!(result(run_all(&sh("exec 0<&-; echo '{\"result\":2}'"), job(&payload)).await.0), "2");
}

#[tokio::test]
async fn progress_without_room_is_skipped() {
    let (progress, mut reports) = mpsc::channel(1);
    let spec = sh("for i in 1 2 3 4 5; do echo '{\"progress\":0.'$i'}'; done; echo '{\"result\":1}'");
    assert_eq!(result(run(&spec, job("1"), progress, CancellationToken::new()).await), "1");
    assert_eq!(reports.recv().await.unwrap().fraction, 0.1);
    assert!(reports.recv().await.is_none());
}

/// A process that first sets its traps, then has a grandchild print the ids of both and ignore SIGTERM, then
/// goes on with `rest`. When the ids arrive, the traps are set.
fn with_grandchild(traps: &str, rest: &str) -> ProcessSpec {
    let ids = r#"{\"progress\":0,\"message\":\"$$ $PPID\"}"#;
    sh(&format!("{traps}; sh -c 'trap \"\" TERM; echo \"{ids}\"; while :; do sleep 1000; done' & {rest}"))
}

/// The two ids: grandchild, leader.
fn ids(report: &Progress) -> (String, String) {
    let (grandchild, leader) = report.message.split_once(' ').unwrap();
    (grandchild.to_owned(), leader.to_owned())
}

#[tokio::test]
async fn a_timeout_kills_the_whole_group() {
    // All of them ignore SIGTERM. The timeout leaves time to start, and nothing waits for it but this test.
    let mut spec = with_grandchild("trap '' TERM; echo stubborn >&2", "while :; do wait; done");
    spec.timeout = Duration::from_secs(2);
    spec.grace = Duration::from_millis(100);
    let (outcome, reports) = run_all(&spec, job("1")).await;
    let (reason, log_tail) = failure(outcome);
    assert_eq!((reason, log_tail.as_str()), (FailureReason::TimedOut(spec.timeout), "stubborn\n"));
    let (grandchild, leader) = ids(&reports[0]);
    assert_reaped(&leader);
    assert_dies(&grandchild).await;
}

#[tokio::test]
async fn a_cancelled_process_may_tidy_up_and_then_all_of_its_group_is_gone() {
    let done = tempfile::tempdir().unwrap();
    let mut spec = with_grandchild("trap 'echo tidied > tidied; exit 0' TERM", "while :; do wait; done");
    spec.workdir = done.path().to_owned();
    spec.grace = Duration::from_millis(500);
    let (progress, mut reports) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let (outcome, (grandchild, leader)) =
        tokio::join!(run(&spec, job("1"), progress, cancel.clone()), async {
            let ids = ids(&reports.recv().await.unwrap());
            cancel.cancel();
            ids
        });
    assert!(matches!(outcome, Outcome::Cancelled));
    assert!(done.path().join("tidied").exists(), "SIGTERM did not come before SIGKILL");
    assert_reaped(&leader);
    assert_dies(&grandchild).await;
}

#[tokio::test]
async fn what_a_process_leaves_behind_is_killed_and_does_not_delay_its_result() {
    let started = Instant::now();
    // It ends when its grandchild has spoken, whose id it wrote to the same pipe.
    let spec = with_grandchild(":", "while ! [ -e spoken ]; do :; done; echo '{\"result\":1}'");
    let dir = tempfile::tempdir().unwrap();
    let spec = ProcessSpec { workdir: dir.path().to_owned(), ..spec };
    let (progress, mut reports) = mpsc::channel(1);
    let (outcome, (grandchild, leader)) =
        tokio::join!(run(&spec, job("1"), progress, CancellationToken::new()), async {
            let ids = ids(&reports.recv().await.unwrap());
            std::fs::write(dir.path().join("spoken"), "").unwrap();
            ids
        });
    assert_eq!(result(outcome), "1");
    assert_reaped(&leader);
    assert_dies(&grandchild).await;
    assert!(started.elapsed() < LONG, "the grandchild's open pipe delayed the result");
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let spec = with_grandchild("trap '' TERM", "while :; do wait; done");
    let (progress, mut reports) = mpsc::channel(1);
    let (grandchild, leader) = tokio::select! {
        outcome = run(&spec, job("1"), progress, CancellationToken::new()) => panic!("ended: {outcome:?}"),
        report = reports.recv() => ids(&report.unwrap()),
    };
    assert_dies(&grandchild).await;
    assert_dies(&leader).await;
}

#[tokio::test]
async fn a_command_that_cannot_start_is_a_clear_failure() {
    let missing = ProcessSpec { program: "no-such-program-here".into(), ..sh("") };
    let (reason, _) = failure(run_all(&missing, job("1")).await.0);
    let text = reason.to_string();
    assert!(text.contains("`no-such-program-here`") && text.contains("install it"), "{text}");

    let homeless = ProcessSpec { workdir: "/no/such/directory".into(), ..sh("") };
    let (reason, _) = failure(run_all(&homeless, job("1")).await.0);
    assert!(reason.to_string().contains("working directory"), "{reason}");

    let forbidden = ProcessSpec { program: "/etc/passwd".into(), ..sh("") };
    let (reason, _) = failure(run_all(&forbidden, job("1")).await.0);
    assert!(reason.to_string().contains("make it executable"), "{reason}");
}

#[tokio::test]
async fn what_is_cancelled_before_it_starts_never_starts() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ProcessSpec { workdir: dir.path().to_owned(), ..sh("touch started") };
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(run(&spec, job("1"), mpsc::channel(1).0, cancel).await, Outcome::Cancelled));
    assert!(!dir.path().join("started").exists());
}
