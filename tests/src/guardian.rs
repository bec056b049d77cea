//! Cleans up after a test that was itself killed, and so could drop nothing.

use std::{
    path::Path as FilePath,
    process::{Child, Command, Stdio},
};

/// Waits for the end of its standard input, which the system closes however the test ends; then kills what
/// still runs in the directory and removes it. The directory stands in the environment and not in the
/// command line, by which processes are found.
const SCRIPT: &str = r#"
cat >/dev/null
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -qF "$MESH_DIR"; then
        kill -9 "${process#/proc/}" 2>/dev/null
    fi
done
# A small disk of a test that was killed.
awk -v dir="$MESH_DIR/" 'index($2, dir) == 1 {print $2}' /proc/mounts | while read -r disk; do
    umount -l "$disk"
done
rm -rf "$MESH_DIR"
"#;

/// Watches over one temporary directory until it is dropped.
#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    pub(crate) fn over(dir: &FilePath) -> Guardian {
        use std::os::unix::process::CommandExt as _;

        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).env("MESH_DIR", dir).stdin(Stdio::piped()).stdout(Stdio::null());
        // Ctrl-C at a terminal is for the test.
        command.stderr(Stdio::null()).process_group(0);
        Guardian(command.spawn().expect("there is a shell"))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
