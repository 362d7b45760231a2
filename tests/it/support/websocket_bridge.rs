//! MQTT over WebSocket in front of a broker that only speaks TCP.
//!
//! mosquitto can speak it too, but Debian's does not start such a listener on every kernel.

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{ErrorResponse, Request, Response},
    http::HeaderValue,
};

/// Starts it on a free port; it ends with the test's runtime.
#[expect(clippy::disallowed_methods, reason = "a test's own tasks")]
pub async fn start(broker: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(bridge(stream, broker));
        }
    });
    port
}

#[expect(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the signature is the library's"
)]
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    assert_eq!(request.headers().get("Sec-WebSocket-Protocol").unwrap(), "mqtt");
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    Ok(response)
}

async fn bridge(stream: TcpStream, broker: u16) -> Option<()> {
    let socket = tokio_tungstenite::accept_hdr_async(stream, agree).await.ok()?;
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_broker, mut to_broker) =
        TcpStream::connect(("127.0.0.1", broker)).await.ok()?.into_split();
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            to_broker.write_all(&message.into_data()).await.ok()?;
        }
        to_broker.shutdown().await.ok()
    };
    let down = async {
        let mut buffer = vec![0; 8192];
        loop {
            let count = from_broker.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
            to_client.send(Message::binary(buffer[..count].to_vec())).await.ok()?;
        }
    };
    tokio::select! { ended = up => ended, ended = down => ended }
}
