//! Damaged blocks are found before the server reads them. It would say nothing, cut a block off at the first record
//! that does not fit its checksum, and number anew from there; so a copy of the whole block is kept aside first.
//!
//! ```text
//! record: length u32 (highest bit: headers) | sequence u64 | time u64 | subject's length u16
//!         | subject | headers' length u32, where there are | headers | message | checksum u64
//! ```
//! The form of nats-server 2.10 to 2.14, little-endian; the checksum is a HighwayHash whose key is the SHA-256 of the
//! stream's name and the block's number.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use highway::{HighwayHash as _, HighwayHasher, Key};
use sha2::{Digest as _, Sha256};

use super::{room, set_aside};

/// How long a start may be held up by this; the newest blocks are looked at first.
const WITHIN: Duration = Duration::from_secs(2);
/// Bytes before a record's subject.
const HEAD: usize = 22;
const CHECKSUM: usize = 8;
const HAS_HEADERS: u32 = 1 << 31;
/// What marks a record of something that was removed.
const REMOVED: u64 = 3 << 62;
/// The server takes no longer records for sound.
const LONGEST: usize = 32 << 20;
/// How far behind the last sound record the next one is looked for, in sequence numbers.
const NEAR: u64 = 100_000;

/// Keeps copies of all blocks that the server would cut off. It must not run.
pub(in crate::broker) fn keep_damaged(nats: &Path) {
    let began = Instant::now();
    let blocks = newest_first(nats);
    for (looked_at, block) in blocks.iter().enumerate() {
        if began.elapsed() > WITHIN {
            tracing::info!(looked_at, of = blocks.len(), "not every block was looked at for damage");
            return;
        }
        let Ok(bytes) = fs::read(&block.path) else { continue };
        let Some(sound) = damaged_from(&bytes, key(&block.stream, block.number)) else { continue };
        match keep(nats, block, &bytes) {
            Ok(None) => {}
            Ok(Some(kept)) => tracing::error!(
                stream = block.stream, block = block.number, sound, bytes = bytes.len(), kept_in = %kept.display(),
                "a block of this stream is damaged: the server drops what is behind the damage; a copy of the whole is kept"
            ),
            Err(error) => tracing::error!(
                stream = block.stream,
                block = block.number,
                sound,
                bytes = bytes.len(),
                error,
                "a block of this stream is damaged, and no copy can be kept of what the server drops"
            ),
        }
    }
}

struct Block {
    stream: String,
    number: u32,
    path: PathBuf,
    written: SystemTime,
}

fn newest_first(nats: &Path) -> Vec<Block> {
    let streams = fs::read_dir(set_aside::streams_dir(nats)).into_iter().flatten().flatten();
    let mut blocks: Vec<Block> = streams.flat_map(|stream| blocks_of(&stream)).collect();
    blocks.sort_by_key(|block| std::cmp::Reverse(block.written));
    blocks
}

fn blocks_of(stream: &fs::DirEntry) -> Vec<Block> {
    let files = fs::read_dir(stream.path().join("msgs")).into_iter().flatten().flatten();
    let name = stream.file_name().to_string_lossy().into_owned();
    let block = |file: fs::DirEntry| {
        let number = file.file_name().to_str()?.strip_suffix(".blk")?.parse().ok()?;
        let written = file.metadata().and_then(|meta| meta.modified()).ok()?;
        Some(Block { stream: name.clone(), number, path: file.path(), written })
    };
    files.filter_map(block).collect()
}

/// Damage that the server has not come upon yet is found again at each start, and kept once.
fn keep(nats: &Path, block: &Block, bytes: &[u8]) -> Result<Option<PathBuf>, String> {
    let name = format!("{}.blk", block.number);
    if set_aside::of_stream(nats, &block.stream)
        .any(|place| fs::read(place.join(&name)).is_ok_and(|kept| kept == bytes))
    {
        return Ok(None);
    }
    if room::look(nats).is_below(bytes.len() as u64 + room::PLENTY) {
        return Err("there is no room for it".to_owned());
    }
    let copy = |to: &Path| -> io::Result<()> { fs::write(to.join(&name), bytes) };
    set_aside::copies(nats, &block.stream, copy).map(Some).map_err(|error| error.to_string())
}

fn key(stream: &str, block: u32) -> Key {
    let hash = Sha256::digest(format!("{stream}-{block}"));
    let mut key = [0; 4];
    for (word, bytes) in key.iter_mut().zip(hash.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Key(key)
}

/// Where sound records end, if that is before the block does and what follows is no mere torn write: a whole record
/// that does not fit its checksum, or sound ones behind the damage.
fn damaged_from(bytes: &[u8], key: Key) -> Option<usize> {
    let (mut at, mut last) = (0, 0);
    while at < bytes.len() {
        match Record::read(&bytes[at..], key) {
            Some(record) => {
                at += record.length;
                last = last.max(record.sequence & !REMOVED);
            }
            None => break,
        }
    }
    let rest = &bytes[at..];
    // Room that was made for a write that never came.
    if rest.iter().all(|byte| *byte == 0) {
        return None;
    }
    let whole = length(rest).is_some_and(|length| length == rest.len());
    (whole || has_sound(rest, last, key)).then_some(at)
}

/// Whether a sound record with a number shortly behind `last` is anywhere in here.
fn has_sound(bytes: &[u8], last: u64, key: Key) -> bool {
    let near = |sequence: u64| (last..=last.saturating_add(NEAR)).contains(&(sequence & !REMOVED));
    let numbers = bytes.windows(8).skip(4).enumerate();
    numbers
        .filter(|(_, number)| near(u64::from_le_bytes((*number).try_into().unwrap_or_default())))
        .any(|(at, _)| Record::read(&bytes[at..], key).is_some())
}

struct Record {
    length: usize,
    sequence: u64,
}

impl Record {
    /// The record that these bytes begin with, where it is sound.
    fn read(bytes: &[u8], key: Key) -> Option<Record> {
        let length = length(bytes).filter(|length| *length <= bytes.len())?;
        let subject = usize::from(u16::from_le_bytes(bytes.get(20..22)?.try_into().ok()?));
        let skipped = if word(bytes)? & HAS_HEADERS == 0 { 0 } else { 4 };
        let (content, checksum) = bytes[..length].split_at(length - CHECKSUM);
        let mut hasher = HighwayHasher::new(key);
        hasher.append(content.get(4..20)?);
        hasher.append(content.get(HEAD..HEAD + subject)?);
        hasher.append(content.get(HEAD + subject + skipped..)?);
        let sound = hasher.finalize64().to_le_bytes() == checksum;
        let sequence = u64::from_le_bytes(bytes.get(4..12)?.try_into().ok()?);
        sound.then_some(Record { length, sequence })
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// How long the record is by its own word, where that can be.
fn length(bytes: &[u8]) -> Option<usize> {
    let length = (word(bytes)? & !HAS_HEADERS) as usize;
    (HEAD + CHECKSUM..=LONGEST).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, headers: Option<&str>, message: &str, key: Key) -> Vec<u8> {
        let subject = "a.b";
        let headers_length = headers.map_or(0, |headers| 4 + headers.len());
        let length = HEAD + subject.len() + headers_length + message.len() + CHECKSUM;
        let flag = if headers.is_some() { HAS_HEADERS } else { 0 };
        let mut bytes = (length as u32 | flag).to_le_bytes().to_vec();
        bytes.extend(sequence.to_le_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend((subject.len() as u16).to_le_bytes());
        bytes.extend(subject.bytes());
        if let Some(headers) = headers {
            bytes.extend((headers.len() as u32).to_le_bytes());
            bytes.extend(headers.bytes());
        }
        bytes.extend(message.bytes());
        let mut hasher = HighwayHasher::new(key);
        hasher.append(&bytes[4..20]);
        hasher.append(subject.as_bytes());
        hasher.append(headers.unwrap_or_default().as_bytes());
        hasher.append(message.as_bytes());
        bytes.extend(hasher.finalize64().to_le_bytes());
        bytes
    }

    fn block() -> (Vec<u8>, Key) {
        let key = key("A", 1);
        let records = (1..=20).flat_map(|number| {
            record(number, (number % 2 == 0).then_some("NATS/1.0\r\n\r\n"), &"x".repeat(100), key)
        });
        (records.collect(), key)
    }

    #[test]
    fn a_sound_block_and_one_with_a_torn_tail_are_left_to_the_server() {
        let (block, key) = block();
        assert_eq!(damaged_from(&block, key), None);
        for torn in 1..130 {
            assert_eq!(damaged_from(&block[..block.len() - torn], key), None, "{torn} bytes torn off");
        }
        assert_eq!(damaged_from(&[&block[..], &[0; 4096]].concat(), key), None);
        assert_eq!(damaged_from(&[], key), None);
    }

    #[test]
    fn any_flipped_bit_is_found_but_in_the_length_of_the_last_record() {
        let (block, key) = block();
        let last = block.len() - record(20, Some("NATS/1.0\r\n\r\n"), &"x".repeat(100), key).len();
        for at in (0..block.len()).filter(|at| !(last..last + 4).contains(at) && in_checksum(&block, *at)) {
            let mut damaged = block.clone();
            damaged[at] ^= 0x10;
            assert!(damaged_from(&damaged, key).is_some_and(|from| from <= at), "{at}");
        }
    }

    /// All but what tells how long subject and headers are: the server does not notice damage there either.
    fn in_checksum(block: &[u8], at: usize) -> bool {
        let mut begin = 0;
        loop {
            let length = length(&block[begin..]).unwrap();
            if at < begin + length {
                let has_headers = word(&block[begin..]).unwrap() & HAS_HEADERS != 0;
                let of_headers = has_headers && (begin + 25..begin + 29).contains(&at);
                return !of_headers && !(begin + 20..begin + 22).contains(&at);
            }
            begin += length;
        }
    }
}
