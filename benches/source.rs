//! How fast the simulated Astro speaks to a client that merely reads: the ceiling of every benchmark
//! that uses it as its source.
//!
//! `cargo bench --bench source [-- MESSAGES]`: one connection, messages of 600 bytes, numbered and
//! recorded, server and client in one process. First a client that only takes the bytes, then one
//! that takes WebSocket messages.
#![expect(clippy::print_stdout, reason = "printing the figures is its purpose")]

use std::{io::Read, net::TcpStream, thread, time::Duration};

use anyhow::{Context, ensure};
use astro_sim::{End, Load, Options, Sim};
use tokio::{runtime::Runtime, time::Instant};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client, error::ProtocolError};

/// Messages where the command line does not say: some seconds' worth.
const MESSAGES: u64 = 1_000_000;

/// Reads to the end; says how many bytes came.
type Reading = fn(WebSocket<TcpStream>) -> anyhow::Result<usize>;

fn main() -> anyhow::Result<()> {
    let wanted = std::env::args().find_map(|argument| argument.parse().ok());
    let load = Load { messages: wanted.unwrap_or(MESSAGES), ..Load::default() };
    for (name, read) in [("bytes", bytes as Reading), ("messages", messages)] {
        let (bytes, took) = measure(&load, read)?;
        let rate = u128::from(load.messages) * 1_000_000 / took.as_micros().max(1);
        println!("{name:>8}: {} messages, {bytes} bytes, {took:.2?}: {rate}/s", load.messages);
    }
    Ok(())
}

fn measure(load: &Load, read: Reading) -> anyhow::Result<(usize, Duration)> {
    let runtime = Runtime::new()?;
    let sim = runtime.block_on(Sim::start(([127, 0, 0, 1], 0).into(), Options::default()))?;
    let socket = subscribed(&sim, load)?;
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let reader = scope.spawn(|| read(socket));
        let loaded = runtime.block_on(sim.load(load));
        // What waits is sent before the end.
        sim.end(None, End::Fin);
        ensure!(loaded.sent == load.messages, "the client was not there: {loaded:?}");
        reader.join().ok().context("the reader panicked")?
    })?;
    Ok((bytes, start.elapsed()))
}

fn subscribed(sim: &Sim, load: &Load) -> anyhow::Result<WebSocket<TcpStream>> {
    let (mut socket, _) = client(sim.url(), TcpStream::connect(sim.address())?)?;
    for room in &load.rooms {
        let data = format!(r#"{{"topic":"{}","room":"{room}","token":"t"}}"#, load.topic);
        socket.send(Message::text(format!(r#"{{"type":"subscribe","data":{data}}}"#)))?;
    }
    // The welcome, and a response for each room.
    for _ in 0..=load.rooms.len() {
        socket.read()?;
    }
    Ok(socket)
}

fn bytes(mut socket: WebSocket<TcpStream>) -> anyhow::Result<usize> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    while let read @ 1.. = socket.get_mut().read(&mut buffer)? {
        bytes += read;
    }
    Ok(bytes)
}

fn messages(mut socket: WebSocket<TcpStream>) -> anyhow::Result<usize> {
    let mut bytes = 0;
    loop {
        match socket.read() {
            Ok(message) => bytes += message.len(),
            // The server ends without a close frame.
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Ok(bytes),
            Err(error) => return Err(error.into()),
        }
    }
}
