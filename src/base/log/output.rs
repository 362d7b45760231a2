//! Writing to standard error, by one thread alone, which may wait here for as long as it takes.
//!
//! It is written to without the lock of the standard library, so that somebody who waits with that lock
//! in hand does not stop the log, nor the log him.

use std::{io, os::fd::AsFd as _};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// Writes to standard error until all is written.
pub(super) fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let stderr = io::stderr();
    while !bytes.is_empty() {
        match rustix::io::write(stderr.as_fd(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever started this program may have made the pipe one that does not block.
            Err(Errno::AGAIN) => {
                let mut pipe = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
                match poll(&mut pipe, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
