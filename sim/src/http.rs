//! The HTTP side of the simulator's port: connections that are not for the gateway come here.
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
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};

use crate::{control, rest, world::World};

/// Serves the connections that come through the channel, until the simulation stops.
pub(crate) async fn serve(
    world: Arc<World>,
    address: SocketAddr,
    connections: mpsc::Receiver<TcpStream>,
) {
    let app: Router = rest::routes(&world).merge(control::routes(&world));
    let service = app.into_make_service_with_connect_info::<Peer>();
    let stop = world.stop.clone().cancelled_owned();
    let served = axum::serve(Handed { address, connections }, service);
    // It ends when it is told to, and in no other way.
    served.with_graceful_shutdown(stop).await.ok();
}

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

impl Connected<IncomingStream<'_, Handed>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Handed>) -> Self {
        stream.io().peer.clone()
    }
}

/// A listener whose connections were accepted elsewhere.
struct Handed {
    address: SocketAddr,
    connections: mpsc::Receiver<TcpStream>,
}

impl Listener for Handed {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        match self.connections.recv().await {
            Some(stream) => {
                let address = stream.peer_addr().ok();
                let peer = Peer { address, cut: Arc::default() };
                (Wire { stream, peer }, self.address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that can be cut.
struct Wire {
    stream: TcpStream,
    peer: Peer,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        if self.peer.cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
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
