//! A terminal of a test's own.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Action, tcflow},
};

/// Both sides of a terminal.
pub struct Pty {
    /// Open for as long as somebody sits there.
    _ours: File,
    theirs: File,
}

impl Pty {
    pub fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let path = Path::new(OsStr::from_bytes(name.as_bytes()));
        let theirs = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Self { _ours: File::from(ours), theirs }
    }

    /// What a program has open.
    pub fn theirs(&self) -> File {
        self.theirs.try_clone().unwrap()
    }

    /// Stops it, as Control-S does.
    pub fn stop(&self) {
        tcflow(&self.theirs, Action::OOff).unwrap();
    }
}
