//! Damaged files are kept, never deleted: they are set aside, and the stream is made anew without them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nats_config::names;

use super::room;
use crate::{broker::BrokerError, clock};

/// So many may lie there. What must be set aside beyond is refused: people have to look.
const MOST: usize = 32;

/// Where damaged files lie, below the directory of the server's files.
pub fn dir(nats: &Path) -> PathBuf {
    nats.join("set-aside")
}

/// Where the server keeps its streams, each in a directory of its name.
pub fn streams_dir(nats: &Path) -> PathBuf {
    nats.join("jetstream").join("jetstream").join(names::MESH).join("streams")
}

/// How many lie there.
pub fn count(nats: &Path) -> usize {
    fs::read_dir(dir(nats)).map_or(0, |entries| entries.flatten().count())
}

/// What lies there of a stream.
pub fn of_stream(nats: &Path, stream: &str) -> impl Iterator<Item = PathBuf> {
    let end = format!("-{stream}");
    let places = fs::read_dir(dir(nats)).into_iter().flatten().flatten().map(|entry| entry.path());
    places.filter(move |place| place.to_string_lossy().ends_with(&end))
}

/// Whether the stream's own files may be what keeps it from being made; not so where the disk is full.
pub fn is_in_the_way(nats: &Path, stream: &str) -> bool {
    streams_dir(nats).join(stream).exists() && !room::look(nats).is_below(room::LEAST)
}

/// Keeps copies of a stream's description, which the server refused. The stream's blocks stay where they
/// are: a stream that is made anew over them has them again. Where there is nothing to keep, nothing is done.
pub fn keep_description(nats: &Path, stream: &str) -> Result<Option<PathBuf>, BrokerError> {
    let from = streams_dir(nats).join(stream);
    let files = ["meta.inf", "meta.sum"].map(|name| from.join(name));
    if !files.iter().any(|file| file.exists()) {
        return Ok(None);
    }
    let copy = |to: &Path| {
        let mut there = files.iter().filter(|file| file.exists());
        there.try_for_each(|file| fs::copy(file, to.join(file.file_name().unwrap_or_default())).map(drop))
    };
    copies(nats, stream, copy).map(Some)
}

/// Keeps what `copy` puts into a place for this stream.
pub fn copies(
    nats: &Path,
    stream: &str,
    copy: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf, BrokerError> {
    let to = place_for(nats, stream)?;
    let copied = fs::create_dir_all(&to).and_then(|()| copy(&to)).and_then(|()| sync(&to));
    copied.map_err(|error| failed(&to, &error))?;
    Ok(to)
}

/// Moves the whole of a stream aside.
pub fn whole(nats: &Path, stream: &str) -> Result<PathBuf, BrokerError> {
    let to = place_for(nats, stream)?;
    let from = streams_dir(nats).join(stream);
    let set_aside = || {
        fs::rename(&from, &to)?;
        sync(&to)
    };
    set_aside().map_err(|error| failed(&to, &error))?;
    Ok(to)
}

/// A place that nothing lies in yet.
fn place_for(nats: &Path, stream: &str) -> Result<PathBuf, BrokerError> {
    let dir = dir(nats);
    if count(nats) >= MOST {
        return Err(BrokerError::SetAside {
            dir: dir.display().to_string(),
            most: MOST,
            stream: stream.into(),
        });
    }
    fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
    let mut at = clock::wall().0;
    loop {
        let place = dir.join(format!("{at}-{stream}"));
        if !place.exists() {
            return Ok(place);
        }
        at += 1;
    }
}

/// What was moved is moved also after a power cut.
fn sync(path: &Path) -> io::Result<()> {
    for dir in path.parent().into_iter().chain([path]) {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> BrokerError {
    BrokerError::Unwritable { path: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_kept_and_bounded() {
        let nats = tempfile::tempdir().unwrap();
        let stream = streams_dir(nats.path()).join("A");
        for number in 0..MOST {
            fs::create_dir_all(&stream).unwrap();
            fs::write(stream.join("meta.inf"), number.to_string()).unwrap();
            let kept = whole(nats.path(), "A").unwrap();
            assert_eq!(fs::read_to_string(kept.join("meta.inf")).unwrap(), number.to_string());
            assert!(!stream.exists());
        }
        fs::create_dir_all(&stream).unwrap();
        assert!(matches!(whole(nats.path(), "A"), Err(BrokerError::SetAside { .. })));
        assert!(stream.exists());
        assert_eq!(count(nats.path()), MOST);
    }
}
