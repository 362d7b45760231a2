//! The journal's directory: its file names, the lock of the one process that writes, who may read it, and
//! files that are set aside.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use tracing::{error, warn};

use super::error::StoreError;
use crate::base::clock;

const LOCK: &str = "journal.lock";

const MARK: &str = "journal.mark";

/// Broken databases that are kept to be looked at; each may be as large as the journal.
const BROKEN_KEPT: usize = 3;

/// What SQLite keeps beside a database, and the database itself. The log first: a new database must
/// never stand beside the log of another.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", ""];

pub fn database(dir: &Path) -> PathBuf {
    dir.join("journal.db")
}

/// SQLite's write-ahead log beside it.
pub(super) fn wal(dir: &Path) -> PathBuf {
    dir.join("journal.db-wal")
}

/// Where a recovered database is written, until it is complete.
pub(super) fn unfinished(dir: &Path) -> PathBuf {
    companion(dir, ".new", "")
}

fn companion(dir: &Path, name: &str, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{name}{suffix}", database(dir).display()))
}

/// The lock of the one process that writes; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

pub(super) fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join(LOCK);
    let failed = |source| StoreError::Io { path: path.clone(), source };
    let mut file = open_private(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who has it is a courtesy; that somebody has it is what counts.
            let holder = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
                Ok(_) | Err(_) => "another process".into(),
            };
            return Err(StoreError::Locked { path, holder });
        }
        Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    let id = std::process::id().to_string();
    file.set_len(0).and_then(|()| file.write_all(id.as_bytes())).map_err(failed)?;
    Ok(Lock { _file: file })
}

pub(super) fn make(dir: &Path) -> Result<(), StoreError> {
    // Events hold personal data: nobody else's business.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| {
        // A link to where this user may not look counts as a file that is there.
        let hidden = (source.kind() == io::ErrorKind::AlreadyExists)
            .then(|| fs::metadata(dir).err())
            .flatten();
        StoreError::Io { path: dir.to_owned(), source: hidden.unwrap_or(source) }
    })
}

/// Opens a file that only its owner may read, or makes it. SQLite gives those beside it the same mode.
pub(super) fn open_private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

/// The journal's files are for their owner alone, whoever made them.
pub(super) fn restrict(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("journal.");
        let Some(meta) = entry.metadata().ok().filter(|meta| ours && meta.is_file()) else {
            continue;
        };
        if meta.permissions().mode() & 0o077 != 0
            && let Err(error) = fs::set_permissions(entry.path(), Permissions::from_mode(0o600))
        {
            warn!(path = %entry.path().display(), %error, "others may read the journal's file");
        }
    }
}

/// A file on some file system: removed and made again, it is another.
pub(super) type Inode = Option<(u64, u64)>;

/// Which files stand in the directory under the journal's names now; the database first.
pub(super) fn inodes(dir: &Path) -> Vec<Inode> {
    let paths = [database(dir), mark(dir), dir.join(LOCK)];
    let inode = |path: &PathBuf| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    paths.iter().map(inode).collect()
}

pub(super) fn mark(dir: &Path) -> PathBuf {
    dir.join(MARK)
}

pub(super) fn wal_size(dir: &Path) -> u64 {
    fs::metadata(wal(dir)).map_or(0, |meta| meta.len())
}

/// Bytes free for us on its file system; `None` where that does not say.
pub(super) fn free_space(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A log without its database belongs to one that is gone.
pub(super) fn remove_orphans(dir: &Path) -> Result<(), StoreError> {
    if database(dir).exists() { Ok(()) } else { remove_database(dir, "") }
}

/// A copy that was not finished is of no value.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), StoreError> {
    remove_database(dir, ".new")
}

/// The copy is complete: from now on it is the journal, whatever happens.
pub(super) fn finish_recovered(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    rename(&unfinished(dir), &companion(dir, ".recovered", ""))?;
    sync(dir)?;
    put_recovered_in_place(dir)
}

/// Sets the broken database aside and puts the recovered one into its place, if there is one. Answers
/// where the broken one is.
pub(super) fn put_recovered_in_place(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let recovered = companion(dir, ".recovered", "");
    if !recovered.exists() {
        return Ok(None);
    }
    let broken = set_aside(dir, "broken")?;
    rename(&recovered, &database(dir))?;
    sync(dir)?;
    error!(set_aside = %broken.display(), "the broken journal was set aside");
    limit_set_aside(dir);
    Ok(Some(broken))
}

/// Moves away what stands where the journal's database was: it is another journal's.
pub(super) fn set_foreign_aside(dir: &Path) -> Result<(), StoreError> {
    let path = set_aside(dir, "other")?;
    error!(set_aside = %path.display(), "another journal stood in the directory; it was set aside");
    Ok(())
}

fn set_aside(dir: &Path, why: &str) -> Result<PathBuf, StoreError> {
    let name = format!(".{why}-{}", clock::now());
    for suffix in COMPANIONS {
        let from = companion(dir, "", suffix);
        if from.exists() {
            rename(&from, &companion(dir, &name, suffix))?;
        }
    }
    Ok(companion(dir, &name, ""))
}

/// Removes the oldest of the broken databases that were set aside.
fn limit_set_aside(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let time = |name: &String| {
        let time = name.strip_prefix("journal.db")?.strip_prefix(".broken-")?;
        time.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!(".broken-{time}"))
    };
    let mut names: Vec<_> = entries.filter_map(name).filter_map(|name| time(&name)).collect();
    // They end in a time of as many digits for the next centuries.
    names.sort_unstable();
    names.truncate(names.len().saturating_sub(BROKEN_KEPT));
    for name in names {
        if let Err(error) = remove_database(dir, &name) {
            warn!(%error, "an old broken journal cannot be removed");
        }
    }
}

fn remove_database(dir: &Path, name: &str) -> Result<(), StoreError> {
    for suffix in COMPANIONS {
        let path = companion(dir, name, suffix);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Io { path, source });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::Io { path: from.to_owned(), source })
}

/// A name that was made or changed survives a loss of power.
fn sync(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As with the link of a service's state directory, which only the service may follow.
    #[test]
    fn a_link_that_cannot_be_followed_is_reported_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        match make(&link) {
            Err(StoreError::Io { path, source }) => {
                assert_eq!((path, source.kind()), (link, io::ErrorKind::NotFound));
            }
            other => panic!("{other:?}"),
        }
    }
}
