//! Connections that were accepted elsewhere, as an HTTP server takes them.
//!
//! A connection can be cut under a handler's hands: that is how a request is done and never answered.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};

/// Who is at the other end of an HTTP connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Its address, where it still has one.
    pub(crate) address: Option<SocketAddr>,
    cut: Arc<AtomicBool>,
}

impl Peer {
    /// Ends the connection: what is written from now on fails.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

impl Connected<IncomingStream<'_, ListenerOfAccepted>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ListenerOfAccepted>) -> Self {
        stream.io().peer.clone()
    }
}

/// A listener whose connections were accepted elsewhere.
pub(crate) struct ListenerOfAccepted {
    pub(crate) address: SocketAddr,
    pub(crate) connections: mpsc::Receiver<TcpStream>,
}

impl Listener for ListenerOfAccepted {
    type Io = PeerStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (PeerStream, SocketAddr) {
        match self.connections.recv().await {
            Some(stream) => {
                let address = stream.peer_addr().ok();
                let peer = Peer { address, cut: Arc::default() };
                (PeerStream { stream, peer }, self.address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that can be cut.
pub(crate) struct PeerStream {
    stream: TcpStream,
    peer: Peer,
}

impl PeerStream {
    fn check(&self) -> io::Result<()> {
        if self.peer.cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
