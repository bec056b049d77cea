//! At most as many meshes at once as there are cores, over all test binaries, threads and clones of this user.

use std::{fs::File, path::PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::{eventually::LOOK_EVERY, ports::Ports};

/// The right to run a mesh, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    place: usize,
    places: usize,
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for one of the places. A lock on a file is freed by the system however its holder ends.
    pub(crate) async fn take() -> Turn {
        let places = std::thread::available_parallelism().map_or(1, usize::from);
        let dir = std::env::temp_dir().join(format!("lucent-test-turns-{}", nix::unistd::getuid()));
        std::fs::create_dir_all(&dir).expect("the directory for temporary files can be written");
        loop {
            for place in 0..places {
                if let Some(lock) = try_lock(dir.join(place.to_string())) {
                    return Turn { place, places, _lock: lock };
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ports that nobody else takes while this turn lasts.
    pub(crate) fn ports(&self) -> Ports {
        Ports::of_place(self.place, self.places)
    }
}

fn try_lock(path: PathBuf) -> Option<Flock<File>> {
    let file = File::create(path).expect("the directory for temporary files can be written");
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}
