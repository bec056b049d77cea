//! A disk of a few megabytes under one agent's state directory, which a test fills, empties, and makes
//! read-only. It takes the right to mount; without it a test says so and is skipped.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path as FilePath, PathBuf},
    process::Command,
};

use crate::{Mesh, path};

/// The file that takes what room there is.
const FILLER: &str = "filler";

/// A disk in memory, unmounted when it is dropped. Keep it behind the mesh that it belongs to.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Puts a disk of so many MiB under the state directory of an agent, with what lies there, and starts the
    /// agent again. `None` where mounting is not allowed, with the reason printed.
    pub async fn under(mesh: &mut Mesh, at: &str, mib: u32) -> Option<SmallDisk> {
        let state = mesh.agent(&path(at)).state.clone();
        if let Err(reason) = SmallDisk::mount(&mesh.dir().join("trial"), mib) {
            println!("skipped: no disk can be mounted here: {reason}");
            return None;
        }
        mesh.stop_one(&path(at)).await;
        let away = mesh.dir().join("away");
        fs::rename(&state, &away).expect("the agent's state can be moved");
        let disk = SmallDisk::mount(&state, mib).expect("it worked before");
        run("cp", &["-a", &format!("{}/.", away.display()), &state.display().to_string()]).expect("copied");
        mesh.start_again(at).await;
        Some(disk)
    }

    fn mount(at: &FilePath, mib: u32) -> Result<SmallDisk, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &at.display().to_string()])?;
        Ok(SmallDisk(at.to_owned()))
    }

    /// Takes all the room there is, to the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.0.join(FILLER)).expect("a file can be made");
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn empty(&self) {
        fs::remove_file(self.0.join(FILLER)).expect("the filler is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while something still has it open.
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
