//! Small files that an operator keeps beside the configuration: secrets, certificates.
//!
//! They may lie on a network file system that does not answer, or be a pipe into which nobody writes.
//! So each is read by a thread of its own, never by a worker of the runtime nor by one of its blocking
//! threads, and whoever wants it waits for a limited time. Reads of the same path share one thread, so
//! that a path that does not answer costs one thread, however often it is asked for.
//!
//! A path whose reading has hung for longer than [`PATIENCE`] is told to be
//! silent at once, until the thread has come back from it and [`REST`] has passed. Otherwise the same
//! paths would take all readers again and again, and the others would never have their turn.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};

use crate::base::{sync::lock, text};

/// How long a file may take to be read: a network file system that works answers within a second, a
/// disk that has to start turning within a few.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a caller waits who has something else to do meanwhile.
pub(crate) const SHORT_PATIENCE: Duration = Duration::from_secs(1);

/// How long a pipe or a terminal may take to say anything. Shorter: it keeps its thread meanwhile, and
/// nothing is lost if the thread comes back from it.
const PIPE_PATIENCE: Duration = Duration::from_secs(1);

/// Threads that read at once, at most; the others wait. A file system that hangs keeps its threads for
/// as long as it hangs.
const READERS: usize = 40;

/// How long a path that has not answered is left alone.
const REST: Duration = Duration::from_secs(10);

/// The largest file that is read: a bundle of all public authorities has a quarter of it. A device that
/// never ends must not fill the memory.
const LARGEST: u64 = 1024 * 1024;

/// Why a file could not be read. Does not name it: whoever asked knows what it is for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    /// It has not answered in time.
    #[error("it does not answer (a mount that hangs, or a pipe into which nobody writes)")]
    Silent,
    /// All readers wait for other files.
    #[error("it was not read: too many other files do not answer")]
    Crowded,
    #[error("it is a directory")]
    Directory,
    /// It is larger than any such file.
    #[error("it is larger than 1 MiB, which no secret and no certificate is")]
    TooLarge,
    /// The operating system says no.
    #[error("{}", words(.0))]
    Io(Arc<io::Error>),
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        kind => kind.to_string(),
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::IsADirectory {
            Self::Directory
        } else {
            Self::Io(Arc::new(error))
        }
    }
}

impl From<io::ErrorKind> for FileError {
    fn from(kind: io::ErrorKind) -> Self {
        Self::from(io::Error::from(kind))
    }
}

/// A file's name for a message; not where it looks like what belongs into the file.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.contains(['\n', '\r']) || text::looks_secret(&text) {
        "(a file whose name is not shown, for it could be a secret)".to_owned()
    } else {
        text.into_owned()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    pub bytes: Arc<[u8]>,
    /// Whether users other than the owner and the group may read it.
    pub open_to_others: bool,
}

/// Without the bytes, which may be a secret.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({} bytes)", self.bytes.len())
    }
}

type Outcome = Result<Content, FileError>;

/// A read under way, or one that brought nothing in time.
struct Reading {
    since: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
    /// The thread has come back with nothing; until then the path is left alone.
    rests_until: Option<Instant>,
}

impl Reading {
    /// What whoever asks now is to wait for.
    fn current(&self) -> Result<watch::Receiver<Option<Outcome>>, FileError> {
        let hangs = self.since.elapsed() > PATIENCE || self.rests_until.is_some();
        if hangs { Err(FileError::Silent) } else { Ok(self.outcome.clone()) }
    }

    fn has_rested(&self) -> bool {
        self.rests_until.is_some_and(|until| until <= Instant::now())
    }
}

/// By path. No more than are configured.
static READINGS: LazyLock<Mutex<HashMap<PathBuf, Reading>>> = LazyLock::new(Mutex::default);

static SLOTS: Semaphore = Semaphore::const_new(READERS);

/// Reads a file, within [`PATIENCE`].
pub async fn read(path: &Path) -> Outcome {
    read_within(path, PATIENCE).await
}

/// Reads a file, within that time from now.
pub(crate) async fn read_within(path: &Path, patience: Duration) -> Outcome {
    match timeout(patience, reading(path)).await {
        Ok(outcome) => outcome,
        Err(_) if lock(&READINGS).contains_key(path) => Err(FileError::Silent),
        Err(_) => Err(FileError::Crowded),
    }
}

async fn reading(path: &Path) -> Outcome {
    let known = || {
        let mut readings = lock(&READINGS);
        readings.retain(|_, reading| !reading.has_rested());
        readings.get(path).map(Reading::current)
    };
    let mut outcome = if let Some(current) = known() {
        current?
    } else {
        let permit = SLOTS.acquire().await.map_err(|_| FileError::Crowded)?;
        // Somebody else may have begun meanwhile.
        known().unwrap_or_else(|| begin(path, permit))?
    };
    let done = outcome.wait_for(Option::is_some).await;
    done.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(FileError::Silent))
}

/// Starts the thread that reads.
fn begin(
    path: &Path,
    permit: SemaphorePermit<'static>,
) -> Result<watch::Receiver<Option<Outcome>>, FileError> {
    let (sender, receiver) = watch::channel(None);
    let reading = Reading { since: Instant::now(), outcome: receiver.clone(), rests_until: None };
    lock(&READINGS).insert(path.to_owned(), reading);
    let for_thread = path.to_owned();
    let started = std::thread::Builder::new().name("read file".into()).spawn(move || {
        let outcome = read_now(&for_thread);
        // First, so that who asks from now on gets what is in the file from now on.
        finish(&for_thread, &outcome);
        sender.send_replace(Some(outcome));
        drop(permit);
    });
    if let Err(error) = started {
        lock(&READINGS).remove(path);
        return Err(error.into());
    }
    Ok(receiver)
}

fn finish(path: &Path, outcome: &Outcome) {
    let mut readings = lock(&READINGS);
    match readings.get_mut(path) {
        Some(reading) if matches!(outcome, Err(FileError::Silent)) => {
            reading.rests_until = Some(Instant::now() + REST);
        }
        _ => drop(readings.remove(path)),
    }
}

/// Blocks for as long as the file system does; at a pipe or a terminal for [`PIPE_PATIENCE`] at most.
fn read_now(path: &Path) -> Outcome {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
    let about = rustix::fs::fstat(&opened).map_err(io::Error::from)?;
    let kind = FileType::from_raw_mode(about.st_mode);
    if kind == FileType::Directory {
        return Err(FileError::Directory);
    }
    let mut file = File::from(opened);
    let mut bytes = Vec::new();
    if kind == FileType::RegularFile {
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    } else {
        let end = Instant::now() + PIPE_PATIENCE;
        let mut part = vec![0; 64 * 1024];
        while bytes.len() as u64 <= LARGEST {
            await_bytes(&file, end)?;
            match file.read(&mut part)? {
                0 => break,
                length => bytes.extend_from_slice(part.get(..length).unwrap_or_default()),
            }
        }
    }
    if bytes.len() as u64 > LARGEST {
        return Err(FileError::TooLarge);
    }
    let open_to_others = Mode::from_raw_mode(about.st_mode).contains(Mode::ROTH);
    Ok(Content { bytes: bytes.into(), open_to_others })
}

/// Blocks until there is something to read, or the writer of a pipe has closed it.
fn await_bytes(file: &File, end: Instant) -> Result<(), FileError> {
    let left = end.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| FileError::Silent)?;
    let mut ready = [PollFd::new(file, PollFlags::IN)];
    match poll(&mut ready, Some(&left)).map_err(io::Error::from)? {
        0 => Err(FileError::Silent),
        _ => Ok(()),
    }
}

/// Waits for what reads files where there is no runtime to wait on: loading a configuration, and the
/// commands of the command line. May be called on a runtime's thread, and then blocks it.
pub fn blocking<T: Send>(work: impl Future<Output = T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("read files".into()).spawn_scoped(scope, || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build()?;
                Ok(runtime.block_on(work))
            })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the reader has panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use futures_util::future::join_all;

    use super::*;

    fn pipe(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
    }

    #[tokio::test]
    async fn only_small_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(matches!(read(dir.path()).await, Err(FileError::Directory)));
        let missing = read(&path).await.unwrap_err();
        assert_eq!(missing.to_string(), "there is no such file");
        assert!(matches!(read(Path::new("/dev/zero")).await, Err(FileError::TooLarge)));
        fs::write(&path, vec![b'x'; usize::try_from(LARGEST).unwrap()]).unwrap();
        assert_eq!(read(&path).await.unwrap().bytes.len() as u64, LARGEST);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert!(matches!(read(&path).await, Err(FileError::TooLarge)));
    }

    #[tokio::test]
    async fn pipes_without_a_writer_hold_up_neither_the_runtime_nor_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good");
        fs::write(&good, "x").unwrap();
        // More than there are readers: the others fail too, and in the same time.
        let pipes: Vec<_> = (0..2 * READERS).map(|n| dir.path().join(format!("pipe{n}"))).collect();
        for path in &pipes {
            pipe(path);
        }
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let hanging = join_all(pipes.iter().map(|path| read(path)));
        tokio::pin!(hanging);
        let mut turns = 0;
        let outcomes = loop {
            tokio::select! {
                outcomes = &mut hanging => break outcomes,
                _ = ticks.tick() => turns += 1,
            }
        };
        assert!(outcomes.iter().all(Result::is_err));
        assert!(turns > 20, "the runtime went on: {turns}");
        assert!(began.elapsed() < 2 * PATIENCE);
        // The readers come back from their pipes, and leave them alone for a while.
        assert!(matches!(read(&pipes[0]).await, Err(FileError::Silent)));
        assert_eq!(&*read(&good).await.unwrap().bytes, b"x");
    }

    #[tokio::test]
    async fn concurrent_reads_of_a_path_share_one_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        pipe(&path);
        let all = join_all((0..10).map(|_| read(&path)));
        let writer = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || fs::write(path, "once").unwrap())
        };
        for outcome in all.await {
            assert_eq!(&*outcome.unwrap().bytes, b"once");
        }
        writer.await.unwrap();
        assert!(lock(&READINGS).get(&path).is_none());
    }

    #[test]
    fn a_file_is_read_without_a_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "x").unwrap();
        assert_eq!(&*blocking(read(&path)).unwrap().unwrap().bytes, b"x");
    }
}
