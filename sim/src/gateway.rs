//! One connection of the simulated gateway: the upgrade, then reading, writing, pinging and, where a
//! fault demands it, ending, side by side in one task.
//!
//! Reading goes through the WebSocket library, whose writing half leads nowhere: what is answered is
//! decided here, so that a silenced connection does not even answer a ping.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Join, Sink},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, StatusCode, header::RETRY_AFTER},
        protocol::{Role, WebSocketConfig},
    },
};
use ulid::Ulid;
use url::form_urlencoded;

use crate::{
    command::{self, Answer, Rate},
    connection::{Ended, ServerConnection},
    faults::{End, Reception},
    frame,
    text::put_string,
    world::World,
};

/// How long a closed connection waits for the client to close too. Closing a socket on which
/// something unread lies would reset it, and what was just sent would be lost.
const LINGER: Duration = Duration::from_secs(2);

/// Commands and answers that can wait for their time: more than the rate allows.
const WAITING: usize = 1000;

/// The code of the close frame that answers a bad reconnect token, and the one for a missing PONG.
/// The documentation names none: "policy violation" and "going away" of RFC 6455 come nearest.
const BAD_TOKEN: u16 = 1008;
const GOING_AWAY: u16 = 1001;

type Reader = WebSocketStream<Join<OwnedReadHalf, Sink>>;

/// Serves a connection from its first byte to its last.
pub(crate) async fn serve(mut stream: TcpStream, world: &World) {
    let (reception, delay) = world.faults(|faults| (faults.reception(), faults.upgrade_delay));
    if reception == Reception::NeverUpgrades {
        read_to_end(&mut stream).await;
        return;
    }
    pause(delay).await;
    let Some((stream, token)) = upgrade(stream, world, &reception).await else { return };
    let (read, mut write) = stream.into_split();
    let Some(connection) = world.open_connection(token.as_deref()) else {
        let mut last = Vec::new();
        frame::put_close(&mut last, BAD_TOKEN, "invalid reconnect token");
        // A client that is gone already has no need of it.
        write.write_all(&last).await.ok();
        close_gracefully(read, write).await;
        return;
    };
    connection.silence(reception == Reception::Silent);
    let reader = WebSocketStream::from_raw_socket(
        tokio::io::join(read, tokio::io::sink()),
        Role::Server,
        None,
    )
    .await;
    converse(world, &connection, &reception, reader, write).await;
}

/// Answers the upgrade. Gives the bare stream, and the reconnect token that came with the request.
async fn upgrade(
    stream: TcpStream,
    world: &World,
    reception: &Reception,
) -> Option<(TcpStream, Option<String>)> {
    let mut token = None;
    let mut refused = None;
    #[expect(clippy::result_large_err, reason = "the library's callback has this form")]
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let query = request.uri().query().unwrap_or_default();
        token = form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == "reconnect_token")
            .map(|(_, value)| value.into_owned());
        let Reception::Refuse { status, retry_after } = reception else { return Ok(response) };
        refused = Some(*status);
        let mut answer = ErrorResponse::new(Some("not now\n".to_owned()));
        *answer.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY);
        if let Some(value) = retry_after.as_deref().and_then(|v| HeaderValue::from_str(v).ok()) {
            answer.headers_mut().insert(RETRY_AFTER, value);
        }
        Err(answer)
    };
    let config = Some(WebSocketConfig::default());
    let accepted = tokio_tungstenite::accept_hdr_async_with_config(stream, look, config).await;
    if refused.is_some() || accepted.is_ok() {
        world.record_attempt(refused, token.is_some());
    }
    Some((accepted.ok()?.into_inner(), token))
}

/// Runs the connection to its end.
async fn converse(
    world: &World,
    connection: &Arc<ServerConnection>,
    reception: &Reception,
    mut reader: Reader,
    mut writer: OwnedWriteHalf,
) {
    let (pong_at, pongs) = watch::channel(Instant::now());
    let reset = tokio::select! {
        // In this order: the welcome comes before the answer to a client in a hurry, and a load at
        // full speed does not keep commands and pings from being read.
        biased;
        () = connection.cut.notified() => true,
        never = heartbeat(world, connection, reception, pongs) => match never {},
        never = end_on_fault(world, connection, reception) => match never {},
        () = async {
            read(world, connection, &pong_at, &mut reader).await;
            connection.finish(Ended::Gone, |_| {});
            // Writing ends by itself now: its last word, the close frame, may still wait.
            sleep(LINGER).await;
        } => false,
        result = write(world, connection, &mut writer) => {
            if result.is_err() {
                connection.finish(Ended::Gone, |_| {});
            }
            false
        }
    };
    world.close_connection(connection);
    let (read, _) = reader.into_inner().into_inner();
    if reset {
        // No lingering: with the read half gone too, the kernel answers with RST.
        writer.as_ref().set_zero_linger().ok();
        writer.forget();
    } else if connection.is_silent() {
        drop((read, writer));
    } else {
        close_gracefully(read, writer).await;
    }
}

/// Sleeps, where there is anything to sleep: even no time at all would be rounded up to a tick.
async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Sends FIN, and waits until the client has closed too.
async fn close_gracefully(mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let farewell = async {
        if write.shutdown().await.is_ok() {
            read_to_end(&mut read).await;
        }
    };
    timeout(LINGER, farewell).await.ok();
}

/// Reads until the end of the stream, and forgets it.
async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut buffer = [0; 1024];
    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
}

/// Writes what waits, until the connection ends.
async fn write(
    world: &World,
    connection: &ServerConnection,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut batch = Vec::new();
    loop {
        if connection.take(&mut batch) {
            world.space.notify_waiters();
            match world.faults(|faults| faults.trickle) {
                None => writer.write_all(&batch).await?,
                Some(pause) => trickle(connection, &batch, pause, writer).await?,
            }
        } else if connection.ended().is_some() {
            return Ok(());
        } else {
            connection.wake.notified().await;
        }
    }
}

/// Writes one byte at a time.
async fn trickle(
    connection: &ServerConnection,
    batch: &[u8],
    pause: Duration,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    for byte in batch {
        if connection.is_silent() {
            break;
        }
        writer.write_all(std::slice::from_ref(byte)).await?;
        sleep(pause).await;
    }
    Ok(())
}

/// Reads commands and answers them, until the end of the stream.
async fn read(
    world: &World,
    connection: &Arc<ServerConnection>,
    pong_at: &watch::Sender<Instant>,
    reader: &mut Reader,
) {
    let mut rate = Rate::new(world.options.commands_per_window);
    let mut commands: VecDeque<(Instant, Utf8Bytes, bool)> = VecDeque::new();
    let mut answers: VecDeque<(Instant, Answer)> = VecDeque::new();
    loop {
        let act_at = commands.front().map(|(due, ..)| *due);
        let answer_at = answers.front().map(|(due, _)| *due);
        let message = tokio::select! {
            biased;
            () = sleep_until(act_at.unwrap_or_else(Instant::now)), if act_at.is_some() => {
                if let Some((_, text, in_time)) = commands.pop_front() {
                    act(world, connection, &text, in_time, &mut answers);
                }
                continue;
            }
            () = sleep_until(answer_at.unwrap_or_else(Instant::now)), if answer_at.is_some() => {
                if let Some((_, answer)) = answers.pop_front() {
                    answer.send(world, connection);
                }
                continue;
            }
            message = reader.next(), if commands.len() + answers.len() < WAITING => message,
        };
        let Some(Ok(message)) = message else { return };
        if connection.is_silent() {
            continue;
        }
        match message {
            Message::Text(text) => {
                let in_time = rate.allows(Instant::now());
                let delay = world.faults(|faults| faults.response_delay);
                // A command never overtakes an earlier one.
                if delay.is_zero() && commands.is_empty() {
                    act(world, connection, &text, in_time, &mut answers);
                } else {
                    commands.push_back((Instant::now() + delay, text, in_time));
                }
            }
            Message::Ping(payload) => {
                connection.send(|buffer| frame::put(buffer, frame::PONG, &payload));
            }
            Message::Pong(_) => {
                world.count(|stats| stats.pongs += 1);
                pong_at.send_replace(Instant::now());
            }
            Message::Close(close) => {
                let code = close.map_or(1000, |close| close.code.into());
                connection.finish(Ended::ByClient, |buffer| frame::put_close(buffer, code, ""));
            }
            // "A server ignores binary frames" (revision 2026).
            Message::Binary(_) | Message::Frame(_) => {}
        }
    }
}

/// Acts on a command. Its response is sent now, or in a while; it never overtakes an earlier one.
fn act(
    world: &World,
    connection: &Arc<ServerConnection>,
    text: &str,
    in_time: bool,
    answers: &mut VecDeque<(Instant, Answer)>,
) {
    let answer = command::act(world, connection, text, in_time);
    let delay = world.faults(|faults| faults.answer_delay);
    if delay.is_zero() && answers.is_empty() {
        answer.send(world, connection);
    } else {
        answers.push_back((Instant::now() + delay, answer));
    }
}

/// Welcomes, then pings, and ends the connection when no PONG comes.
async fn heartbeat(
    world: &World,
    connection: &ServerConnection,
    reception: &Reception,
    pongs: watch::Receiver<Instant>,
) -> Infallible {
    let options = &world.options;
    let closed_at_once = matches!(reception, Reception::Close { after, .. } if after.is_zero());
    if options.welcome && !closed_at_once {
        pause(world.faults(|faults| faults.welcome_delay)).await;
        let text = world.envelope("welcome", |text| {
            text.extend_from_slice(br#","data":{"client_id":"#);
            put_string(text, &Ulid::new().to_string());
            text.extend_from_slice(br#","message":"welcome to the simulated Astro"}"#);
        });
        connection.send(|buffer| frame::put(buffer, frame::TEXT, &text));
    }
    let mut ping_at = Instant::now() + options.ping_every;
    loop {
        let last_pong = *pongs.borrow();
        let give_up_at = last_pong + options.pong_within;
        sleep_until(ping_at.min(give_up_at)).await;
        if Instant::now() >= ping_at {
            world.count(|stats| stats.pings += 1);
            connection.send(|buffer| frame::put(buffer, frame::PING, b"astro"));
            ping_at = Instant::now() + options.ping_every;
        }
        let last_pong = *pongs.borrow();
        if Instant::now() >= last_pong + options.pong_within {
            // A silenced connection keeps its TCP connection: that is what half open means.
            if !connection.is_silent() {
                connection.finish(Ended::NoPong, |b| frame::put_close(b, GOING_AWAY, "no pong"));
            }
            return std::future::pending().await;
        }
    }
}

/// Ends the connection when its time has come: by its reception, or after it was asked to reconnect.
async fn end_on_fault(
    world: &World,
    connection: &ServerConnection,
    reception: &Reception,
) -> Infallible {
    if let Reception::Close { after, end } = reception {
        sleep(*after).await;
        connection.end(*end);
    }
    connection.draining.notified().await;
    if let Some(grace) = world.options.drain_grace {
        sleep(grace).await;
        connection.end(End::Close(GOING_AWAY));
    }
    std::future::pending().await
}
