//! Clocks of a child process that a test can set: the wall clock steps or stands still, the machine
//! "was suspended". The process itself is the real one; its clock calls go through `tests/shim/clock.c`.
//!
//! ```ignore
//! let clock = Clock::new();
//! relay.start_in(&clock.env());
//! clock.step_back(Duration::from_hours(5));
//! clock.suspend(Duration::from_hours(8));
//! ```

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Command,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

/// The clocks of the child processes that are started with [`Clock::env`].
pub struct Clock {
    _dir: TempDir,
    path: String,
    file: File,
}

/// Where each number stands in the file, see `clock.c`.
const WALL: u64 = 0;
const BOOT: u64 = 8;
const STILL: u64 = 16;

impl Clock {
    /// Clocks that go right, for now.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        fs::write(&path, [0; 24]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { path: path.display().to_string(), file, _dir: dir }
    }

    /// The environment of the child process.
    pub fn env(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", shim()), ("CLOCK_SHIM", &self.path)]
    }

    /// The wall clock steps forward.
    pub fn step_forward(&self, by: Duration) {
        self.put(WALL, self.get(WALL) + nanos(by));
    }

    /// The wall clock steps back.
    pub fn step_back(&self, by: Duration) {
        self.put(WALL, self.get(WALL) - nanos(by));
    }

    /// The wall clock goes right again.
    pub fn correct(&self) {
        self.put(WALL, 0);
        self.put(STILL, 0);
    }

    /// The wall clock stands still, until [`Clock::correct`] or [`Clock::go_on`].
    pub fn stand_still(&self) {
        self.put(STILL, nanos(self.now()));
    }

    /// The wall clock goes on, from where it would be had it never stood still.
    pub fn go_on(&self) {
        self.put(STILL, 0);
    }

    /// The machine was suspended for so long: the wall clock and the time since the boot have gone on,
    /// the monotonic clock and all timers have stood still.
    pub fn suspend(&self, time: Duration) {
        self.put(BOOT, self.get(BOOT) + nanos(time));
        self.step_forward(time);
    }

    /// What the child's wall clock says, since 1970.
    #[expect(clippy::disallowed_methods, reason = "the real time is where the child's begins")]
    pub fn now(&self) -> Duration {
        let still = self.get(STILL);
        if still != 0 {
            return Duration::from_nanos(still.unsigned_abs());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Duration::from_nanos((nanos(now) + self.get(WALL)).unsigned_abs())
    }

    fn get(&self, at: u64) -> i64 {
        let mut number = [0; 8];
        self.file.read_exact_at(&mut number, at).unwrap();
        i64::from_ne_bytes(number)
    }

    fn put(&self, at: u64, number: i64) {
        self.file.write_all_at(&number.to_ne_bytes(), at).unwrap();
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap()
}

/// The shared object, built once for all tests of this process.
fn shim() -> &'static str {
    static BUILT: OnceLock<(TempDir, String)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/clock.c");
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let object = dir.path().join("clock.so");
        let built = Command::new("gcc")
            .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .args([object.as_os_str(), source.as_ref()])
            .output()
            .expect("gcc is installed: apt-get install gcc libc6-dev");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let path = object.display().to_string();
        (dir, path)
    });
    path
}

mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::Stdio,
    };

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_child_sees_the_clocks_that_the_test_sets() {
        let clock = Clock::new();
        let script = "import sys, time\n\
            for line in sys.stdin: print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), \
            time.monotonic(), flush=True)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .envs(clock.env())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut ask, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut answers = BufReader::new(answers);
        let mut look = || {
            ask.write_all(b"\n").unwrap();
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let read: Vec<f64> = line.split_whitespace().map(|one| one.parse().unwrap()).collect();
            [read[0], read[1], read[2]]
        };
        let near = |now: [f64; 3], before: [f64; 3], ahead: [Duration; 2]| {
            let ran = now[2] - before[2];
            assert!((0.0..60.0).contains(&ran), "the monotonic clock is the kernel's: {ran}");
            for (place, ahead) in ahead.into_iter().enumerate() {
                let off = now[place] - before[place] - ran - ahead.as_secs_f64();
                assert!(off.abs() < 1.0, "clock {place}: off by {off} s");
            }
        };
        let start = look();
        clock.step_forward(5 * HOUR);
        near(look(), start, [5 * HOUR, Duration::ZERO]);
        clock.step_back(4 * HOUR);
        near(look(), start, [HOUR, Duration::ZERO]);
        clock.suspend(8 * HOUR);
        near(look(), start, [9 * HOUR, 8 * HOUR]);
        clock.stand_still();
        let still = look()[0];
        assert!((still - clock.now().as_secs_f64()).abs() < 0.001);
        assert!((look()[0] - still).abs() < f64::EPSILON);
        clock.go_on();
        near(look(), start, [9 * HOUR, 8 * HOUR]);
        clock.correct();
        near(look(), start, [Duration::ZERO, 8 * HOUR]);
        drop(ask);
        child.wait().unwrap();
    }
}
