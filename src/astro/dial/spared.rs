//! A stream that never fills a long buffer that it is read into.
//!
//! The WebSocket library makes room for a message when it has seen its head. Where the buffer was filled
//! to its end there is none, and all that is still unread in it is copied into a new one: under a flood
//! that was each byte once more. With a little left free the next messages find their room, and what is
//! copied at last is little.
//!
//! The one thing to know: it is about how much is read at once, never about what is read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// Left free in a buffer: room for most messages.
const SPARE: usize = 2 * 1024;

/// A stream, read so.
pub(super) struct Spared(Box<dyn Transport>);

impl Spared {
    pub(super) fn new(stream: Box<dyn Transport>) -> Self {
        Self(stream)
    }
}

impl AsyncRead for Spared {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The end of a buffer is read as it is: something must be.
        let length = match buffer.remaining() {
            short if short <= 2 * SPARE => short,
            long => long - SPARE,
        };
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(length));
        ready!(Pin::new(&mut self.0).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Spared {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn all_is_read_and_a_long_buffer_never_filled() {
        for length in [1, SPARE, 2 * SPARE, 2 * SPARE + 1, 16 * SPARE] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(100_003).collect();
            let (mut far, near) = tokio::io::duplex(bytes.len());
            tokio::io::AsyncWriteExt::write_all(&mut far, &bytes).await.unwrap();
            drop(far);
            let mut stream = Spared::new(Box::new(near));
            let (mut heard, mut buffer) = (Vec::new(), vec![0; length]);
            loop {
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read <= length && (length <= 2 * SPARE || read <= length - SPARE));
                if read == 0 {
                    break;
                }
                heard.extend_from_slice(&buffer[..read]);
            }
            assert_eq!(heard, bytes, "{length}");
        }
    }
}
