//! A bare WebSocket client, and a bare HTTP one.

use std::time::Duration;

use astro_sim::Sim;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message},
};

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A client of the gateway.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) ws: WebSocketStream<TcpStream>,
    nonce: u32,
}

impl Client {
    /// Connects, and reads the welcome where there is one.
    pub(crate) async fn welcomed(sim: &Sim) -> Self {
        let mut client = Self::connect(sim, "").await.unwrap();
        assert_eq!(client.json().await["type"], "welcome");
        client
    }

    /// Connects and reads nothing.
    pub(crate) async fn connect(sim: &Sim, query: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(sim.address()).await?;
        let url = format!("{}/{query}", sim.url());
        let (ws, _) = timeout(SOON, client_async(url, stream)).await.unwrap()?;
        Ok(Self { ws, nonce: 0 })
    }

    pub(crate) async fn send(&mut self, text: impl ToString) {
        self.ws.send(Message::text(text.to_string())).await.unwrap();
    }

    /// Subscribes and returns the response.
    pub(crate) async fn subscribe(&mut self, topic: &str, room: &str) -> Value {
        self.command(
            "subscribe",
            json!({ "topic": topic, "room": room, "token": "t", "token_type": "jwt" }),
        )
        .await
    }

    /// Sends a command and returns the response, which must bear its nonce.
    pub(crate) async fn command(&mut self, kind: &str, data: Value) -> Value {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        self.send(json!({ "type": kind, "nonce": nonce, "data": data })).await;
        let response = self.json().await;
        assert_eq!(response["nonce"], nonce, "{response}");
        response
    }

    /// What comes next, whatever it is; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<Result<Message, Error>> {
        timeout(SOON, self.ws.next()).await.expect("nothing came")
    }

    /// The next text, as it came.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match self.frame().await.expect("the connection ended").unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// The next text, parsed.
    pub(crate) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Reads to the end; says how it came: the code of a close frame, or the error.
    pub(crate) async fn end(&mut self) -> Result<Option<u16>, Error> {
        let mut code = None;
        while let Some(frame) = self.frame().await {
            if let Message::Close(close) = frame? {
                code = close.map(|close| close.code.into());
            }
        }
        Ok(code)
    }

    /// Sends a ping; says whether a pong comes before the deadline.
    pub(crate) async fn answers_ping(&mut self, deadline: Duration) -> bool {
        self.ws.send(Message::Ping("?".into())).await.unwrap();
        let pong = async {
            while let Some(Ok(frame)) = self.ws.next().await {
                if frame.is_pong() {
                    return true;
                }
            }
            false
        };
        timeout(deadline, pong).await.unwrap_or(false)
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// One HTTP request on a connection of its own; `None` where the connection ends without an answer.
pub(crate) async fn request(sim: &Sim, method: &str, path: &str, body: &str) -> Option<Answer> {
    request_as(sim, Some("t"), method, path, body).await
}

pub(crate) async fn request_as(
    sim: &Sim,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: &str,
) -> Option<Answer> {
    let authorization = token.map(|token| format!("Bearer {token}"));
    send(sim, authorization.as_deref(), method, path, body).await
}

/// A GET with this value of `Authorization`.
pub(crate) async fn request_with(sim: &Sim, authorization: &str, path: &str) -> Answer {
    send(sim, Some(authorization), "GET", path, "").await.unwrap()
}

async fn send(
    sim: &Sim,
    authorization: Option<&str>,
    method: &str,
    path: &str,
    body: &str,
) -> Option<Answer> {
    let mut stream = TcpStream::connect(sim.address()).await.unwrap();
    let authorization =
        authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n{authorization}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.unwrap().ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
