//! How much room there is where the store is, and whether it can be written.

use std::{fs, io::Write as _, path::Path, time::Duration};

/// With less free than this nothing new is taken: what is left is for what was taken already, and for the
/// agent's own notes.
pub const LEAST: u64 = 16 << 20;
/// What must be free for a store that ran out of room to go on.
pub const PLENTY: u64 = 32 << 20;
/// How often a start that waits for room looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much is written to find out whether that works: more than what fits beside an inode.
const TRIAL: usize = 16 * 1024;

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes free for this user.
    pub free: u64,
    /// Bytes in all; 0 where the disk cannot be asked.
    pub total: u64,
    /// Why a file cannot be written, where that was tried.
    pub fault: Option<String>,
}

impl Room {
    /// Whether less is free. Where the disk cannot be asked nothing is said of its room.
    pub fn is_below(&self, enough: u64) -> bool {
        self.total > 0 && self.free < enough
    }
}

/// Asks the disk under `dir`.
pub fn look(dir: &Path) -> Room {
    match nix::sys::statvfs::statvfs(dir) {
        Ok(disk) => {
            let unit = disk.fragment_size();
            Room { free: disk.blocks_available() * unit, total: disk.blocks() * unit, fault: None }
        }
        Err(_) => Room::default(),
    }
}

/// Asks the disk under `dir`, and writes a file there and removes it.
pub fn try_it(dir: &Path) -> Room {
    let path = dir.join("trial");
    let write = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(&[0; TRIAL])?;
        file.sync_all()
    };
    let fault = write().err().map(|error| error.to_string());
    let _ = fs::remove_file(&path);
    Room { fault, ..look(dir) }
}

/// Waits until a store that ran out of room can go on.
pub async fn wait_for_plenty(dir: &Path) {
    while look(dir).is_below(PLENTY) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_written_has_room_and_one_that_is_not_there_has_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let room = try_it(dir.path());
        assert!(room.total > 0 && room.fault.is_none(), "{room:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the trial is removed");
        assert!(try_it(&dir.path().join("nowhere")).fault.is_some());
    }
}
