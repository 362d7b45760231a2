//! A terminal of a test's own.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Action, LocalModes, tcflow, tcgetattr},
};

/// Both sides of a terminal.
pub struct Pty {
    /// Open for as long as somebody sits there.
    ours: File,
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
        Self { ours: File::from(ours), theirs }
    }

    /// What a program has open.
    pub fn theirs(&self) -> File {
        self.theirs.try_clone().unwrap()
    }

    /// Types that.
    pub fn type_in(&self, text: &str) {
        (&self.ours).write_all(text.as_bytes()).unwrap();
    }

    /// Whether what is typed is shown.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.theirs).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Stops it, as Control-S does.
    pub fn stop(&self) {
        tcflow(&self.theirs, Action::OOff).unwrap();
    }
}
