//! `astro-relay top` on a terminal of its own: it draws, goes on, leaves, and tidies up.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::process::{Child, Command};

use super::{PATIENCE, ROOM, Running, channel};
use crate::support::{daemon::PROGRAM, process::free_port, wait::until};

/// A terminal with a program on it.
struct Terminal {
    ours: File,
    theirs: File,
    seen: Arc<Mutex<String>>,
    child: Child,
}

impl Terminal {
    fn with(args: &[&str], rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let size = Winsize { ws_row: rows, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let path = Path::new(OsStr::from_bytes(name.as_bytes()));
        let theirs = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let child = Command::new(PROGRAM)
            .args(args)
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ours = File::from(ours);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (ours.try_clone().unwrap(), Arc::clone(&seen));
        // Ends with an error when both of its sides are closed.
        tokio::task::spawn_blocking(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { ours, theirs, seen, child }
    }

    /// Waits until this has been seen so often.
    async fn sees(&self, what: &str, times: usize) {
        until(&format!("{what} is seen"), PATIENCE, async || {
            (self.seen.lock().unwrap().matches(what).count() >= times).then_some(())
        })
        .await;
    }

    fn press(&self, key: &[u8]) {
        (&self.ours).write_all(key).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Presses a key, and expects the program to leave the terminal as it was.
    async fn leave(mut self, key: &[u8]) {
        assert!(self.is_raw());
        self.ours.write_all(key).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it leaves");
        assert!(ended.unwrap().success());
        self.sees("\x1b[?1049l", 1).await;
        assert!(!self.is_raw(), "the terminal is as it was");
    }
}

#[tokio::test]
async fn the_page_is_drawn_anew_until_a_key_leaves_it() {
    let sinks = "[sinks.out]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n";
    let relay = Running::start(&format!("{}{sinks}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    let url = relay.url("");
    for key in [b"q", b"\x03"] {
        let terminal = Terminal::with(&["top", "--url", &url], 40);
        terminal.sees("started", 1).await;
        terminal.sees("channel.tips", 1).await;
        terminal.sees("out (redis)", 1).await;
        // An arrow key scrolls, and does not leave.
        terminal.press(b"\x1b[B");
        relay.sim.publish("channel.tips", ROOM, "{}");
        terminal.sees("0.0/s", 2).await;
        terminal.leave(key).await;
    }
}

#[tokio::test]
async fn a_relay_that_is_away_is_a_page_too_and_a_small_window_is_not_overrun() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let terminal = Terminal::with(&["top", "--url", &url], 3);
    terminal.sees("cannot be reached", 2).await;
    assert!(terminal.seen.lock().unwrap().split("\x1b[H").all(|page| page.lines().count() <= 3));
    terminal.leave(b"Q").await;
}

#[tokio::test]
async fn without_a_terminal_it_says_what_to_use() {
    let Output { status, stderr, .. } =
        Command::new(PROGRAM).args(["top", "--url", "http://127.0.0.1:9"]).output().await.unwrap();
    assert_eq!(status.code(), Some(64));
    assert!(String::from_utf8_lossy(&stderr).contains("`status` prints the page once"));
}
