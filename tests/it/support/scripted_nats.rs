//! A server that speaks NATS's protocol and answers as a test says: refusals in odd words, silence, and
//! connections that end.

use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::scripted_peer::ScriptedPeer;

/// What the server does with a message that is no question of the client to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Play {
    /// It takes it; a stream acknowledges it.
    Well,
    /// It refuses it in these words.
    Refuse(String),
    /// It acknowledges nothing, now or ever.
    Ignore,
    /// It ends the connection.
    HangUp,
}

/// A server that plays by a script.
pub struct ScriptedNats {
    peer: ScriptedPeer,
    came: Arc<Mutex<Vec<String>>>,
}

type Script = dyn Fn(&str) -> Play + Send + Sync;

impl ScriptedNats {
    /// Starts it; `script` is asked with the subject of each message that is for others.
    pub async fn start(script: impl Fn(&str) -> Play + Send + Sync + 'static) -> Self {
        let came = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&came));
        let serve = move |stream| {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            async move { play(stream, &*script, &seen).await }
        };
        Self { peer: ScriptedPeer::start(serve).await, came }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.peer.port)
    }

    /// The subjects of the messages that it took, in order.
    pub fn came(&self) -> Vec<String> {
        self.came.lock().unwrap().clone()
    }
}

/// The client's one inbox: its subscription's number and its subject without the wildcard.
type Inbox = Option<(String, String)>;

async fn play(
    mut stream: TcpStream,
    script: &Script,
    came: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let info = json!({
        "server_id": "SCRIPTED", "server_name": "scripted", "version": "2.11.0", "go": "", "host": "127.0.0.1",
        "port": 4222, "headers": true, "max_payload": 1_048_576, "proto": 1, "client_id": 1, "jetstream": true,
    });
    stream.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
    let (mut read, mut inbox): (_, Inbox) = (BytesMut::new(), None);
    let mut stored = 0;
    loop {
        let Some((words, _)) = operation(&mut read) else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let words: Vec<&str> = words.split(' ').collect();
        let mut answer = String::new();
        match words[0] {
            "PING" => answer = "PONG\r\n".into(),
            "SUB" => {
                inbox = Some((words[2].into(), words[1].trim_end_matches('>').into()));
            }
            "PUB" | "HPUB" => {
                let lengths = if words[0] == "PUB" { 1 } else { 2 };
                let reply = (words.len() > 2 + lengths).then(|| words[2]);
                let to_inbox = |subject: &str, payload: &str| {
                    inbox.as_ref().map_or_else(String::new, |(sid, _)| {
                        format!("MSG {subject} {sid} {}\r\n{payload}\r\n", payload.len())
                    })
                };
                let own = inbox.as_ref().is_some_and(|(_, own)| words[1].starts_with(&**own));
                if own {
                    answer = to_inbox(words[1], "");
                } else if words[1].starts_with("$JS.API.STREAM.INFO.") {
                    answer = to_inbox(reply.unwrap(), &stream_info().to_string());
                } else {
                    match script(words[1]) {
                        Play::Well => {
                            came.lock().unwrap().push(words[1].to_owned());
                            stored += 1;
                            if let Some(reply) = reply {
                                let stored = json!({"stream": "ASTRO", "seq": stored});
                                answer = to_inbox(reply, &stored.to_string());
                            }
                        }
                        Play::Refuse(words) => answer = format!("-ERR '{words}'\r\n"),
                        Play::Ignore => {}
                        Play::HangUp => return Ok(()),
                    }
                }
            }
            _ => {}
        }
        stream.write_all(answer.as_bytes()).await?;
    }
}

fn stream_info() -> serde_json::Value {
    json!({
        "type": "io.nats.jetstream.api.v1.stream_info_response",
        "config": {
            "name": "ASTRO", "subjects": ["astro.>"], "retention": "limits", "max_consumers": -1,
            "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1,
            "discard": "old", "storage": "file", "num_replicas": 1,
            "duplicate_window": 3_600_000_000_000_u64,
        },
        "created": "2026-01-01T00:00:00Z",
        "state": {
            "messages": 0, "bytes": 0, "first_seq": 0, "first_ts": "0001-01-01T00:00:00Z", "last_seq": 0,
            "last_ts": "0001-01-01T00:00:00Z", "consumer_count": 0,
        },
    })
}

/// Takes a whole operation out of what was read: its line, and the payload behind it.
fn operation(read: &mut BytesMut) -> Option<(String, Vec<u8>)> {
    let end = read.windows(2).position(|two| two == b"\r\n")?;
    let line = String::from_utf8_lossy(&read[..end]).into_owned();
    if !line.starts_with("PUB ") && !line.starts_with("HPUB ") {
        read.advance(end + 2);
        return Some((line, Vec::new()));
    }
    let length: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
    let payload = read.get(end + 2..end + 2 + length)?.to_vec();
    if read.len() < end + 4 + length {
        return None;
    }
    read.advance(end + 4 + length);
    Some((line, payload))
}
