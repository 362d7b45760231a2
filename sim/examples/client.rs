//! A test of a client of Astro: it subscribes, gets a message, loses its connection, and comes back.
//!
//! `cargo run -p astro-sim --example client`

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "an example shows what happens; a JSON value indexed by name is null"
)]

use astro_sim::{End, Options, Reception, Sim, Token};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message},
};

const ROOM: &str = "577c0455f9a31ea72a36b2b3";
const TOPIC: &str = "channel.tips";

type Anyhow<T> = Result<T, Box<dyn std::error::Error>>;

/// The client under test: yours stands here.
struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Connects and subscribes, again and again until it is confirmed.
    async fn subscribed(sim: &Sim) -> Anyhow<Self> {
        loop {
            let stream = TcpStream::connect(sim.address()).await?;
            match client_async(sim.url(), stream).await {
                Ok((socket, _)) => {
                    let mut client = Self(socket);
                    let subscribe = json!({
                        "type": "subscribe", "nonce": "1",
                        "data": { "topic": TOPIC, "room": ROOM, "token": "t", "token_type": "jwt" },
                    });
                    client.0.send(Message::text(subscribe.to_string())).await?;
                    while client.next().await?["type"] != "response" {}
                    return Ok(client);
                }
                // 502: the server drains. A real client waits a little longer each time.
                Err(Error::Http(refused)) => println!("refused: {}", refused.status()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn next(&mut self) -> Anyhow<Value> {
        loop {
            // The library answers pings.
            if let Message::Text(text) = self.0.next().await.ok_or("the connection ended")?? {
                return Ok(serde_json::from_str(&text)?);
            }
        }
    }
}

#[tokio::main]
async fn main() -> Anyhow<()> {
    let options = Options { tokens: vec![Token::owner("t", ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await?;

    let mut client = Client::subscribed(&sim).await?;
    let id = sim.publish(TOPIC, ROOM, r#"{"donation":{"amount":5}}"#);
    let message = client.next().await?;
    assert_eq!(message["id"], id);
    println!("received {}", message["data"]);

    // The connection is reset, and the next two attempts are refused.
    let refused = Reception::Refuse { status: 502, retry_after: None };
    sim.faults(|faults| faults.next.extend([refused.clone(), refused]));
    sim.end(None, End::Reset);
    assert!(client.next().await.is_err(), "it is reset");

    let mut client = Client::subscribed(&sim).await?;
    let id = sim.publish(TOPIC, ROOM, r#"{"donation":{"amount":7}}"#);
    assert_eq!(client.next().await?["id"], id);

    // What the simulation accepted to send is on record: nothing else may be missing.
    let records = sim.connections();
    assert_eq!(records.len(), 2);
    assert_eq!(records.last().map(|record| &record.sent), Some(&vec![id]));
    println!("{:?}", sim.stats());
    sim.stop().await;
    Ok(())
}
