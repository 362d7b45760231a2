//! Small files that are replaced whole: whoever reads one gets the old content or the new, also after a
//! crash.
//!
//! The place of the new content is made first, beside the file: what can be wrong with the directory, the
//! rights or the disk is found out before the content exists, and a content that exists only once (a refresh
//! token) is asked for only then. It is written, forced to disk, renamed over the file, and the directory
//! is forced to disk.
//!
//! A crash between writing and renaming leaves the new content beside the file: [`recover`] puts it there.
//!
//! A file that is mounted by itself (a container's `-v token:/token`) cannot be renamed over. It is
//! overwritten, and the new content stays beside it until that is on disk.
//!
//! Everything here blocks.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, StatxAttributes, StatxFlags, fallocate,
};

/// Nobody else may read it.
const MODE: u32 = 0o600;

/// Disk space that is taken beforehand: more than any content that is written here.
const RESERVED: u64 = 32 * 1024;

/// A place for the next content of a file.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    unfinished: PathBuf,
    target: PathBuf,
}

impl Replacement {
    /// Makes the place, empty.
    pub fn prepare(path: &Path) -> io::Result<Self> {
        let place = Self::prepare_again(path)?;
        place.file.set_len(0)?;
        match fallocate(&place.file, FallocateFlags::KEEP_SIZE, 0, RESERVED) {
            // Not every file system can.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(place),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the place for a content that could not be published: where it was written, it stays there.
    pub fn prepare_again(path: &Path) -> io::Result<Self> {
        let target = target(path)?;
        if is_mounted(&target) {
            drop(open_in_place(&target)?);
        }
        let unfinished = unfinished(&target);
        // Not through a link that somebody has put there.
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(MODE);
        let file = File::from(rustix::fs::open(&unfinished, flags, mode)?);
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        Ok(Self { file, unfinished, target })
    }

    /// Writes the content, a line, and forces it to disk. The file itself is not touched yet.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        let content = format!("{line}\n");
        let mut present = Vec::new();
        self.file.rewind()?;
        (&self.file).take(RESERVED).read_to_end(&mut present)?;
        // What is there already is not taken away for a moment: a crash could come then.
        if present != content.as_bytes() {
            if !present.is_empty() {
                self.file.set_len(0)?;
            }
            self.file.rewind()?;
            self.file.write_all(content.as_bytes())?;
        }
        self.file.sync_all()
    }

    /// Puts it in the place of the file.
    pub fn publish(self) -> io::Result<()> {
        replace(&self.unfinished, &self.target)
    }

    /// Takes the place away, where nothing was written.
    pub fn discard(self) {
        // It does no harm if it stays.
        drop(fs::remove_file(&self.unfinished));
    }
}

/// Puts a whole content in its place that a crash has left beside the file; whether there was one. One that
/// is older than the file is not it: somebody has replaced the file since. Unless the file has only a part
/// of it: then it was being overwritten.
pub fn recover(path: &Path) -> io::Result<bool> {
    let target = target(path)?;
    let unfinished = unfinished(&target);
    let Ok(mut file) = rustix::fs::open(
        &unfinished,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map(File::from) else {
        return Ok(false);
    };
    let about = file.metadata()?;
    if !about.is_file() || about.len() > RESERVED {
        return Ok(false);
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    if content.len() < 2 || content.last() != Some(&b'\n') {
        return Ok(false);
    }
    let changed = |about: &fs::Metadata| (about.mtime(), about.mtime_nsec());
    let is_older = fs::metadata(&target).is_ok_and(|present| changed(&about) < changed(&present));
    if is_older && !has_part_of(&target, &content) {
        return Ok(false);
    }
    replace(&unfinished, &target)?;
    Ok(true)
}

/// How long ago a file was changed, by the wall clock; nothing for one that was changed in the future.
pub fn age(path: &Path, now: super::clock::UnixMillis) -> io::Result<std::time::Duration> {
    let changed = u64::try_from(fs::metadata(path)?.mtime()).unwrap_or(0);
    Ok(std::time::Duration::from_secs((now / 1000).saturating_sub(changed)))
}

/// Whether a file is mounted by itself: then no other can take its place.
pub fn is_mounted(path: &Path) -> bool {
    rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|about| about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The file itself, where the path is a link to it.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        found => found,
    }
}

fn unfinished(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn replace(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            overwrite(from, to)?;
            // It does no harm if it stays.
            drop(fs::remove_file(from));
        }
        renamed => renamed?,
    }
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Emptied first: of what it had nothing is left, wherever a crash comes. See [`has_part_of`].
fn overwrite(from: &Path, to: &Path) -> io::Result<()> {
    let content = fs::read(from)?;
    let mut file = open_in_place(to)?;
    file.set_len(0)?;
    file.write_all(&content)?;
    file.sync_all()
}

fn open_in_place(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// Whether a file has as much of the content as a crash may leave of it. What was not written to disk
/// reads as zeros.
fn has_part_of(path: &Path, content: &[u8]) -> bool {
    let mut present = Vec::new();
    let read = File::open(path).and_then(|file| file.take(RESERVED).read_to_end(&mut present));
    read.is_ok()
        && present.len() <= content.len()
        && present.iter().zip(content).all(|(present, new)| present == new || *present == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("token"), dir.path().join("link"));
        fs::write(&path, "old\n").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut next = Replacement::prepare(&link).unwrap();
        next.write("a longer one").unwrap();
        next.write("new").unwrap();
        assert_eq!(read(&path), "old\n", "not yet");
        next.publish().unwrap();
        assert_eq!((read(&path), read(&link)), ("new\n".into(), "new\n".into()));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        Replacement::prepare(&path).unwrap().discard();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn what_a_crash_has_left_is_put_in_its_place_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let beside = dir.path().join("token.new");
        fs::write(&path, "old\n").unwrap();
        assert!(!recover(&path).unwrap(), "there is none");
        for part in ["", "\n", "half of i"] {
            fs::write(&beside, part).unwrap();
            assert!(!recover(&path).unwrap(), "{part:?}");
        }
        let mut next = Replacement::prepare(&path).unwrap();
        next.write("new").unwrap();
        drop(next);
        assert!(recover(&path).unwrap());
        assert_eq!(read(&path), "new\n");
        assert!(!beside.exists());
        // Somebody has put another one there since.
        fs::write(&beside, "older\n").unwrap();
        File::open(&beside).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(!recover(&path).unwrap());
        assert_eq!(read(&path), "new\n");
    }

    #[test]
    fn a_file_that_a_crash_left_half_overwritten_is_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let beside = dir.path().join("token.new");
        for part in ["", "ne", "ne\0\0", "new\n"] {
            fs::write(&beside, "new\n").unwrap();
            File::open(&beside).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            fs::write(&path, part).unwrap();
            assert!(recover(&path).unwrap(), "{part:?}");
            assert_eq!(read(&path), "new\n");
        }
        fs::write(&beside, "newer\n").unwrap();
        fs::write(&path, "a longer one\n").unwrap();
        overwrite(&beside, &path).unwrap();
        assert_eq!((read(&path), read(&beside)), ("newer\n".into(), "newer\n".into()));
        assert!(!is_mounted(&path));
    }

    #[test]
    fn what_is_written_and_not_published_is_not_taken_away_by_the_next_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let beside = dir.path().join("token.new");
        Replacement::prepare(&path).unwrap().write("only copy").unwrap();
        let mut again = Replacement::prepare_again(&path).unwrap();
        assert_eq!(read(&beside), "only copy\n");
        again.write("only copy").unwrap();
        again.publish().unwrap();
        assert_eq!(read(&path), "only copy\n");
        fs::write(&beside, "half of i").unwrap();
        let mut again = Replacement::prepare_again(&path).unwrap();
        again.write("it").unwrap();
        assert_eq!(read(&beside), "it\n");
    }

    #[test]
    fn a_place_that_cannot_be_made_is_found_out_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::create_dir(dir.path().join("token.new")).unwrap();
        assert!(Replacement::prepare(&path).is_err());
        assert!(!recover(&path).unwrap());
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        let other = dir.path().join("other");
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("other.new")).unwrap();
        assert!(Replacement::prepare(&other).is_err(), "a link is not followed");
        assert_eq!(read(&elsewhere), "theirs");
        assert!(Replacement::prepare(&dir.path().join("missing/token")).is_err());
    }
}
