//! Makes sense of what a process writes, in bounded memory whatever it writes.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Ignored, LOG_TAIL_BYTES, MAX_LINE_BYTES, MAX_MESSAGE_CHARS, Progress};

/// Standard output and standard error of one process, as far as they have been read.
#[derive(Debug, Default)]
pub struct Output {
    line: Vec<u8>,
    /// The current line has grown too long; what follows up to its end is passed over.
    skipping: bool,
    tail: VecDeque<u8>,
    result: Option<Box<RawValue>>,
    ignored: Ignored,
}

/// A line of standard output.
#[derive(Default, Deserialize)]
struct Line {
    progress: Option<f64>,
    #[serde(default)]
    message: String,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
}

/// Keeps `"result": null`, which is a result, apart from no result.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Output {
    /// Takes in what was read from standard output; calls `report` for each progress in it.
    pub fn stdout(&mut self, mut bytes: &[u8], mut report: impl FnMut(Progress)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.extend_line(&bytes[..end]);
            self.end_line(&mut report);
            bytes = &bytes[end + 1..];
        }
        self.extend_line(bytes);
    }

    /// Takes in what was read from standard error.
    pub fn stderr(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        let surplus = (self.tail.len() + kept.len()).saturating_sub(LOG_TAIL_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend(kept);
    }

    /// Standard output has ended: a last line may lack its newline.
    pub fn end(&mut self, report: impl FnMut(Progress)) {
        if self.skipping || !self.line.is_empty() {
            self.end_line(report);
        }
    }

    /// The result or, if there was none, what was passed over.
    pub fn into_result(self) -> Result<Box<RawValue>, Ignored> {
        self.result.ok_or(self.ignored)
    }

    /// The end of what was said, as text: at most [`LOG_TAIL_BYTES`].
    pub fn log_tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        // A replacement character is longer than the byte it replaces, so the bound is kept here again.
        let text = String::from_utf8_lossy(&bytes);
        let earliest = text.len().saturating_sub(LOG_TAIL_BYTES);
        let start = (earliest..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(earliest);
        text[start..].to_owned()
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        if self.skipping {
            return;
        }
        let room = MAX_LINE_BYTES - self.line.len();
        self.skipping = bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self, mut report: impl FnMut(Progress)) {
        let line = std::mem::take(&mut self.line);
        let is_object = line.trim_ascii_start().starts_with(b"{");
        if std::mem::take(&mut self.skipping) {
            self.ignored.too_long += 1;
            if is_object {
                // It may have been the result that was meant to replace an earlier one.
                self.result = None;
            }
            return;
        }
        let parsed = if is_object { serde_json::from_slice(&line).ok() } else { None };
        let Line { progress, message, result } = parsed.unwrap_or_default();
        let progress = progress.filter(|fraction| (0.0..=1.0).contains(fraction));
        if progress.is_none() && result.is_none() && !line.trim_ascii().is_empty() {
            self.ignored.other += 1;
            self.stderr(&line);
            self.stderr(b"\n");
        }
        if let Some(fraction) = progress {
            report(Progress { fraction, message: message.chars().take(MAX_MESSAGE_CHARS).collect() });
        }
        self.result = result.or(self.result.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The progress reports and the outcome of `text`, however it is cut into pieces.
    fn read(text: &[u8], piece: usize) -> (Vec<Progress>, Output) {
        let (mut output, mut reports) = (Output::default(), Vec::new());
        text.chunks(piece).for_each(|bytes| output.stdout(bytes, |p| reports.push(p)));
        output.end(|p| reports.push(p));
        (reports, output)
    }

    #[test]
    fn the_last_result_wins_wherever_reads_cut_the_lines() {
        let text =
            b"{\"progress\":0.5,\"message\":\"half\"}\nchatter\n{\"result\":1}\n\n{\"result\": {\"a\" :2}}";
        for piece in [1, 2, 7, text.len()] {
            let (reports, output) = read(text, piece);
            assert_eq!(reports, [Progress { fraction: 0.5, message: "half".to_owned() }]);
            assert_eq!((output.ignored.other, output.log_tail().as_str()), (1, "chatter\n"));
            assert_eq!(output.into_result().unwrap().get(), "{\"a\" :2}");
        }
    }

    #[test]
    fn null_is_a_result_and_nonsense_is_none() {
        assert_eq!(read(b"{\"result\":null}\n", 99).1.into_result().unwrap().get(), "null");
        let nonsense = b"{}\n[1]\n{\"progress\":40}\n{\"progress\":\"x\"}\n{\"result\":\n\xff\xfe\n";
        let (reports, output) = read(nonsense, 99);
        assert_eq!((reports.len(), output.into_result().unwrap_err().other), (0, 6));
    }

    #[test]
    fn memory_stays_bounded_and_the_longest_legal_line_is_read() {
        let fits = format!("{{\"result\":\"{}\"}}", "x".repeat(MAX_LINE_BYTES - 13));
        assert_eq!(fits.len(), MAX_LINE_BYTES);
        assert!(read(fits.as_bytes(), 4096).1.into_result().is_ok());

        let too_long = format!("{{\"result\":1}}\n{{\"result\":\"{}\"}}\n", "x".repeat(3 * MAX_LINE_BYTES));
        let mut output = Output::default();
        for bytes in too_long.as_bytes().chunks(4096) {
            output.stdout(bytes, |_| {});
            assert!(output.line.len() <= MAX_LINE_BYTES);
        }
        // The earlier result may not stand in for the one that could not be read.
        let ignored = output.into_result().unwrap_err();
        assert_eq!((ignored.too_long, ignored.other), (1, 0));
    }

    #[test]
    fn the_log_tail_keeps_the_end() {
        let mut output = Output::default();
        output.stderr(&[b'a'; 3 * LOG_TAIL_BYTES]);
        output.stderr(b"the end");
        let tail = output.log_tail();
        assert!(tail.ends_with("aaathe end") && tail.len() == LOG_TAIL_BYTES, "{}", tail.len());
        output.stderr(&[0xff; LOG_TAIL_BYTES]);
        assert!(output.log_tail().len() <= LOG_TAIL_BYTES);
    }
}
