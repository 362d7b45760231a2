//! A server that speaks Redis's protocol and answers as a test says: errors of other vendors' servers and
//! of proxies, silence, and connections that end.

use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::scripted_peer::ScriptedPeer;

/// What the server does with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Play {
    /// It answers as a server that is well: `+OK`, `+PONG`, one receiver, all entries appended.
    Well,
    /// It answers with these words as an error.
    Error(String),
    /// It does not answer, now or ever.
    Ignore,
    /// It ends the connection.
    HangUp,
}

/// An error that is answered with.
pub fn error(words: &str) -> Play {
    Play::Error(words.to_owned())
}

/// A server that plays by a script.
pub struct ScriptedRedis {
    peer: ScriptedPeer,
    came: Arc<Mutex<Vec<Vec<String>>>>,
}

type Script = dyn Fn(&[String]) -> Play + Send + Sync;

impl ScriptedRedis {
    /// Starts it; `script` is asked with the words of each command.
    pub async fn start(script: impl Fn(&[String]) -> Play + Send + Sync + 'static) -> Self {
        let came = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&came));
        let serve = move |stream| {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            async move { play(stream, &*script, &seen).await }
        };
        Self { peer: ScriptedPeer::start(serve).await, came }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.peer.port)
    }

    /// The commands of this name that came, in order, each with its words.
    pub fn came(&self, name: &str) -> Vec<Vec<String>> {
        let came = self.came.lock().unwrap();
        came.iter().filter(|words| words[0] == name).cloned().collect()
    }
}

async fn play(
    mut stream: TcpStream,
    script: &Script,
    came: &Mutex<Vec<Vec<String>>>,
) -> std::io::Result<()> {
    let mut read = BytesMut::new();
    loop {
        let Some(words) = command(&mut read) else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let what = script(&words);
        let answer = match &what {
            Play::Well => well(&words),
            Play::Error(words) => format!("-{words}\r\n"),
            Play::Ignore => String::new(),
            Play::HangUp => return Ok(()),
        };
        came.lock().unwrap().push(words);
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// What a server that is well says.
fn well(words: &[String]) -> String {
    match words[0].as_str() {
        "PING" => "+PONG\r\n".into(),
        "PUBLISH" => ":1\r\n".into(),
        "INFO" => "$0\r\n\r\n".into(),
        // The events are what follows the keys and two numbers, nine words each.
        "EVAL" => {
            let keys: usize = words[2].parse().unwrap();
            format!("*3\r\n:{}\r\n:0\r\n$0\r\n\r\n", (words.len() - 5 - keys) / 9)
        }
        _ => "+OK\r\n".into(),
    }
}

/// Takes a whole command out of what was read.
fn command(read: &mut BytesMut) -> Option<Vec<String>> {
    let mut rest = &read[..];
    let count = number(&mut rest, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(&mut rest, b'$')?;
        let word = rest.get(..length)?;
        words.push(String::from_utf8_lossy(word).into_owned());
        rest = rest.get(length + 2..)?;
    }
    let taken = read.len() - rest.len();
    read.advance(taken);
    Some(words)
}

fn number(rest: &mut &[u8], sign: u8) -> Option<usize> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    assert_eq!(rest[0], sign);
    let number = std::str::from_utf8(&rest[1..end]).unwrap().parse().unwrap();
    *rest = &rest[end + 2..];
    Some(number)
}
