//! The generated files are what the code would write today.

#![allow(clippy::unwrap_used)]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/generated.rs"]
mod generated;

use std::{collections::BTreeSet, fs, path::Path};

use fixtures::servers;
use generated::VERSIONS;
use nats_config::{ServerVersion, render};

#[test]
fn golden_files_and_samples_are_current() {
    for (file, text) in generated::files() {
        let found = fs::read_to_string(&file).unwrap_or_default();
        let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
        let line = differs.unwrap_or_else(|| found.lines().count().min(text.lines().count())) + 1;
        assert!(
            found == text,
            "{} is stale from line {line}: run `cargo run -p nats-config --example samples` and read the diff",
            file.display()
        );
    }
}

#[test]
fn no_generated_file_is_left_behind() {
    let expected: BTreeSet<_> = generated::files().into_iter().map(|(file, _)| file).collect();
    for folder in ["golden", "samples"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let file = entry.unwrap().path();
            assert!(expected.contains(&file), "{} is generated no more: delete it", file.display());
        }
    }
}

#[test]
fn the_oldest_server_of_production_goes_without_one_line_only() {
    let floor = ServerVersion::new(2, 12, 14);
    for ((level, newest), (_, oldest)) in servers(VERSIONS[0]).into_iter().zip(servers(floor)) {
        let body = |options| {
            let text = render(&options).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter(|line| !line.contains("ignore_discovered_servers"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(body(newest), body(oldest), "{level}");
    }
}

#[test]
fn a_paused_parent_is_one_line_more_where_the_server_knows_it_and_none_where_it_does_not() {
    for (version, more) in
        [(ServerVersion::new(2, 14, 5), vec!["disabled: true"]), (ServerVersion::new(2, 9, 10), vec![])]
    {
        let [_, _, (_, mut site), _] = servers(version);
        let before = render(&site).unwrap();
        site.parents.as_mut().unwrap().paused = true;
        let paused = render(&site).unwrap();
        let added = paused.lines().filter(|line| !before.lines().any(|other| other == *line));
        assert_eq!(added.map(str::trim).collect::<Vec<_>>(), more);
        assert_eq!(paused.lines().count(), before.lines().count() + more.len());
    }
}
