//! A TCP connection to a host that has several addresses.
//!
//! They are tried side by side, each a little after the one before, so that one that does not answer
//! costs a quarter of a second and not the whole deadline. Resolves no name, and has no deadline of its
//! own: both are the caller's.
//!
//! Only the addresses that are handed in are dialled, so whoever judges them
//! first can be sure of it.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep},
};

/// The next address of a name is tried after this (RFC 8305 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Anything that bytes go through: a TCP connection, with or without TLS.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Connects to the first address that answers. The families take turns, so that a family that leads
/// nowhere costs one turn.
pub async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let longest = six.len().max(four.len());
    let ordered = (0..longest).flat_map(|turn| [six.get(turn), four.get(turn)]).flatten().copied();
    let started = Instant::now();
    let mut attempts: FuturesUnordered<_> = ordered
        .zip(0_u32..)
        .map(|(address, turn)| async move {
            let begin = started + NEXT_ADDRESS * turn;
            sleep(begin.saturating_duration_since(Instant::now())).await;
            TcpStream::connect(address).await
        })
        .collect();
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(stream) => {
                // Small messages are waited for on the other side.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
