//! A stream that keeps what was read from it, so that an upgrade can be done on it and nothing that
//! came behind the server's answer is lost.
//!
//! The one thing to know: it is for the upgrade alone, whose answer is short.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// A stream, and what was read from it.
pub(super) struct Overheard {
    stream: Box<dyn Transport>,
    heard: Vec<u8>,
}

impl Overheard {
    pub(super) fn new(stream: Box<dyn Transport>) -> Self {
        Self { stream, heard: Vec::new() }
    }

    /// The stream, and what was read behind the head of an HTTP answer, in memory for `capacity`
    /// bytes.
    pub(super) fn behind_head(self, capacity: usize) -> (Box<dyn Transport>, Vec<u8>) {
        let end = head_end(&self.heard).unwrap_or(self.heard.len());
        let behind = self.heard.get(end..).unwrap_or_default();
        let mut rest = Vec::with_capacity(capacity.max(behind.len()));
        rest.extend_from_slice(behind);
        (self.stream, rest)
    }
}

/// Where the empty line ends. A line may end without its carriage return, and empty lines may come
/// before the first (RFC 9112, section 2.2).
fn head_end(bytes: &[u8]) -> Option<usize> {
    let (mut begun, mut empty) = (false, true);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' if begun && empty => return Some(at + 1),
            b'\n' => empty = true,
            b'\r' => {}
            _ => (begun, empty) = (true, false),
        }
    }
    None
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.heard.extend_from_slice(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_with_its_empty_line() {
        let cases = [
            ("HTTP/1.1 101 x\r\na: b\r\n\r\n", "frames"),
            ("HTTP/1.1 101 x\na: b\n\n", "\n\r\n\r\n"),
            ("HTTP/1.1 101 x\r\na: b\n\r\n", ""),
            ("\r\nHTTP/1.1 101 x\r\n\r\n", "frames"),
        ];
        for (head, behind) in cases {
            let all = format!("{head}{behind}");
            assert_eq!(head_end(all.as_bytes()), Some(head.len()), "{head:?}");
        }
        assert_eq!(head_end(b"HTTP/1.1 101 x\r\na: b\r\n"), None);
    }
}
