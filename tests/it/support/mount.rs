//! File systems of the tests' own, to fill up, to take away and to cut the power of. Needs root.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// Whether file systems can be mounted here; says so where a test is left out for it.
#[expect(clippy::print_stderr, reason = "a test that tested nothing should say so")]
pub fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("NOT TESTED: only root can mount the file systems of this test");
    }
    root
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A file system in memory of a few mebibytes.
pub struct Small {
    dir: TempDir,
}

impl Small {
    pub fn new(kibibytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kibibytes}k");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", dir.path().to_str().unwrap()]);
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Nothing can be written any more; or again.
    pub fn read_only(&self, yes: bool) {
        let mode = if yes { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", mode, self.dir.path().to_str().unwrap()]);
    }

    pub fn resize(&self, kibibytes: u32) {
        let size = format!("remount,size={kibibytes}k");
        run("mount", &["-o", &size, self.dir.path().to_str().unwrap()]);
    }
}

fn unmount(at: &Path) {
    // Lazily: a test that failed may still have files open.
    drop(Command::new("umount").arg("-l").arg(at).output());
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.dir.path());
    }
}

/// A file that is mounted by itself, in the place of another one.
pub struct MountedFile(PathBuf);

impl MountedFile {
    pub fn new(file: &Path, at: &Path) -> Self {
        run("mount", &["--bind", file.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }

    /// It cannot be written any more.
    pub fn turn_read_only(&self) {
        run("mount", &["-o", "remount,bind,ro", self.0.to_str().unwrap()]);
    }
}

impl Drop for MountedFile {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// An ext4 in a file. An error of its own makes it read-only, as on most machines.
pub struct Disk {
    dir: TempDir,
    image: PathBuf,
    /// Its device and where that is mounted. [`Self::path`] leads there.
    mounted: Option<(String, PathBuf)>,
    mounts: u32,
}

impl Disk {
    pub fn new(mebibytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        Self::make(dir, image, mebibytes, &[])
    }

    /// A disk that holds less than it says: what is written is taken, and what does not fit into
    /// `store` is lost when it is synced. Without a log of its own, which would notice first.
    pub fn promising(store: &Small, mebibytes: u32) -> Self {
        let image = store.path().join("image");
        Self::make(tempfile::tempdir().unwrap(), image, mebibytes, &["-O", "^has_journal"])
    }

    fn make(dir: TempDir, image: PathBuf, mebibytes: u32, features: &[&str]) -> Self {
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(u64::from(mebibytes) << 20).unwrap();
        let args = [&["-q", "-F"], features, &[image.to_str().unwrap()]].concat();
        run("mkfs.ext4", &args);
        let mut disk = Self { dir, image, mounted: None, mounts: 0 };
        disk.mount();
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    fn mount(&mut self) {
        let device = run("losetup", &["--find", "--show", self.image.to_str().unwrap()]);
        self.mounts += 1;
        let at = self.dir.path().join(format!("mount-{}", self.mounts));
        std::fs::create_dir(&at).unwrap();
        run("mount", &["-t", "ext4", "-o", "errors=remount-ro", &device, at.to_str().unwrap()]);
        self.lead_to(&at);
        self.mounted = Some((device, at));
    }

    fn lead_to(&self, target: &Path) {
        let new = self.dir.path().join("new");
        std::os::unix::fs::symlink(target, &new).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    /// Lets it find an error in itself: from now on nothing can be written.
    pub fn turn_read_only(&self) {
        let (device, _) = self.mounted.as_ref().expect("it is mounted");
        let device = device.replace("/dev/", "");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(trigger, "as the test says").unwrap();
    }

    /// Prepares a power cut.
    pub fn plug(&self) -> Plug {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shutdown_fs.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "prepared\n");
        Plug(child)
    }

    /// Mounts it again, from the image as it is; whoever has files open on the old one keeps them.
    pub fn restore(&mut self) {
        // Meanwhile nothing is there, not even a directory to make files in.
        self.lead_to(Path::new("nowhere"));
        if let Some((device, at)) = self.mounted.take() {
            run("umount", &["-l", at.to_str().unwrap()]);
            // It goes when the last file on it is closed.
            run("losetup", &["--detach", &device]);
        }
        self.mount();
    }
}

/// Pulls it: what was not synced is gone, every access fails from now on.
pub struct Plug(Child);

impl Plug {
    pub fn pull(mut self) {
        // The pipe closes behind the line: the helper acts on either.
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some((device, at)) = self.mounted.take() {
            unmount(&at);
            drop(Command::new("losetup").args(["--detach", &device]).output());
        }
    }
}
