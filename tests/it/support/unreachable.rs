//! Servers that are off, hang, or fall silent: each is an address of this machine.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Whoever connects gets no answer at all, as from a machine that is off or behind a firewall that
/// drops: the kernel throws away what asks for a connection while the backlog is full.
pub struct Hanging {
    pub address: SocketAddr,
    _listener: TcpListener,
    _fill: Vec<TcpStream>,
}

impl Hanging {
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut fill = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            fill.push(connected.unwrap());
            assert!(fill.len() < 64, "the backlog is never full");
        }
        Self { address, _listener: listener, _fill: fill }
    }
}

/// Accepts connections (the kernel does) and never says or reads anything, as a server that hangs.
pub struct Mute {
    pub address: SocketAddr,
    _listener: TcpListener,
}

impl Mute {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), _listener: listener }
    }
}

/// An address at which every connection is refused at once: nobody listens.
pub fn refused() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], super::process::free_port()))
}

mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn each_is_as_dead_as_it_says() {
        let hanging = Hanging::new().await;
        assert!(timeout(MOMENT, TcpStream::connect(hanging.address)).await.is_err());
        let mute = Mute::new().await;
        let mut stream = TcpStream::connect(mute.address).await.unwrap();
        assert!(timeout(MOMENT, stream.read_u8()).await.is_err());
        assert!(TcpStream::connect(refused()).await.is_err());
    }
}
