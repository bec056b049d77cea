//! What the log of a server that ended says of why.

use std::{fs, path::Path};

/// How long the log is, to tell later what was logged since.
pub(super) fn length(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |meta| meta.len())
}

/// The stream that the server was reading when it died, by what it has logged since. Where it read several at
/// once it is the first of them.
pub(super) fn died_over(log: &Path, since: u64) -> Option<String> {
    let bytes = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(bytes.get(usize::try_from(since).ok()?..)?).into_owned();
    unfinished(&text).map(str::to_owned)
}

/// The first stream whose reading was begun and not ended.
fn unfinished(log: &str) -> Option<&str> {
    let begun = log.lines().filter(|line| line.contains("Starting restore for stream"));
    let mut names = begun.filter_map(|line| line.rsplit_once(" > ")?.1.split('\'').next());
    names.find(|name| {
        let ended = format!(" > {name}'");
        !log.lines().any(|line| line.contains("Restored ") && line.contains(&ended))
    })
}

/// What the server complained about last.
pub(super) fn complaint(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let complaint = text
        .lines()
        .rev()
        .find(|line| line.contains("[FTL]") || line.contains("[ERR]") || line.contains("nats-server:"));
    complaint.unwrap_or("nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_that_was_being_read_is_told_from_those_that_were() {
        let log = "[7] [INF]   Starting restore for stream 'MESH > JOBS'
[7] [INF]   Starting restore for stream 'MESH > SIGNALS'
[7] [INF]   Restored 3 messages for stream 'MESH > JOBS' in 0s
";
        assert_eq!(unfinished(log), Some("SIGNALS"));
        assert_eq!(unfinished("[7] [INF] Server is ready"), None);
    }
}
